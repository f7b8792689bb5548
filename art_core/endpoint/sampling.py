"""Third stop of the endpoint: the engine's tokens of all choices of a request, as deltas in the
order they come.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import attrs

from art_core.base.errors import EngineError
from art_core.endpoint.answer import Answer
from art_core.endpoint.chat import Prepared
from art_core.endpoint.choice import Delta, GrowingChoice
from art_core.endpoint.errors import RequestError, request_error
from art_core.endpoint.transcripts import Transcripts


@attrs.frozen
class Step:
    """A delta, and the choice that it belongs to."""

    index: int
    delta: Delta


async def sample(
    prepared: Prepared, timeout_s: float, transcripts: Transcripts
) -> AsyncGenerator[Step, None]:
    """Sample all choices at once; answers are kept for the turns that continue them. Closing the
    generator cancels them in the engine.

    Raises RequestError: 503 when the engine fails or does not finish within `timeout_s`, 500 for
    anything unforeseen.
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
    answer_ids: list[int] = []
    try:
        choice = GrowingChoice(prepared)
        async with (
            asyncio.timeout_at(deadline),
            aclosing(
                engine.generate(prepared.prompt_ids, prepared.samplings[index], adapter)
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
        # Not read if the request itself was cancelled; an engine may cancel one, too.
        steps.put_nowait(EngineError("the engine cancelled the request"))
        raise
    except BaseException as error:
        # A panic of a tokenizer in Rust is no Exception; without it the request would not end.
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
