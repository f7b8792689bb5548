"""A Tinker service in this process: the SDK's clients over a small causal language model.

It samples and it steps: losses, gradients, Adam and states are real, by formulas of its own. Each
call is held against the signature that the installed SDK has.
"""

from __future__ import annotations

import inspect
import queue
import threading
import time
import types as builtin_types
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import attrs
import tinker
import torch
import transformers
from tinker import SamplingClient, ServiceClient, TrainingClient, types

States = dict[str, torch.Tensor]
REST_CLIENT: Any = getattr(tinker, "RestClient", None)
"""None in an older SDK, where a session's client does the same."""
BASE = "tiny/base"


def _like(theirs: type, name: str, *arguments: Any, **options: Any) -> None:
    """Raise TypeError for a call that the SDK's own method does not take."""
    inspect.signature(getattr(theirs, name)).bind(None, *arguments, **options)


@attrs.define
class _State:
    weights: States
    optimizer: dict[str, Any]


@attrs.define(eq=False)
class FakeTinker:
    """One account at the service. Replace `tinker.ServiceClient` with `service`, and
    `tinker.RestClient` with `rest` where the SDK has it.

    `sessions` are the tags of the sessions begun, `calls` the names of what was asked. `fail` maps
    a call's name to the exception that its future gets; `delay_s` to how long it takes. A prompt
    has `cached` tokens in the service's cache.
    """

    directory: Path
    models: dict[str, int | None] = attrs.field(factory=lambda: {BASE: 512})
    sessions: list[dict[str, str]] = attrs.field(factory=list)
    calls: list[str] = attrs.field(factory=list)
    requests: list[Any] = attrs.field(factory=list)
    fail: dict[str, Exception] = attrs.field(factory=dict)
    delay_s: dict[str, float] = attrs.field(factory=dict)
    cached: int = 0
    states: dict[str, _State] = attrs.field(factory=dict)
    _model: Any = None
    _jobs: queue.Queue[Any] = attrs.field(factory=queue.Queue, init=False)
    _runs: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._model = transformers.AutoModelForCausalLM.from_pretrained(self.directory)
        self.states["base"] = _State(self._weights(), {})
        # One thread, as the service does the requests of a training run in the order they came.
        threading.Thread(target=self._work, name="fake-tinker", daemon=True).start()

    def service(self, user_metadata: dict[str, str] | None = None, **options: Any) -> _Service:
        """Begin a session."""
        inspect.signature(ServiceClient).bind(user_metadata, **options)
        self.sessions.append(dict(user_metadata or {}))
        return _Service(self)

    def rest(self, **options: Any) -> _Rest:
        """Ask without a session: replaces `tinker.RestClient`."""
        inspect.signature(REST_CLIENT).bind(**options)
        return _Rest(self)

    def submit(self, name: str, work: Callable[[], Any]) -> Future[Any]:
        """Do something after what was asked before."""
        self.calls.append(name)
        outcome: Future[Any] = Future()
        self._jobs.put((name, work, outcome))
        return outcome

    def new_run(self) -> str:
        """Return the id of a new training run."""
        self._runs += 1
        return f"run-{self._runs}"

    def load(self, weights: States) -> Any:
        """Return the model with these weights."""
        self._model.load_state_dict(weights)
        return self._model

    def _weights(self) -> States:
        return {name: value.clone() for name, value in self._model.state_dict().items()}

    def _work(self) -> None:
        while True:
            name, work, outcome = self._jobs.get()
            time.sleep(self.delay_s.get(name, 0.0))
            try:
                if name in self.fail:
                    raise self.fail[name]
                outcome.set_result(work())
            except BaseException as error:
                outcome.set_exception(error)


@attrs.frozen
class _Service:
    account: FakeTinker

    def create_lora_training_client(self, **options: Any) -> Future[_Training]:
        _like(ServiceClient, "create_lora_training_client", **options)
        if options["base_model"] not in self.account.models:
            raise ValueError("no such model")
        return self._training("create_lora_training_client", "base")

    def create_training_client_from_state_with_optimizer(self, path: str) -> Future[_Training]:
        return self._training("create_training_client_from_state_with_optimizer", path)

    def create_training_client_from_state(self, path: str) -> Future[_Training]:
        return self._training("create_training_client_from_state", path, moments=False)

    def create_sampling_client(self, **options: Any) -> Future[_Sampling]:
        _like(ServiceClient, "create_sampling_client", **options)
        path = options.get("model_path", "base")

        def made() -> _Sampling:
            return _Sampling(self.account, self.account.states[path].weights)

        return self.account.submit("create_sampling_client", made)

    def create_rest_client(self) -> _Rest:
        return _Rest(self.account)

    def get_server_capabilities(self) -> Future[Any]:
        return self.create_rest_client().get_server_capabilities()

    def close(self, status: str) -> Future[None]:
        _like(ServiceClient, "close", status)
        return self.account.submit("close", lambda: None)

    def _training(self, name: str, path: str, *, moments: bool = True) -> Future[_Training]:
        def made() -> _Training:
            state = self.account.states[path]
            weights = {key: value.clone() for key, value in state.weights.items()}
            optimizer = dict(state.optimizer) if moments else {}
            return _Training(self.account, self.account.new_run(), weights, optimizer)

        return self.account.submit(name, made)


@attrs.frozen
class _Rest:
    account: FakeTinker

    def get_server_capabilities(self) -> Future[Any]:
        found = [
            types.SupportedModel(model_name=name, max_context_length=length)
            for name, length in self.account.models.items()
        ]
        answer = types.GetServerCapabilitiesResponse(supported_models=found)
        return self.account.submit("get_server_capabilities", lambda: answer)

    def delete_checkpoint_from_tinker_path(self, path: str) -> Future[Any]:
        if REST_CLIENT is not None:
            _like(REST_CLIENT, "delete_checkpoint_from_tinker_path", path)
        return self.account.submit("delete_checkpoint", lambda: self.account.states.pop(path))


@attrs.frozen
class _Sampling:
    account: FakeTinker
    weights: States

    def sample(self, **options: Any) -> Future[Any]:
        _like(SamplingClient, "sample", **options)
        self.account.requests.append(options)
        return self.account.submit("sample", lambda: self._sample(**options))

    def compute_logprobs(self, prompt: Any) -> Future[Any]:
        _like(SamplingClient, "compute_logprobs", prompt)
        return self.account.submit("compute_logprobs", lambda: self._logprobs(prompt.to_ints()))

    @torch.no_grad()
    def _logprobs(self, ids: list[int]) -> list[float | None]:
        model = self.account.load(self.weights).eval()
        logits_TV = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].float()
        found_T = logits_TV.log_softmax(1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        return [None, *found_T.tolist()]

    @torch.no_grad()
    def _sample(
        self, prompt: Any, num_samples: int, sampling_params: Any, topk_sample_logprobs: int = 0
    ) -> Any:
        assert num_samples == 1
        model = self.account.load(self.weights).eval()
        generator = torch.Generator().manual_seed(
            torch.seed() if sampling_params.seed is None else sampling_params.seed
        )
        sampled: list[int] = []
        logprobs: list[float] = []
        tops: list[list[tuple[int, float]]] = []
        ids, stop = prompt.to_ints(), set(sampling_params.stop or ())
        while len(sampled) < sampling_params.max_tokens:
            out = model(input_ids=torch.tensor([[*ids, *sampled]]), use_cache=False)
            logits = out.logits[0, -1].float()
            if sampling_params.temperature:
                drawn = (logits / sampling_params.temperature).softmax(-1)
                token = int(torch.multinomial(drawn, 1, generator=generator))
            else:
                token = int(logits.argmax())
            sampled.append(token)
            all_V = logits.log_softmax(-1)
            logprobs.append(float(all_V[token]))
            best = all_V.topk(topk_sample_logprobs)
            tops.append(list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
            if token in stop:
                break
        return builtin_types.SimpleNamespace(
            sequences=[
                builtin_types.SimpleNamespace(
                    tokens=sampled,
                    logprobs=logprobs,
                    topk_logprobs=tops if topk_sample_logprobs else None,
                    stop_reason="stop" if sampled[-1] in stop else "length",
                )
            ],
            prompt_cache_hit_tokens=min(self.account.cached, len(ids)),
        )


@attrs.define
class _Training:
    account: FakeTinker
    run: str
    weights: States
    moments: dict[str, Any]
    gradients: States = attrs.field(factory=dict)

    def get_tokenizer(self) -> Any:
        return transformers.AutoTokenizer.from_pretrained(self.account.directory)

    def forward_backward(self, data: Any, **options: Any) -> Future[Any]:
        _like(TrainingClient, "forward_backward", data, **options)
        self.account.requests.append({"data": data, **options})
        return self.account.submit("forward_backward", lambda: self._backward(data, **options))

    def optim_step(self, parameters: Any) -> Future[Any]:
        _like(TrainingClient, "optim_step", parameters)
        self.account.requests.append({"parameters": parameters})
        return self.account.submit("optim_step", lambda: self._step(parameters))

    def save_state(self, name: str) -> Future[Any]:
        _like(TrainingClient, "save_state", name)
        return self.account.submit("save_state", lambda: self._save("weights", name))

    def save_weights_for_sampler(self, name: str) -> Future[Any]:
        _like(TrainingClient, "save_weights_for_sampler", name)
        return self.account.submit(
            "save_weights_for_sampler", lambda: self._save("sampler_weights", name)
        )

    def _save(self, kind: str, name: str) -> Any:
        path = f"tinker://{self.run}/{kind}/{name}"
        weights = {key: value.clone() for key, value in self.weights.items()}
        self.account.states[path] = _State(weights, dict(self.moments))
        return builtin_types.SimpleNamespace(path=path)

    def _backward(self, data: Any, loss_fn: str, loss_fn_config: dict[str, float] | None) -> Any:
        model = self.account.load(self.weights).train()
        model.zero_grad()
        outputs = []
        for datum in data:
            given = {name: tensor.to_torch() for name, tensor in datum.loss_fn_inputs.items()}
            inputs = torch.tensor([datum.model_input.to_ints()])
            all_TV = model(input_ids=inputs, use_cache=False).logits[0].log_softmax(-1)
            new_T = all_TV.gather(-1, given["target_tokens"][:, None])[:, 0]
            torch.autograd.backward(_loss(loss_fn, loss_fn_config or {}, new_T, given))
            outputs.append({"logprobs": types.TensorData.from_torch(new_T.detach())})
        for name, parameter in model.named_parameters():
            before = self.gradients.get(name, 0.0)
            self.gradients[name] = before + parameter.grad.clone()
        return types.ForwardBackwardOutput(loss_fn_output_type="fake", loss_fn_outputs=outputs)

    def _step(self, parameters: Any) -> Any:
        """Adam, Kingma and Ba 2015, algorithm 1, after clipping the gradient's global norm."""
        norm = torch.stack([g.square().sum() for g in self.gradients.values()]).sum().sqrt()
        scale = min(1.0, parameters.grad_clip_norm / (float(norm) + 1e-6))
        beta1, beta2 = parameters.beta1, parameters.beta2
        steps = self.moments.get("steps", 0) + 1
        moments: dict[str, Any] = {"steps": steps}
        for name, gradient in self.gradients.items():
            first, second = self.moments.get(name, (0.0, 0.0))
            first = beta1 * first + (1 - beta1) * gradient * scale
            second = beta2 * second + (1 - beta2) * (gradient * scale) ** 2
            moments[name] = (first, second)
            spread = (second / (1 - beta2**steps)).sqrt() + parameters.eps
            change = parameters.learning_rate * first / (1 - beta1**steps) / spread
            kept = 1 - parameters.learning_rate * parameters.weight_decay
            self.weights[name] = self.weights[name] * kept - change
        self.moments, self.gradients = moments, {}
        if "lm_head.weight" in self.weights:  # tied
            self.weights["lm_head.weight"] = self.weights["model.embed_tokens.weight"]
        return builtin_types.SimpleNamespace(metrics={})


def _loss(
    name: str, config: dict[str, float], new_T: torch.Tensor, given: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The service's documented losses: sums over all positions."""
    if name == "cross_entropy":
        return -(new_T * given["weights"]).sum()
    ratio_T = (new_T - given["logprobs"]).exp()
    advantages_T = given["advantages"]
    if name == "importance_sampling":
        return -(ratio_T * advantages_T).sum()
    inside_T = ratio_T.clamp(config["clip_low_threshold"], config["clip_high_threshold"])
    if name == "cispo":
        return -(inside_T.detach() * new_T * advantages_T).sum()
    assert name == "ppo"
    return -torch.minimum(ratio_T * advantages_T, inside_T * advantages_T).sum()
