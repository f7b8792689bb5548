"""First stop of the endpoint: a JSON body becomes a valid `ChatRequest`, or an error."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import attrs

from art_core.base.errors import did_you_mean
from art_core.endpoint.constraint import Constraint, constraint_of
from art_core.endpoint.errors import RequestError, bad_parameter, shown, unsupported
from art_core.endpoint.messages import checked_messages, checked_tools

MAX_CHOICES = 128
MAX_STOPS, MAX_STOP = 4, 256
MAX_OPTIONS, MAX_OPTION_NAME = 32, 64
MAX_TOP_LOGPROBS = 20
MAX_BIASES, MAX_BIAS = 1024, 100.0

WITHOUT_EFFECT = frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
"""OpenAI's parameters that do not change the answers of this endpoint."""

NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "audio": ((), "answers are text"),
    "frequency_penalty": ((0,), "penalties change the policy that is trained"),
    "presence_penalty": ((0,), "penalties change the policy that is trained"),
    "modalities": ((["text"],), "answers are text"),
    "moderation": ((), "moderation is not available here"),
    "best_of": ((1,), "ask for n choices"),
    "reasoning_effort": ((), "thinking is set in the chat template: use chat_template_kwargs"),
    "verbosity": (("medium",), "ask for the length in the messages"),
    "web_search_options": ((), "there is no web search here; offer a tool of your own"),
    "functions": (([],), "use tools"),
    "function_call": (("none", "auto"), "use tools and tool_choice"),
    "top_k": ((-1, 0), "use top_p"),
    "repetition_penalty": ((1,), "penalties change the policy that is trained"),
}
"""Parameters that are accepted only with their neutral values, if any, and the reason."""

PARAMETERS = frozenset(
    {
        "chat_template_kwargs",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "min_p",
        "model",
        "n",
        "parallel_tool_calls",
        "raw_prompt",
        "response_format",
        "return_token_ids",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "structured_outputs",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
    }
)


TOKENIZER_OPTIONS = frozenset(
    {
        "chat_template",
        "conversation",
        "max_length",
        "messages",
        "padding",
        "processor_kwargs",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
"""Names that are rejected in `chat_template_kwargs`: they are arguments of the tokenizer. A chat
template in a request could run for ever."""


@attrs.frozen(kw_only=True)
class Known:
    """The parameters of a kind of request: those that are read, those that do not change the
    answer, and those with only neutral values, each with the reason.
    """

    parameters: frozenset[str]
    without_effect: frozenset[str] = frozenset()
    neutral: Mapping[str, tuple[tuple[Any, ...], str]] = attrs.field(factory=dict)


CHAT = Known(parameters=PARAMETERS, without_effect=WITHOUT_EFFECT, neutral=NEUTRAL)


@attrs.frozen(kw_only=True)
class ChatRequest:
    """A valid request for a chat completion. `max_tokens` None means the rest of the context.

    `raw_prompt`, a text or token ids, is continued as it is, without messages and chat template.
    `logit_bias` are pairs of a token id and what is added to its logit.
    """

    model: str
    messages: tuple[dict[str, Any], ...]
    raw_prompt: str | tuple[int, ...] | None = None
    stream: bool = False
    include_usage: bool = False
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    tools: tuple[dict[str, Any], ...] = ()
    constraint: Constraint | None = None
    return_token_ids: bool = False
    template_options: dict[str, Any] = attrs.field(factory=dict)


def chat_request(body: Mapping[str, Any]) -> ChatRequest:
    """Return the request in a JSON object; `null` means the default. RequestError if invalid."""
    given = {name: value for name, value in body.items() if value is not None}
    check_names(given, CHAT)
    model = given.get("model")
    if not isinstance(model, str) or not model:
        raise bad_parameter("model", "a model's name", model)
    stream = _flag(given, "stream")
    logprobs = _flag(given, "logprobs")
    top_logprobs = _whole(given, "top_logprobs", 0, MAX_TOP_LOGPROBS) or 0
    if top_logprobs and not logprobs:
        raise bad_parameter("top_logprobs", "used together with logprobs=true", top_logprobs)
    raw = _raw_prompt(given)
    tools = checked_tools(given.get("tools"), given.get("tool_choice"))
    return ChatRequest(
        model=model,
        messages=checked_messages(given.get("messages")) if raw is None else (),
        raw_prompt=raw,
        stream=stream,
        include_usage=_include_usage(given, stream=stream),
        n=_whole(given, "n", 1, MAX_CHOICES) or 1,
        temperature=_number(given, "temperature", 0.0, 2.0),
        top_p=_top_p(given),
        min_p=_number(given, "min_p", 0.0, 1.0, default=0.0),
        logit_bias=_logit_bias(given),
        max_tokens=_max_tokens(given),
        stop=_stops(given),
        seed=_whole(given, "seed", -(2**63), 2**63 - 1),
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        tools=tools,
        constraint=constraint_of(given, tools),
        return_token_ids=_flag(given, "return_token_ids"),
        template_options=_template_options(given),
    )


def check_names(given: Mapping[str, Any], known: Known) -> None:
    """Raise RequestError for a parameter that is unknown, or that would change the answer in a way
    that is not supported.
    """
    for name, value in given.items():
        if name in known.parameters or name in known.without_effect:
            continue
        if name not in known.neutral:
            hint = did_you_mean(name, known.parameters)
            message = f"unknown parameter {shown(name)}.{hint}"
            raise RequestError(400, message, name, "unknown_parameter")
        values, reason = known.neutral[name]
        if value not in values:
            raise unsupported(name, f"{reason} (got {shown(value)})"[:500])


def _raw_prompt(given: Mapping[str, Any]) -> str | tuple[int, ...] | None:
    value = given.get("raw_prompt")
    if value is None:
        return None
    for name in ("tools", "chat_template_kwargs"):
        if given.get(name):
            raise unsupported(name, "a raw prompt has no chat template")
    if isinstance(value, str) and value:
        return value
    if not isinstance(value, list) or not all(type(token) is int for token in value) or not value:
        raise bad_parameter("raw_prompt", "a text, or a list of token ids", value)
    return tuple(value)


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise bad_parameter(name, "true or false", value)
    return value


def _whole(given: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise bad_parameter(name, f"a whole number from {low} to {high}", value)
    return value


def _number(
    given: Mapping[str, Any], name: str, low: float, high: float, default: float = 1.0
) -> float:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise bad_parameter(name, f"a number from {low:g} to {high:g}", value)
    return float(value)


def _top_p(given: Mapping[str, Any]) -> float:
    top_p = _number(given, "top_p", 0.0, 1.0)
    if top_p == 0.0:
        raise bad_parameter("top_p", "above 0", top_p)
    return top_p


def _logit_bias(given: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    biases = _mapping(given, "logit_bias")
    if len(biases) > MAX_BIASES:
        raise bad_parameter("logit_bias", f"at most {MAX_BIASES} tokens", biases)
    for token, bias in biases.items():
        number = not isinstance(bias, bool) and isinstance(bias, int | float)
        if not _TOKEN_ID.fullmatch(token) or not number or not abs(bias) <= MAX_BIAS:
            expected = f"token ids with numbers from -{MAX_BIAS:g} to {MAX_BIAS:g}"
            raise bad_parameter("logit_bias", expected, {token: bias})
    return tuple(sorted((int(token), float(bias)) for token, bias in biases.items() if bias))


_TOKEN_ID = re.compile("[0-9]{1,9}")


def _max_tokens(given: Mapping[str, Any]) -> int | None:
    names = ("max_completion_tokens", "max_tokens")
    values = [_whole(given, name, 1, 2**31) for name in names]
    if None not in values and values[0] != values[1]:
        raise bad_parameter(
            "max_tokens", f"equal to max_completion_tokens ({values[0]})", values[1]
        )
    return next((value for value in values if value is not None), None)


def _stops(given: Mapping[str, Any]) -> tuple[str, ...]:
    value = given.get("stop", [])
    stops = [value] if isinstance(value, str) else value
    if (
        not isinstance(stops, list)
        or len(stops) > MAX_STOPS
        or not all(isinstance(s, str) and 0 < len(s) <= MAX_STOP for s in stops)
    ):
        raise bad_parameter(
            "stop",
            f"a string of 1 to {MAX_STOP} characters or a list of up to {MAX_STOPS} of them",
            value,
        )
    return tuple(stops)


def _mapping(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = given.get(name, {})
    if not isinstance(value, dict):
        raise bad_parameter(name, "an object", value)
    return value


def _template_options(given: Mapping[str, Any]) -> dict[str, Any]:
    options = _mapping(given, "chat_template_kwargs")
    if len(options) > MAX_OPTIONS or max(map(len, options), default=0) > MAX_OPTION_NAME:
        expected = f"at most {MAX_OPTIONS} names of at most {MAX_OPTION_NAME} characters"
        raise bad_parameter("chat_template_kwargs", expected, options)
    for name in sorted(TOKENIZER_OPTIONS & options.keys()):
        raise unsupported(
            f"chat_template_kwargs.{name}",
            "only variables of the model's own chat template can be given",
        )
    return options


def _include_usage(given: Mapping[str, Any], *, stream: bool) -> bool:
    options = _mapping(given, "stream_options")
    if options and not stream:
        raise bad_parameter("stream_options", "used together with stream=true", options)
    for name in options:
        if name not in ("include_usage", "include_obfuscation"):
            raise RequestError(
                400,
                f"unknown parameter {shown(f'stream_options.{name}')}",
                "stream_options",
                "unknown_parameter",
            )
    return _flag(options, "include_usage")


def finite(value: float) -> float:
    """Return a log-prob that JSON can represent: OpenAI sends -9999 for a probability of 0."""
    return value if math.isfinite(value) else -9999.0
