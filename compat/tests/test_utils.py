"""The small helpers."""

from __future__ import annotations

import asyncio
import random

import pytest
from openai.types.chat.chat_completion import Choice

import art
from art.utils import (
    format_message,
    get_model_step,
    iterate_dataset,
    limit_concurrency,
    log_http_errors,
    retry,
)
from art.utils.litellm import convert_litellm_choice_to_openai
from art.utils.output_dirs import get_model_dir, get_step_checkpoint_dir
from art.utils.strip_logprobs import strip_logprobs


async def test_an_async_function_is_called_again_until_it_works():
    seen = []

    @retry(max_attempts=3, delay=0.001, on_retry=lambda error, attempt: seen.append(attempt))
    async def flaky() -> str:
        if len(seen) < 2:
            raise ValueError("again")
        return "done"

    assert await flaky() == "done"
    assert seen == [1, 2]


def test_the_last_exception_of_a_function_is_raised_and_others_at_once():
    calls = []

    @art.retry(max_attempts=2, delay=0.001, exceptions=(ValueError,))
    def broken(error: Exception) -> None:
        calls.append(error)
        raise error

    with pytest.raises(ValueError, match="no"):
        broken(ValueError("no"))
    with pytest.raises(KeyError):
        broken(KeyError("no"))
    assert len(calls) == 3


def test_a_dataset_has_the_order_of_its_epoch_also_after_a_resume():
    data = list("abcde")
    batches = list(iterate_dataset(data, groups_per_step=2, num_epochs=2, use_tqdm=False))
    assert [(b.step, b.epoch, b.epoch_step, len(b.items)) for b in batches] == [
        (0, 0, 0, 2), (1, 0, 1, 2), (2, 0, 2, 1), (3, 1, 0, 2), (4, 1, 1, 2), (5, 1, 2, 1),
    ]  # fmt: skip
    order = list(range(5))
    random.Random(0).shuffle(order)
    assert [item for b in batches[:3] for item in b.items] == [data[n] for n in order]
    resumed = list(iterate_dataset(data, 2, 2, initial_step=4, use_tqdm=False))
    assert resumed == batches[4:]
    assert list(iterate_dataset([], use_tqdm=False)) == []


async def test_at_most_so_many_calls_of_a_key_run_together():
    running: list[str] = []
    most: dict[str, int] = {}

    @limit_concurrency(2, derive_key=lambda key: key)
    async def work(key: str) -> None:
        running.append(key)
        most[key] = max(most.get(key, 0), running.count(key))
        await asyncio.sleep(0)
        running.remove(key)

    await asyncio.gather(*(work(key) for key in "aaaabbbb"))
    assert most == {"a": 2, "b": 2}


def test_log_probs_are_left_out_of_a_copy():
    choice = Choice.model_validate(
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "a"},
            "logprobs": {"content": []},
        }
    )
    trajectory = art.Trajectory(messages_and_choices=[choice, {"logprobs": 1, "role": "user"}])
    stripped = strip_logprobs(trajectory)
    assert stripped.messages_and_choices[0].logprobs is None
    assert stripped.messages_and_choices[1] == {"role": "user"}
    assert choice.logprobs is not None
    assert strip_logprobs(({"logprobs": 1, "a": 2},)) == ({"a": 2},)


def test_a_message_is_text():
    calls = [{"function": {"name": "find", "arguments": "{}"}}]
    assert format_message({"role": "user", "content": "hi"}) == "User:\nhi\n"
    assert format_message({"role": "assistant", "tool_calls": calls}) == "Assistant:\nfind({})"


def test_a_litellm_choice_becomes_one_of_openai():
    class Dumped:
        def model_dump(self, **_: object) -> dict:
            return {
                "index": 0,
                "finish_reason": "stop",
                "provider_specific_fields": {"token_ids": [1, 2]},
                "message": {"role": "assistant", "content": "yes"},
            }

    choice = convert_litellm_choice_to_openai(Dumped())
    assert isinstance(choice, Choice)
    assert choice.message.content == "yes"
    assert choice.token_ids == [1, 2]


def test_a_runs_directories_are_where_art_has_them(tmp_path):
    model = art.TrainableModel(name="one", project="demo", base_model="x", base_path=tmp_path)
    place = get_model_dir(model, str(tmp_path))
    assert place == str(model.run_dir)
    assert get_model_step(model, str(tmp_path)) == 0
    for step in (3, 12):
        (model.run_dir / "checkpoints" / f"{step:04d}").mkdir(parents=True)
    assert get_model_step(model, str(tmp_path)) == 12
    assert get_step_checkpoint_dir(place, 3).endswith("/one/checkpoints/0003")


async def test_an_http_error_has_the_servers_text_as_a_note():
    class Response:
        status_code, url, text = 404, "http://here/x", '{"detail": "no model"}'

    class HttpError(Exception):
        response = Response()

    @log_http_errors
    async def ask() -> None:
        raise HttpError("404")

    with pytest.raises(HttpError) as raised:
        await ask()
    assert raised.value.__notes__ == ['HTTP 404 from http://here/x: {"detail": "no model"}']
