"""Third stop of the endpoint: the engine's tokens become deltas of a request's choices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import attrs

from art_core.base.errors import EngineError
from art_core.endpoint.answer import NOTHING, Answer, GrowingAnswer, RawAnswer, Shown
from art_core.endpoint.engine import Token
from art_core.endpoint.errors import RequestError, request_error
from art_core.endpoint.prompt import Prepared
from art_core.endpoint.text import Detokenizer, StopStrings
from art_core.endpoint.transcripts import Transcripts


@attrs.frozen(kw_only=True)
class Delta:
    """The growth of a choice by one token: text to send, and, in the last delta, the whole answer
    and the reason why it ended: `stop_reason` is the stop string, if it was one.
    """

    shown: Shown = NOTHING
    tokens: tuple[Token, ...] = ()
    answer: Answer | None = None
    finish_reason: str | None = None
    stop_reason: str | None = None


class GrowingChoice:
    """Turns the engine's tokens into deltas of text. Text that may become a stop string, a tag or a
    tool call is held back.
    """

    def __init__(self, prepared: Prepared) -> None:
        request = prepared.request
        offered = [tool["function"] for tool in request.tools]
        functions = {each["name"]: each.get("parameters") for each in offered}
        self._answer: GrowingAnswer | RawAnswer = RawAnswer()
        if request.raw_prompt is None:
            self._answer = GrowingAnswer(functions, prepared.closing)
        self._detokenizer = Detokenizer(prepared.served.tokenizer, tools=bool(functions))
        self._stops = StopStrings(request.stop)

    def add(self, token: Token) -> Delta:
        """Add a token; no token may follow after the delta that has the answer."""
        shown = self._answer.add(self._stops.add(self._detokenizer.add(token.id)))
        if token.finish is None and not self._stops.stopped:
            return Delta(shown=shown, tokens=(token,))
        return self._end(token, shown)

    def _end(self, token: Token, shown: Shown) -> Delta:
        if not self._stops.stopped:
            left = self._stops.add(self._detokenizer.flush())
            shown = shown.then(self._answer.add(left + self._stops.flush()))
        rest, answer = self._answer.end()
        finish = "stop" if self._stops.stopped else str(token.finish)
        if answer.calls and finish == "stop":
            finish = "tool_calls"
        return Delta(
            shown=shown.then(rest),
            tokens=(token,),
            answer=answer,
            finish_reason=finish,
            stop_reason=self._stops.found,
        )


@attrs.frozen
class Step:
    """A delta and the index of its choice."""

    index: int
    delta: Delta


async def sample(
    prepared: Prepared, timeout_s: float, transcripts: Transcripts
) -> AsyncGenerator[Step, None]:
    """Sample all choices at once; remember the answers for the turns that continue them.

    Closing the generator cancels the choices in the engine. Raises RequestError: 503 if the engine
    fails or does not finish within `timeout_s`, 500 for unexpected errors.
    """
    steps: asyncio.Queue[Step | BaseException] = asyncio.Queue()
    deadline = asyncio.get_running_loop().time() + timeout_s
    tasks = [
        asyncio.create_task(_produce(prepared, index, steps, deadline, transcripts))
        for index in range(len(prepared.samplings))
    ]
    growing = len(tasks)
    try:
        while growing:
            step = await steps.get()
            if isinstance(step, BaseException):
                raise _late(timeout_s) if isinstance(step, TimeoutError) else request_error(step)
            yield step
            growing -= step.delta.finish_reason is not None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _produce(
    prepared: Prepared,
    index: int,
    steps: asyncio.Queue[Step | BaseException],
    deadline: float,
    transcripts: Transcripts,
) -> None:
    engine, adapter = prepared.served.engine, prepared.served.adapter
    options: dict[str, Any] = {"images": prepared.images} if prepared.images else {}
    answer_ids: list[int] = []
    try:
        choice = GrowingChoice(prepared)
        async with (
            asyncio.timeout_at(deadline),
            aclosing(
                engine.generate(prepared.prompt_ids, prepared.samplings[index], adapter, **options)
            ) as tokens,
        ):
            async for token in tokens:
                answer_ids.append(token.id)
                delta = choice.add(token)
                steps.put_nowait(Step(index, delta))
                if delta.answer is not None:
                    _keep(prepared, answer_ids, delta.answer, transcripts)
                    return
        raise EngineError("the engine ended a sequence without a finish reason")
    except asyncio.CancelledError:
        # This is for an engine that cancels; if the request is cancelled, it is not read.
        steps.put_nowait(EngineError("the engine cancelled the request"))
        raise
    except BaseException as error:
        # A panic of a tokenizer in Rust is not an Exception. The request must end then, too.
        steps.put_nowait(error)


def _keep(
    prepared: Prepared, answer_ids: list[int], answer: Answer, transcripts: Transcripts
) -> None:
    if answer.thoughts is not None:
        transcripts.spellings.keep(answer.thoughts, answer.content, calls=bool(answer.calls))
    if prepared.prompt_text is not None:
        tokenizer = prepared.served.tokenizer
        transcripts.keep(tokenizer, prepared.prompt_text, prepared.prompt_ids, answer_ids)


def _late(timeout_s: float) -> RequestError:
    message = f"the engine did not finish within {timeout_s:g} s"
    return RequestError(503, message, None, "engine_timeout")
