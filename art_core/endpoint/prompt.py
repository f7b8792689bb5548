"""Second stop of the endpoint: a checked request and its model become prompt ids and samplings."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import attrs

from art_core.base.errors import ConfigError, unknown
from art_core.endpoint.engine import ChatTokenizer, ModelNames, Sampling, ServedModel
from art_core.endpoint.errors import UNCONSTRAINED, RequestError, bad_parameter, unsupported
from art_core.endpoint.messages import images_of
from art_core.endpoint.request import ChatRequest
from art_core.endpoint.thoughts import in_content, opened_by
from art_core.endpoint.transcripts import Transcripts

log = logging.getLogger("art_core")

MAX_MODEL_NAME = 200
"""Characters of a name that is passed to `ModelNames.resolve`; a longer one must be listed."""
MIN_LONGEST_TOKEN = 64
"""Lower bound of the characters of a tokenizer's longest token: normalization may shorten a text,
and some tokenizers have no `get_vocab`."""
MAX_FORMS = 256
_MARK = "#"
_REMEDIES = {
    "tools": "Describe the tools in a message, or use a model whose template has tools",
    "tool_calls": "Write the calls into the assistant's content",
    "system": "Put their text into the first user message",
    "name": "Write the name into the content",
    "tool": "Send the results of tools as user messages",
}
_WITH_IMAGES = (
    "Use a base model that reads images with backend 'local' and engine='transformers', or "
    "describe the image in text"
)
_ANY_REMEDY = "Use a model whose chat template renders them"
# Arguments of `apply_chat_template` itself, which a template need not mention.
_OF_THE_CALL = frozenset({"add_generation_prompt", "continue_final_message"})

Form = tuple[Any, ...]


@attrs.frozen(kw_only=True)
class Prepared:
    """A request with its model, its prompt [P], and one `Sampling` for each choice. `images` are
    the data URLs of the prompt's images.

    `prompt_text` is None if the ids are not the encoding of a text. `closing` is the tag that ends
    thoughts that the prompt has opened.
    """

    request: ChatRequest
    served: ServedModel
    prompt_text: str | None
    prompt_ids: tuple[int, ...]
    samplings: tuple[Sampling, ...]
    closing: str | None = None
    images: tuple[str, ...] = ()


async def served_model(models: ModelNames, name: str) -> ServedModel:
    """Return the model of a name; RequestError (404) with the known names if there is none."""
    if len(name) > MAX_MODEL_NAME and name not in models.names():
        raise unknown_model(name, models)
    try:
        return await models.resolve(name)
    except KeyError:
        raise unknown_model(name, models) from None


def unknown_model(name: str, models: ModelNames) -> RequestError:
    """Return the error for an unknown model name, with the known names."""
    message = unknown("model", name, list(models.names()), known_as="served")
    return RequestError(404, message, "model", "model_not_found")


def prepare(
    request: ChatRequest,
    served: ServedModel,
    transcripts: Transcripts,
    check: TemplateCheck,
    limit: PromptLimit,
) -> Prepared:
    """Render the prompt and check that it fits. `max_tokens` is cut to the rest of the context.

    `check` warns about parts of the request that are missing in the prompt. This is called in
    threads, because its time is proportional to the request.
    """
    _check_biases(request, served)
    prompt_text, prompt_ids = prompt_tokens(request, served, transcripts, limit)
    context = served.engine.context_length
    if len(prompt_ids) >= context:
        raise too_long(f"{len(prompt_ids)} tokens", served)
    if request.raw_prompt is None:
        check.check(request, served.tokenizer, served.name)
    left = context - len(prompt_ids)
    end = served.tokenizer.eos_token_id
    sampling = Sampling(
        max_tokens=min(request.max_tokens or left, left),
        temperature=request.temperature,
        top_p=request.top_p,
        min_p=request.min_p,
        logit_bias=request.logit_bias,
        grammar=_grammar(request, served, prompt_ids),
        top_logprobs=request.top_logprobs,
        stop_token_ids=() if end is None else (end,),
        # the endpoint looks for stop strings, so it needs the tokens as they come
        stream=request.stream or bool(request.stop),
    )
    seeds = [choice_seed(request.seed, index) for index in range(request.n)]
    samplings = tuple(attrs.evolve(sampling, seed=seed) for seed in seeds)
    return Prepared(
        request=request,
        served=served,
        prompt_text=prompt_text,
        prompt_ids=prompt_ids,
        samplings=samplings,
        closing=opened_by(served.tokenizer, prompt_ids) if request.raw_prompt is None else None,
        images=images_of(request.messages),
    )


def _check_biases(request: ChatRequest, served: ServedModel) -> None:
    for name in ("logit_bias", "min_p"):
        if getattr(request, name) and not served.biases:
            raise unsupported(name, f"the engine of {served.name!r} does not have it")
    wrong = _outside([token for token, _ in request.logit_bias], served)
    if wrong:
        raise bad_parameter("logit_bias", "given for token ids of the model", wrong[0])


def _grammar(request: ChatRequest, served: ServedModel, prompt_ids: tuple[int, ...]) -> str | None:
    """Return the grammar of the answer; None if it is free."""
    constraint = request.constraint
    if constraint is None:
        return None
    if served.grammars is None:
        reason = f"the engine of {served.name!r} does not constrain answers. {UNCONSTRAINED}"
        raise unsupported(constraint.param, reason)
    try:
        return served.grammars.grammar(constraint, prompt_ids if request.raw_prompt is None else ())
    except ConfigError as error:
        reason = f"{constraint.param}: {error}"
        raise RequestError(400, reason, constraint.param) from error


def choice_seed(seed: int | None, index: int) -> int | None:
    """Return the seed of a choice: the first has that of the request, the others derived ones."""
    if seed is None or index == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:7])


def prompt_tokens(
    request: ChatRequest, served: ServedModel, transcripts: Transcripts, limit: PromptLimit
) -> tuple[str | None, tuple[int, ...]]:
    """Return the prompt's text and ids, rendered from messages and tools by the chat template.

    Parts of the conversation that were served before keep their ids. A raw prompt is not rendered,
    and only tokenized if it is a text.
    """
    if request.raw_prompt is not None:
        return None, _raw_ids(request.raw_prompt, served, limit)
    options: dict[str, Any] = {
        **request.template_options,
        "add_generation_prompt": True,
        "return_dict": False,
    }
    if request.tools:
        options["tools"] = list(request.tools)
    tokenizer, count = served.tokenizer, len(request.messages)
    limit.check(None, count, served)
    if served.images_refused is not None and images_of(request.messages):
        reason = f"{served.name!r} takes no images: {served.images_refused}. {_WITH_IMAGES}"
        raise unsupported("messages", reason)
    messages = in_content(request.messages, tokenizer, transcripts.spellings)

    def render(*, tokenize: bool) -> Any:
        try:
            rendered = tokenizer.apply_chat_template(messages, tokenize=tokenize, **options)
        except ConfigError as error:  # an image that cannot be read
            raise RequestError(400, str(error), "messages") from error
        except Exception as error:
            if tokenize:
                raise  # the text was rendered before: the tokenizer failed, not the template
            raise RequestError(
                400,
                f"the chat template cannot render these messages ({type(error).__name__}: {error})",
                "messages",
            ) from error
        limit.check(rendered, count, served)
        return rendered

    text, ids = transcripts.prompt(render, tokenizer)
    return text, tuple(ids)


def _raw_ids(
    prompt: str | tuple[int, ...], served: ServedModel, limit: PromptLimit
) -> tuple[int, ...]:
    if isinstance(prompt, str):
        limit.check(prompt, 1, served)
        return tuple(served.tokenizer.encode(prompt))
    wrong = _outside(prompt, served)
    if wrong:
        raise bad_parameter("raw_prompt", "token ids of the model", wrong[0])
    return prompt


def _outside(ids: Iterable[int], served: ServedModel) -> list[int]:
    """Return the ids that are not in the vocabulary, where its size is known."""
    known = len(served.tokenizer) if isinstance(served.tokenizer, Sized) else None
    return [token for token in ids if token < 0 or (known is not None and token >= known)]


class PromptLimit:
    """Rejects prompts that cannot fit into a context by their length as text.

    Tokenizing some megabytes takes seconds. A token has at most as many characters as the longest
    one of the vocabulary, so a text longer than all tokens of the context cannot fit.
    """

    def __init__(self) -> None:
        self._longest: dict[int, int] = {}

    def check(self, text: object, messages: int, served: ServedModel) -> None:
        """Raise RequestError for a rendered prompt of `messages` messages that cannot fit."""
        context = served.engine.context_length
        length = len(text) if isinstance(text, str) else 0
        if messages <= context and length <= context * self._longest_token(served.tokenizer):
            return
        raise too_long(f"{messages} messages and {length} characters", served)

    def _longest_token(self, tokenizer: ChatTokenizer) -> int:
        if id(tokenizer) not in self._longest:
            vocabulary: dict[str, int] = getattr(tokenizer, "get_vocab", dict)()
            longest = max(map(len, vocabulary), default=0)
            self._longest[id(tokenizer)] = max(longest, MIN_LONGEST_TOKEN)
        return self._longest[id(tokenizer)]


def too_long(size: str, served: ServedModel) -> RequestError:
    """Return the error for a prompt of some size that leaves no room for an answer."""
    return RequestError(
        400,
        f"the prompt has {size}; the context of {served.name!r} holds "
        f"{served.engine.context_length} tokens, at least one of them for the answer. Shorten the "
        "messages",
        "messages",
        "context_length_exceeded",
    )


class TemplateCheck:
    """Warns about parts of a request that the model's chat template leaves out.

    A template without a place for tools renders the same prompt with and without them. So the first
    request of each form is rendered again with each part changed. If the prompt stays the same, the
    part is reported, once for each model. Safe under threads: at worst it warns twice.
    """

    def __init__(self) -> None:
        self._forms: set[Form] = set()
        self._warned: set[tuple[int, str]] = set()

    def check(self, request: ChatRequest, tokenizer: ChatTokenizer, model: str) -> None:
        """Warn if the prompt of a request lacks a part of it; check each form of request once."""
        form = (id(tokenizer), *_form(request))
        if form in self._forms:
            return
        if len(self._forms) >= MAX_FORMS:
            self._forms.clear()
        self._forms.add(form)
        for part, shown in _left_out(request, tokenizer):
            if (id(tokenizer), part) not in self._warned:
                self._warned.add((id(tokenizer), part))
                log.warning(
                    "the chat template of %r has no place for %s: the model does not see them. %s.",
                    model.partition("@")[0],
                    shown,
                    _REMEDIES.get(part, _ANY_REMEDY),
                )


def _form(request: ChatRequest) -> Form:
    roles = frozenset(message["role"] for message in request.messages)
    calls = any("tool_calls" in message for message in request.messages)
    named = any(map(_has_name, request.messages))
    return bool(request.tools), roles, calls, named, frozenset(request.template_options)


def _has_name(message: Mapping[str, Any]) -> bool:
    # The result of a tool belongs to its call by the id, so templates need no name there.
    return "name" in message and message["role"] != "tool"


def _left_out(request: ChatRequest, tokenizer: ChatTokenizer) -> Iterator[tuple[str, str]]:
    """Yield the parts of a request that are not in its prompt, each with a description."""
    messages = [dict(message) for message in request.messages]
    options = {**request.template_options, "add_generation_prompt": True, "tokenize": False}
    with_tools = {**options, "tools": list(request.tools)} if request.tools else options
    prompt = _rendered(tokenizer, messages, with_tools)
    if prompt is None:
        return
    if request.tools and _rendered(tokenizer, messages, options) == prompt:
        yield "tools", "`tools`"
    for part, (shown, changed) in _changed(messages).items():
        if _rendered(tokenizer, changed, with_tools) == prompt:
            yield part, shown
    source = getattr(tokenizer, "chat_template", None)
    for name in sorted(request.template_options.keys() - _OF_THE_CALL):
        if isinstance(source, str) and name not in source:
            yield f"chat_template_kwargs.{name}", f"`chat_template_kwargs.{name}`"


def _changed(messages: list[dict[str, Any]]) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """Return changed messages: without tool calls, without names, each role with other content."""
    changed = {
        role: (f"messages of the role {role!r}", _marked(messages, role))
        for role in sorted({message["role"] for message in messages})
    }
    if any("tool_calls" in message for message in messages):
        bare = [{k: v for k, v in m.items() if k != "tool_calls"} for m in messages]
        changed["tool_calls"] = "`tool_calls` of messages", bare
    if any(map(_has_name, messages)):
        bare = [
            {k: v for k, v in m.items() if k != "name" or m["role"] == "tool"} for m in messages
        ]
        changed["name"] = "`name` of messages", bare
    return changed


def _marked(messages: list[dict[str, Any]], role: str) -> list[dict[str, Any]]:
    return [
        {**m, "content": _with_mark(m["content"])} if m["role"] == role else m for m in messages
    ]


def _with_mark(content: Any) -> Any:
    return (
        [*content, {"type": "text", "text": _MARK}]
        if isinstance(content, list)
        else content + _MARK
    )


def _rendered(
    tokenizer: ChatTokenizer, messages: list[dict[str, Any]], options: dict[str, Any]
) -> Any:
    """Return a prompt's text; None if the template raises, which is not leaving out."""
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except Exception as error:
        log.debug("the chat template refuses a changed request: %s", error)
        return None
