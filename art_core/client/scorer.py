"""Log-probs of given token ids, from any OpenAI-compatible endpoint that gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from art_core.base.errors import BackendError, ConfigError
from art_core.client.openai_client import openai_package

if TYPE_CHECKING:
    from openai import AsyncOpenAI

FORMS: Mapping[str, Mapping[str, Any]] = {
    "echo": {"echo": True, "max_tokens": 0, "logprobs": 1},
    "echo and one token": {"echo": True, "max_tokens": 1, "logprobs": 1},
    "prompt_logprobs": {"prompt_logprobs": 0, "max_tokens": 1},
}
"""How servers are asked for the log-probs of a prompt: art-core's and most others, those that
sample at least one token, and vLLM's own parameter."""
_OTHER_FORM = (400, 404, 405, 422, 500, 501)
_KEY, _UNKNOWN = (401, 403), 404


@attrs.frozen
class ScoredText:
    """The log-prob and the text of each token; the first token has log-prob 0."""

    logprobs: tuple[float, ...]
    texts: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Scorer:
    """Asks an endpoint for log-probs under a model's name. `seen` gets each answer for its cost."""

    client: AsyncOpenAI
    model: str
    form: str = "echo"
    seen: Callable[[Mapping[str, Any]], None] = lambda _: None

    async def score(self, ids: Sequence[int]) -> ScoredText:
        """Return the log-probs of token ids; BackendError if the endpoint fails."""
        try:
            found = await self._asked(self.client, FORMS[self.form], ids)
        except openai_package().APIError as error:
            raise BackendError(f"{self.model!r} did not score a text: {_reason(error)}") from error
        if found is None:
            raise BackendError(f"{self.model!r} scored a text of {len(ids)} tokens incompletely")
        return found

    async def tried(self, ids: Sequence[int]) -> tuple[Scorer, ScoredText]:
        """Return this scorer with the form that the endpoint knows, and the scored ids.

        Raises ConfigError with the endpoint's reasons if it gives no log-probs of prompts.
        """
        package, reasons = openai_package(), {}
        client = self.client.with_options(max_retries=0)
        for form, fields in FORMS.items():
            try:
                found = await self._asked(client, fields, ids)
            except package.APIStatusError as error:
                self._check_status(error)
                reasons[form] = _reason(error)
            except package.APIError as error:
                raise BackendError(f"{self.model!r} can't be reached: {_reason(error)}") from error
            else:
                if found is not None:
                    return attrs.evolve(self, form=form), found
                reasons[form] = "an answer without them"
        told = "; ".join(f"{form}: {reason}" for form, reason in reasons.items())
        raise ConfigError(
            f"{self.model!r} gives no log-probs of the tokens of a prompt, which a teacher must "
            f"give ({told})",
            "Serve it with vLLM, SGLang or a backend of art-core.",
        )

    def _check_status(self, error: Any) -> None:
        """Raise the error of a status that another form of the request would not change."""
        reason = _reason(error)
        if error.status_code in _KEY:
            raise ConfigError(
                f"{self.model!r} does not accept the API key: {reason}", "Give api_key=..."
            ) from error
        if error.status_code == _UNKNOWN and self.model in reason:
            raise ConfigError(f"no model {self.model!r} is served there: {reason}") from error
        if error.status_code not in _OTHER_FORM:
            raise BackendError(f"{self.model!r} is not ready: {reason}") from error

    async def _asked(
        self, client: AsyncOpenAI, fields: Mapping[str, Any], ids: Sequence[int]
    ) -> ScoredText | None:
        body = {"model": self.model, "prompt": list(ids), **fields}
        answer = await client.post("/completions", cast_to=object, body=body)
        if isinstance(answer, Mapping):
            self.seen(answer)
        return _read(answer, ids)


def _read(answer: Any, ids: Sequence[int]) -> ScoredText | None:
    """Return what an answer has for these ids; None if it lacks log-probs or texts."""
    try:
        choice = answer["choices"][0]
        if choice.get("prompt_logprobs"):
            return _of_prompt_logprobs(choice["prompt_logprobs"], ids)
        found = choice["logprobs"]
        logprobs, texts = found["token_logprobs"][: len(ids)], found["tokens"][: len(ids)]
        if len(logprobs) != len(ids) or len(texts) != len(ids):
            return None
        return ScoredText((0.0, *map(float, logprobs[1:])), tuple(map(str, texts)))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return None


def _of_prompt_logprobs(entries: Sequence[Any], ids: Sequence[int]) -> ScoredText | None:
    """Return what vLLM's `prompt_logprobs` has: for each token a dict from ids to entries."""
    if len(entries) != len(ids):
        return None
    found = [entry[str(token)] for entry, token in zip(entries[1:], ids[1:], strict=True)]
    return ScoredText(
        (0.0, *(float(each["logprob"]) for each in found)),
        ("", *(str(each.get("decoded_token") or "") for each in found)),
    )


def _reason(error: Any) -> str:
    status = getattr(error, "status_code", None)
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, Mapping) else None
    text = str(message or error)[:300]
    return text if status is None else f"{status}, {text}"
