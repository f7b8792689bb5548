"""A backend whose weights are one number: it advances steps, keeps checkpoints and serves an echo.

The smallest whole backend: an example for authors of backends, and a stand-in for tests.
"""

from __future__ import annotations

import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import orjson

from art_core.backends import BackendSpec, Checkpoint, Endpoint, TrainResult
from art_core.base.errors import BackendError
from art_core.data.trajectory import ChoiceTokens, History, Trajectory, TrajectoryGroup
from art_core.metrics.receipt import GpuTime
from art_core.rl.batch import training_batch
from art_core.rl.config import TrainConfig
from art_core.rl.sft import ExampleSize, example_size, sft_batches, sft_config
from art_core.testing.echo_weights import EchoWeights

if TYPE_CHECKING:
    from art_core.model.trainable import TrainableModel


LOGPROB = -0.5
"""The log-probability of every sampled token with the weights of step 0."""
_STEPS_APART = 100
_END = b"\n"
_MANY_TOKENS = 1 << 20

Reply = Callable[[Sequence[dict[str, Any]], int], str | Mapping[str, Any]]
"""Returns the answer to messages, with the weights of a step: its text, or a whole message, for
example with tool calls.
"""

Logprob = Callable[[str], float]
"""Returns the log-probability of every token of a model name's answers."""


class Names(Protocol):
    """The model names that are served, and the step of each."""

    def names(self) -> Sequence[str]:
        """Return all names."""

    def step_of(self, name: str) -> int | None:
        """Return the step of a name's weights; None for an unknown name."""


def prompt_tokens(messages: Sequence[dict[str, Any]]) -> list[int]:
    """Render messages to the tokens that the model sees."""
    lines = "".join(f"{m['role']}:{m.get('content') or ''}\n" for m in messages)
    return list(f"{lines}assistant:".encode())


def _turns(history: History) -> list[ChoiceTokens]:
    """Return the turns of a conversation's assistant messages."""
    messages = history.messages()
    turns = []
    for place, message in enumerate(messages):
        if message["role"] == "assistant" and message.get("weight", 1) != 0:
            ids = (*str(message.get("content") or "").encode(), *_END)
            prompt, unknown = tuple(prompt_tokens(messages[:place])), (math.nan,) * len(ids)
            turns.append(ChoiceTokens(prompt_ids=prompt, completion_ids=ids, logprobs=unknown))
    return turns


@attrs.frozen
class EchoServer:
    """Serves until it is closed, each request on a thread of its own."""

    url: str
    _server: ThreadingHTTPServer

    @classmethod
    def start(
        cls,
        served: Names,
        reply: Reply,
        logprob: Logprob | None = None,
        *,
        gives_tokens: bool = True,
    ) -> EchoServer:
        """Listen on a free port of the loopback interface.

        By default the log-probs depend on the step, so that answers show which weights were asked.
        Without `gives_tokens` answers are text only, as those of most services.
        """

        def logprob_of_step(name: str) -> float:
            step = served.step_of(name) or 0
            return LOGPROB - (step % _STEPS_APART) / _STEPS_APART

        shown = logprob or logprob_of_step

        class Handler(_Handler):
            names = served
            answer = staticmethod(reply)
            logprob = staticmethod(shown)
            tokens = gives_tokens

        server = _Listener(("127.0.0.1", 0), Handler)
        poll_s = 0.02
        threading.Thread(target=server.serve_forever, args=(poll_s,), daemon=True).start()
        return cls(f"http://127.0.0.1:{server.server_port}/v1", server)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _Listener(ThreadingHTTPServer):
    request_queue_size = 1024  # a burst of rollouts comes at once

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print a traceback, but not of a client that went away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    names: Names
    answer: Reply
    logprob: Logprob
    tokens: bool

    def do_GET(self) -> None:
        if self.path.rstrip("/") != "/v1/models":
            return self._refuse(404, f"no such path: {self.path}")
        listed = [
            {"id": name, "object": "model", "created": 0, "owned_by": "echo"}
            for name in self.names.names()
        ]
        return self._json(200, {"object": "list", "data": listed})

    def do_POST(self) -> None:
        scores = self.path.rstrip("/") == "/v1/completions"
        if not scores and self.path.rstrip("/") != "/v1/chat/completions":
            return self._refuse(404, f"no such path: {self.path}")
        try:
            request = orjson.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            name, messages = request["model"], () if scores else request["messages"]
            prompt = request["prompt"] if scores else prompt_tokens(messages)
        except (ValueError, KeyError, TypeError) as error:
            return self._refuse(400, f"not a completion request: {error!r}")
        step = self.names.step_of(name)
        if step is None:
            return self._refuse(404, f"no model {name!r}; served: {', '.join(self.names.names())}")
        if scores:
            return self._json(200, _scored(request, step, self.logprob(name)))
        if not isinstance(request.get("n") or 1, int):
            return self._refuse(400, f"n must be a count, got {request['n']!r}")
        answer, logprob = self.answer(messages, step), self.logprob(name)
        if not self.tokens:
            request = {**request, "logprobs": False, "return_token_ids": False}
        completion = _completion(request, prompt, step, answer, logprob)
        return self._stream(completion) if request.get("stream") else self._json(200, completion)

    def _stream(self, completion: dict[str, Any]) -> None:
        chunk = completion | {"object": "chat.completion.chunk"}
        chunk["choices"] = [
            {**choice, "delta": choice["message"]} for choice in completion["choices"]
        ]
        self._send(200, "text/event-stream", b"data: %b\n\ndata: [DONE]\n\n" % orjson.dumps(chunk))

    def _refuse(self, status: int, message: str) -> None:
        kind = "invalid_request_error"
        self._json(status, {"error": {"message": message, "type": kind, "param": None}})

    def _json(self, status: int, body: dict[str, Any]) -> None:
        self._send(status, "application/json", orjson.dumps(body))

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Write no log: it would be mixed into a test's output."""


def _scored(request: dict[str, Any], step: int, logprob: float) -> dict[str, Any]:
    prompt: list[int] = request["prompt"]
    found = {
        "tokens": [chr(token) for token in prompt],
        "token_logprobs": [None, *[logprob] * (len(prompt) - 1)],
    }
    return {
        "id": "echo",
        "object": "text_completion",
        "created": 0,
        "model": request["model"],
        "policy_version": step,
        "choices": [{"index": 0, "text": "", "finish_reason": "length", "logprobs": found}],
        "usage": {"prompt_tokens": len(prompt), "completion_tokens": 0},
    }


def _completion(
    request: dict[str, Any],
    prompt: list[int],
    step: int,
    answer: str | Mapping[str, Any],
    logprob: float,
) -> dict[str, Any]:
    limit = request.get("max_completion_tokens") or request.get("max_tokens") or _MANY_TOKENS
    given = {"content": answer} if isinstance(answer, str) else dict(answer)
    content, calls = given.get("content") or "", given.get("tool_calls")
    whole = (content + (orjson.dumps(calls).decode() if calls else "")).encode() + _END
    sampled = whole[:limit]
    finished = len(sampled) == len(whole)
    if not finished:  # a call that is cut off is text
        given = {"content": sampled.decode(errors="replace")}
    choice: dict[str, Any] = {
        "message": {"role": "assistant", "content": None, **given},
        "finish_reason": ("tool_calls" if calls else "stop") if finished else "length",
        "logprobs": None,
    }
    if request.get("logprobs"):
        choice["logprobs"] = {"content": [_entry(token, logprob) for token in sampled]}
    response: dict[str, Any] = {
        "id": "echo",
        "object": "chat.completion",
        "created": 0,
        "model": request["model"],
        "policy_version": step,
    }
    if request.get("return_token_ids"):
        choice["token_ids"] = list(sampled)
        response["prompt_token_ids"] = prompt
    count = request.get("n") or 1
    response["choices"] = [{"index": i, **choice} for i in range(count)]
    used = len(sampled) * count
    response["usage"] = {
        "prompt_tokens": len(prompt),
        "completion_tokens": used,
        "total_tokens": len(prompt) + used,
    }
    return response


def _entry(token: int, logprob: float) -> dict[str, Any]:
    text = chr(token)
    return {"token": text, "bytes": [token], "logprob": logprob, "top_logprobs": []}


def last_message(messages: Sequence[dict[str, Any]], step: int) -> str:
    """Answer with the last message, whatever the step."""
    del step
    return str(messages[-1].get("content") or "")


@attrs.define(kw_only=True, eq=False)
class EchoBackend:
    """Answers with `reply(messages, step)`, by default the last message.

    A step that has something to learn from changes the weights, a number from 0 to 1; the log-prob
    of every token is `LOGPROB` minus that number. A device-hour costs `gpu_cost_per_hour_usd`.
    Without `gives_tokens` answers have no token ids and log-probs, and can't be trained.
    """

    reply: Reply = last_message
    gpu_cost_per_hour_usd: float | None = None
    gives_tokens: bool = True
    _models: dict[str, EchoWeights] = attrs.field(factory=dict, init=False)
    _server: EchoServer | None = attrs.field(default=None, init=False)

    async def register(self, model: TrainableModel) -> Endpoint:
        """Take up the model at its last checkpoint, and serve it."""
        self._models[model.name] = EchoWeights.load(model.base_model, model.run_dir / "checkpoints")
        if self._server is None:
            self._server = EchoServer.start(
                self, self.reply, self.logprob_of, gives_tokens=self.gives_tokens
            )
        return Endpoint(base_url=self._server.url, api_key="echo", model_name=model.name)

    async def unregister(self, model: TrainableModel) -> None:
        """Forget the model; its checkpoints stay."""
        self._models.pop(model.name, None)

    async def train(
        self, model: TrainableModel, groups: Sequence[TrajectoryGroup], **options: Any
    ) -> TrainResult:
        """Make the batch, change the weights if it is not empty, advance the step."""
        config = TrainConfig.of(model.plugins.losses(), model.plugins.advantages(), **options)
        start = time.monotonic()
        batch = training_batch(groups, config, grammars=True)
        seen = [(s.token_ids, s.advantages) for s in batch.sequences]
        metrics = batch.metrics | {"data/step_num_gradient_steps": float(not batch.empty)}
        return self._moved(model, seen, metrics, start, config)

    async def train_sft(
        self, model: TrainableModel, batches: Sequence[Sequence[Trajectory]], **options: Any
    ) -> TrainResult:
        """Change the weights by the text of the conversations, advance the step."""
        config, start = sft_config(**options), time.monotonic()
        found, metrics = sft_batches(batches, _turns)
        seen = [(s.token_ids, s.trainable) for batch in found for s in batch]
        metrics |= {"loss/train": -self.logprob_of(model.name)} if seen else {}
        metrics["data/step_num_gradient_steps"] = float(len(found))
        return self._moved(model, seen, metrics, start, config)

    async def check_sft(
        self, model: TrainableModel, examples: Sequence[Trajectory]
    ) -> Sequence[ExampleSize]:
        """Return the size of each example, in bytes."""
        self._weights(model)
        return [example_size(example, _turns) for example in examples]

    def _moved(
        self, model: TrainableModel, seen: Sequence[Any], metrics: dict[str, float], start: float,
        config: TrainConfig,
    ) -> TrainResult:  # fmt: skip
        """Advance the step; the weights depend on what was seen."""
        weights = self._weights(model)
        weights.update(seen)
        checkpoint = weights.save() if config.save_checkpoint else None
        seconds = time.monotonic() - start
        model.charge(
            GpuTime(device="echo", seconds=seconds, usd_per_hour=self.gpu_cost_per_hour_usd)
        )
        metrics = metrics | {
            "loss/learning_rate": config.learning_rate,
            "time/step_trainer_s": seconds,
        }
        return TrainResult(step=weights.step, metrics=metrics, checkpoint=checkpoint)

    async def step(self, model: TrainableModel) -> int:
        """Return how often the model was trained."""
        return self._weights(model).step

    async def checkpoints(self, model: TrainableModel) -> Sequence[Checkpoint]:
        """Return the checkpoints, oldest first."""
        weights = self._weights(model)
        return [Checkpoint(step=step, path=weights.path(step)) for step in weights.saved]

    async def delete_checkpoints(self, model: TrainableModel, keep: Collection[int]) -> list[int]:
        """Delete all checkpoints but those steps and the newest; return the deleted steps."""
        weights = self._weights(model)
        deleted = [step for step in weights.saved[:-1] if step not in keep]
        for step in deleted:
            shutil.rmtree(weights.path(step))
            weights.saved.remove(step)
        return deleted

    async def close(self) -> None:
        """Stop serving; a second call does nothing."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def names(self) -> Sequence[str]:
        """Return the model names that the endpoint answers to."""
        return list(
            {name: None for model_name, w in self._models.items() for name in w.names(model_name)}
        )

    def step_of(self, name: str) -> int | None:
        """Return the step of a model name's weights; None for an unknown name."""
        for model_name, weights in self._models.items():
            steps = weights.names(model_name)
            if name in steps:
                return steps[name]
        return None

    def logprob_of(self, name: str) -> float:
        """Return the log-prob of each token of a model name's answers; it shows the weights."""
        for model_name, weights in self._models.items():
            if name in weights.names(model_name):
                return LOGPROB - weights.values.get(self.step_of(name) or 0, 0.0)
        return LOGPROB

    def _weights(self, model: TrainableModel) -> EchoWeights:
        if model.name not in self._models:
            raise BackendError(
                f"model {model.name!r} is not registered here",
                "Call await model.register(backend) first.",
            )
        return self._models[model.name]


def echo_spec() -> BackendSpec:
    """Return the spec that a plugin would offer: `Plugins.register` it with an `art_backends`
    hook.
    """
    return BackendSpec(
        name="echo", create=EchoBackend, summary="trains nothing and repeats the last message"
    )
