"""Images are served, recorded and trained by the embedded engine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from images_helpers import black, gif, jpeg, png, shows, url
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import art_core as art
from art_core.endpoint.engine import Sampling
from art_local.backend import LocalBackend
from art_local.export.export import export_weights
from art_local.images.files import opened
from art_local.images.support import image_reader
from art_local.models.load import load_tokenizer
from art_local.testing.tiny import save_tiny_model

OPTIONS = {
    "device": "cpu", "dtype": "float32", "engine": "transformers", "progress": False,
    "lora_rank": 8,
}  # fmt: skip


@pytest.fixture
async def serve(tmp_path):
    """Register a model over a base model's directory."""
    opened_models: list[tuple[Any, Any]] = []

    async def served(directory: Path, **options: Any) -> art.TrainableModel:
        backend = LocalBackend(**OPTIONS | options)
        model = art.TrainableModel(
            name="eyes", project="p", base_model=str(directory), base_path=str(tmp_path), sinks=[]
        )
        opened_models.append((model, backend))
        await model.register(backend)
        return model

    yield served
    for model, backend in opened_models:
        await model.close()
        await backend.close()


async def ask(model: Any, messages: Any, name: str | None = None, **options: Any) -> Any:
    answer = await model.openai_client().chat.completions.create(
        model=name or model.get_inference_name(),
        messages=messages,
        **{"max_tokens": 8, "seed": 1, **options},
    )
    return answer.choices[0]


def tokens(choice: Any) -> tuple[list[int], list[int], torch.Tensor]:
    logprobs = [entry.logprob for entry in choice.logprobs.content]
    return choice.prompt_token_ids, choice.token_ids, torch.tensor(logprobs)


def by_transformers(base: Path, messages: Any, choice: Any) -> torch.Tensor:
    """The log-probs of an answer by the whole model of transformers, with its own pixels."""
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32).eval()
    reader = image_reader(model, base, load_tokenizer(base, None))
    parts = [p for m in messages if isinstance(m["content"], list) for p in m["content"]]
    urls = [p["image_url"]["url"] for p in parts if p["type"] == "image_url"]
    made = {}
    if urls:
        made = reader.processed(reader.placeholder * len(urls), [opened(u) for u in urls])
    prompt, answer, _ = tokens(choice)
    ids = torch.tensor([[*prompt, *answer]])
    given = {n: v for n, v in made.items() if n.startswith(("pixel", "image_"))}
    if "image_grid_thw" in given:
        given["mm_token_type_ids"] = (ids == reader.token_id).int()
    with torch.no_grad():
        logits = model(input_ids=ids, **given, use_cache=False).logits[0]
    start = len(prompt)
    return logits[start - 1 : -1].log_softmax(-1).gather(1, ids[0, start:, None])[:, 0]


async def test_logprobs_are_those_of_the_whole_model(serve, base):
    model = await serve(base)
    conversations = [
        [shows(1)],
        [shows(2, width=70, height=40)],
        [{"role": "user", "content": "No image."}],
        [shows(3, 4, text="Two.")],
        [shows(1, text="Other words.")],
        [shows(5)],
    ]
    choices = await asyncio.gather(*(ask(model, c) for c in conversations))
    for messages, choice in zip(conversations, choices, strict=True):
        expected = by_transformers(base, messages, choice)
        torch.testing.assert_close(tokens(choice)[2], expected, atol=1e-4, rtol=0)
    first, last = choices[0], choices[-1]
    assert first.prompt_token_ids == last.prompt_token_ids
    assert first.prompt_images != last.prompt_images
    assert not torch.allclose(tokens(first)[2][:1], tokens(last)[2][:1], atol=1e-3)


async def test_a_step_with_images_is_trained_as_it_was_sampled_and_changes_the_answer(serve, base):
    model = await serve(base)

    async def rollout(seed: int, number: int) -> art.Trajectory:
        first = shows(seed)
        choice = await ask(model, [first], max_tokens=6, seed=number)
        trajectory = art.Trajectory(messages_and_choices=[first, choice])
        trajectory.messages_and_choices.append(shows(seed + 10, text="And this?"))
        second = await ask(model, trajectory.messages(), max_tokens=6, seed=number)
        trajectory.messages_and_choices.append(second)
        trajectory.reward = float(sum(i % 2 for i in [*choice.token_ids, *second.token_ids]))
        return trajectory

    groups = await art.gather_trajectory_groups(
        (art.TrajectoryGroup(rollout(s, n) for n in range(4)) for s in (1, 2)), pbar_desc=None
    )
    result = await model.train(groups, learning_rate=1e-2, mask_truncated=False)
    assert result.metrics["loss/engine_logprob_diff"] < 1e-4
    before, after = [
        tokens(await ask(model, [shows(1)], f"eyes@{step}", temperature=0, max_tokens=1))[2]
        for step in (0, 1)
    ]
    assert abs(float(before - after)) > 1e-3
    adapter = load_file(result.checkpoint / "adapter_model.safetensors")
    eyes = ("vision", "visual", "projector", "connector")
    assert adapter and not [name for name in adapter if any(eye in name for eye in eyes)]

    stored = model.run_dir / "trajectories" / "train"
    assert len([*(stored / "images").iterdir()]) == 4
    assert "base64" not in (stored / "0001.jsonl").read_text()
    run = art.open_run(model.run_dir)
    again = await model.train(run.groups(1), learning_rate=1e-3, mask_truncated=False)
    assert again.metrics["data/step_trainer_tokens"] == result.metrics["data/step_trainer_tokens"]


async def test_rows_and_packed_rows_have_the_same_logprobs(serve, base):
    model = await serve(base)

    async def rollout(number: int) -> art.Trajectory:
        choice = await ask(model, [shows(1, 2)], seed=number)
        return art.Trajectory(messages_and_choices=[shows(1, 2), choice], reward=float(number))

    group = art.TrajectoryGroup([await rollout(n) for n in range(3)])
    for packing in (False, True):
        result = await model.train(
            [group], packing=packing, learning_rate=1e-9, mask_truncated=False
        )
        assert result.metrics["loss/engine_logprob_diff"] < 1e-4
    (session,) = model.backend._sessions.values()
    assert session.policy.packs is True


async def test_an_attempt_is_recorded_in_each_protocol(serve, vision):
    model = await serve(vision)
    trajectory = art.Trajectory()
    with model.recording(trajectory) as endpoint:
        async with openai.AsyncOpenAI(
            base_url=endpoint.base_url, api_key=endpoint.api_key
        ) as client:
            image = {"type": "input_image", "image_url": url(png(1))}
            await client.responses.create(
                model="eyes", input=[{"role": "user", "content": [image]}], max_output_tokens=4
            )
        source = url(jpeg(2)).partition(",")[2]
        block = {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/jpeg", "data": source},
        }
        body = {
            "model": "eyes",
            "max_tokens": 4,
            "messages": [{"role": "user", "content": [block]}],
        }
        headers = {"x-api-key": endpoint.api_key}
        async with httpx2.AsyncClient(base_url=endpoint.base_url, headers=headers) as http:
            assert (await http.post("/messages", json=body)).status_code == 200
    histories = trajectory.histories()
    assert len(histories) == 2
    for history, data in zip(histories, (url(png(1)), url(jpeg(2), "image/jpeg")), strict=True):
        message, choice = history.messages_and_choices
        assert message["content"][0]["image_url"]["url"] == data
        assert len(choice.prompt_images) == 1


async def test_an_exported_model_reads_images_as_the_served_one(serve, base, tmp_path):
    model = await serve(base)
    choices = [await ask(model, [shows(1)], seed=n) for n in range(2)]
    attempts = [
        art.Trajectory(messages_and_choices=[shows(1), choice], reward=float(n))
        for n, choice in enumerate(choices)
    ]
    await model.train([art.TrajectoryGroup(attempts)], learning_rate=1e-2, mask_truncated=False)
    served = await ask(model, [shows(2)])
    export_weights(art.open_run(model.run_dir), "merged", tmp_path / "merged")
    expected = by_transformers(tmp_path / "merged", [shows(2)], served)
    torch.testing.assert_close(tokens(served)[2], expected, atol=1e-4, rtol=0)


async def test_given_answers_to_images_are_trained(serve, vision):
    model = await serve(vision)
    answer = {"role": "assistant", "content": "A cat."}
    example = art.Trajectory(messages_and_choices=[shows(1), answer])
    before = await ask(model, [shows(1)], temperature=0, max_tokens=1)
    result = await model.train_sft([example] * 4, batch_size=2, learning_rate=1e-2)
    after = await ask(model, [shows(1)], temperature=0, max_tokens=1)
    assert result.metrics["data/step_trainer_tokens"] > 0
    assert tokens(after)[2] != tokens(before)[2]


PNG = png(1)
BAD = [
    (url(b"no image"), "8 bytes are sent as an image, and are no image"),
    (url(PNG[:200]), "an image cannot be decoded"),
    (url(black(4097, 4097)), "an image has 4097 x 4097 pixels"),
    (url(black(30000, 30000)), "an image is too large"),
    (url(gif(), "image/gif"), "one of image/png, image/jpeg, image/webp"),
    (url(gif()), "are no image"),
    ("https://example.org/a.png", "images are not fetched from other servers"),
]


@pytest.mark.parametrize(("image", "reason"), BAD, ids=[reason for _, reason in BAD])
async def test_a_bad_image_is_refused_and_the_engine_goes_on(serve, vision, image, reason):
    model = await serve(vision)
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": image}}]}
    with pytest.raises(openai.BadRequestError, match=reason):
        await ask(model, [message])
    assert (await ask(model, [shows(1)])).token_ids


async def test_a_text_with_the_token_of_images_is_refused_beside_an_image(serve, vision):
    model = await serve(vision)
    with pytest.raises(openai.BadRequestError, match="has the token '<image>' 2 times"):
        await ask(model, [shows(1, text="<image>")])


async def test_images_that_do_not_fit_are_refused(serve, vision):
    model = await serve(vision)
    with pytest.raises(openai.BadRequestError, match="the context of 'eyes@0' holds 300 tokens"):
        await ask(model, [shows(*range(70))])
    assert len((await ask(model, [shows(*range(50))])).prompt_images) == 50


async def test_a_model_of_text_refuses_images(serve, tmp_path):
    model = await serve(save_tiny_model(tmp_path / "text"))
    reason = "'eyes@0' takes no images: its base model reads text only. Use a base model that reads"
    with pytest.raises(openai.BadRequestError, match=reason):
        await ask(model, [shows(1)])


async def test_with_deterministic_the_bits_do_not_depend_on_other_images(serve, base):
    model = await serve(base, deterministic=True)
    (session,) = model.backend._sessions.values()
    alone = await ask(model, [shows(1)])
    among = await asyncio.gather(*(ask(model, [shows(n)]) for n in (1, 2, 3)))
    assert tokens(alone)[1] == tokens(among[0])[1]
    assert torch.equal(tokens(alone)[2], tokens(among[0])[2])
    with pytest.raises(art.EngineError, match="are not in the prompt"):
        await anext(session.engine.generate([1, 2], Sampling(max_tokens=1), images=[url(PNG)]))
