"""Log-probs of a given text, in the form of OpenAI's completions with `echo`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from art_core.base.errors import did_you_mean
from art_core.endpoint.engine import ServedModel
from art_core.endpoint.errors import RequestError, bad_parameter, shown, unsupported
from art_core.endpoint.request import finite
from art_core.endpoint.text import token_text

_FIELDS = {"echo": True, "max_tokens": 0, "logprobs": None, "model": None, "prompt": None}
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "stream": (False,), "temperature": (), "user": (),
}  # fmt: skip
_PURPOSE = "this route gives log-probs of a text; sample with /v1/chat/completions"


@attrs.frozen(kw_only=True)
class ScoreRequest:
    """A valid request: a model's name, and a text or the ids of its tokens."""

    model: str
    prompt: str | tuple[int, ...]


def is_score(body: Mapping[str, Any]) -> bool:
    """Return whether a request asks for the log-probs of a text, and for no sample."""
    return body.get("echo") is True or body.get("max_tokens") == 0


def score_request(body: Mapping[str, Any]) -> ScoreRequest:
    """Return the request in a JSON object; RequestError if it is invalid or asks for samples."""
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        if name in _NEUTRAL and (not _NEUTRAL[name] or value in _NEUTRAL[name]):
            continue
        if name not in _FIELDS:
            hint = did_you_mean(name, _FIELDS)
            message = f"unknown parameter {shown(name)}.{hint} {_PURPOSE}"
            raise RequestError(400, message, name, "unknown_parameter")
    if given.get("echo") is not True or given.get("max_tokens") != 0:
        raise unsupported("max_tokens", f"{_PURPOSE}: give echo=true, max_tokens=0 and logprobs=1")
    if isinstance(given.get("logprobs"), bool) or given.get("logprobs") not in (0, 1):
        raise bad_parameter("logprobs", "0 or 1", given.get("logprobs"))
    model, prompt = given.get("model"), given.get("prompt")
    if not isinstance(model, str) or not model:
        raise bad_parameter("model", "a model's name", model)
    ids = isinstance(prompt, list) and all(type(token) is int for token in prompt)
    if not prompt or not (ids or isinstance(prompt, str)):
        raise bad_parameter("prompt", "a text, or a list of token ids", prompt)
    return ScoreRequest(model=model, prompt=prompt if isinstance(prompt, str) else tuple(prompt))


def prompt_ids(request: ScoreRequest, served: ServedModel) -> tuple[int, ...]:
    """Return the token ids; RequestError for a text that is too long."""
    ids = request.prompt
    if isinstance(ids, str):
        ids = tuple(served.tokenizer.encode(ids, add_special_tokens=False))
    if len(ids) > served.engine.context_length:
        raise RequestError(
            400,
            f"the text has {len(ids)} tokens, the context of {served.name} "
            f"{served.engine.context_length}",
            "prompt",
            "context_length_exceeded",
        )
    return ids


async def scored(ids: Sequence[int], served: ServedModel) -> dict[str, Any]:
    """Return a text completion with the log-probs of its prompt; null for the first token.

    RequestError (501) if the engine gives no log-probs of prompts.
    """
    score = getattr(served.engine, "score", None)
    if score is None:
        raise RequestError(501, f"the engine of {served.name} gives no log-probs of prompts")
    logprobs: Sequence[float] = await score(ids, served.adapter)
    texts = [token_text(served.tokenizer, token)[0] for token in ids]
    head: dict[str, Any] = {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": served.name,
    }
    if served.policy_version is not None:
        head["policy_version"] = served.policy_version
    found = {
        "tokens": texts,
        "token_logprobs": [None, *map(finite, logprobs)],
        "top_logprobs": None,
        "text_offset": None,
    }
    choice = {"index": 0, "text": "".join(texts), "finish_reason": "length", "logprobs": found}
    usage = {"prompt_tokens": len(ids), "completion_tokens": 0, "total_tokens": len(ids)}
    return {**head, "choices": [choice], "usage": usage}
