"""Second stop of the endpoint: a checked request meets a model and becomes prompt ids and the way
to sample them.
"""

from __future__ import annotations

import hashlib
from typing import Any

import attrs

from art_core.base.errors import unknown
from art_core.endpoint.engine import ModelNames, Sampling, ServedModel
from art_core.endpoint.errors import RequestError
from art_core.endpoint.prompt_limit import PromptLimit, too_long
from art_core.endpoint.request import ChatRequest
from art_core.endpoint.template_check import TemplateCheck
from art_core.endpoint.thoughts import in_content, opened_by
from art_core.endpoint.transcripts import Transcripts

MAX_MODEL_NAME = 200
"""Characters of a name that engines are asked for; a longer one must be listed."""


@attrs.frozen(kw_only=True)
class Prepared:
    """A request with the model that answers it, its prompt [P] (and its text, if ids are the
    encoding of one), and one `Sampling` for each choice. `closing` closes thoughts that the prompt
    has opened.
    """

    request: ChatRequest
    served: ServedModel
    prompt_text: str | None
    prompt_ids: tuple[int, ...]
    samplings: tuple[Sampling, ...]
    closing: str | None = None


async def served_model(models: ModelNames, name: str) -> ServedModel:
    """Find the weights behind a name; raises RequestError (404) that names the known ones."""
    if len(name) > MAX_MODEL_NAME and name not in models.names():
        raise unknown_model(name, models)
    try:
        return await models.resolve(name)
    except KeyError:
        raise unknown_model(name, models) from None


def unknown_model(name: str, models: ModelNames) -> RequestError:
    """Return the error that no model has a name; it tells which there are."""
    told = unknown("model", name, list(models.names()), known_as="served")
    return RequestError(404, told, "model", "model_not_found")


def prepare(
    request: ChatRequest,
    served: ServedModel,
    transcripts: Transcripts,
    check: TemplateCheck,
    limit: PromptLimit,
) -> Prepared:
    """Render the prompt and see that it fits. `max_tokens` is cut to what is left of the context.

    `check` warns about parts of the request that are not in the prompt. Called in threads: this
    takes time in proportion to the request.
    """
    prompt_text, prompt_ids = prompt_tokens(request, served, transcripts, limit)
    context = served.engine.context_length
    if len(prompt_ids) >= context:
        raise too_long(f"{len(prompt_ids)} tokens", served)
    check.look(request, served.tokenizer, served.name)
    left = context - len(prompt_ids)
    end = served.tokenizer.eos_token_id
    sampling = Sampling(
        max_tokens=min(request.max_tokens or left, left),
        temperature=request.temperature,
        top_p=request.top_p,
        top_logprobs=request.top_logprobs,
        stop_token_ids=() if end is None else (end,),
        # a stop string ends the sequence here, so its tokens are needed as they come
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
        closing=opened_by(served.tokenizer, prompt_ids),
    )


def choice_seed(seed: int | None, index: int) -> int | None:
    """Return the seed of a choice: the first has the request's own, the others one derived from
    it.
    """
    if seed is None or index == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:7])


def prompt_tokens(
    request: ChatRequest, served: ServedModel, transcripts: Transcripts, limit: PromptLimit
) -> tuple[str | None, tuple[int, ...]]:
    """Render messages and tools with the tokenizer's chat template: the prompt's text and its
    ids. What was served before keeps the ids that it had.
    """
    options: dict[str, Any] = {
        **request.template_options,
        "add_generation_prompt": True,
        "return_dict": False,
    }
    if request.tools:
        options["tools"] = list(request.tools)
    tokenizer, count = served.tokenizer, len(request.messages)
    limit.check(None, count, served)
    messages = in_content(request.messages, tokenizer, transcripts.spellings)

    def render(*, tokenize: bool) -> Any:
        try:
            rendered = tokenizer.apply_chat_template(messages, tokenize=tokenize, **options)
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
