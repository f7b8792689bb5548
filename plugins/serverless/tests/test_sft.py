"""Supervised fine-tuning at an `art serve`: the client's steps, the route, and what is refused."""

from __future__ import annotations

import attrs
import httpx2
import pytest

import art_core as art
from art_core.testing.echo import EchoBackend

KEY = "a key of the tests"
SFT_JOBS = "/preview/sft-training-jobs"
ASK = {"role": "user", "content": "hi"}


def lessons(count=4):
    return [
        art.Trajectory(messages_and_choices=[ASK, {"role": "assistant", "content": f"answer {n}"}])
        for n in range(count)
    ]


@attrs.define(kw_only=True, eq=False)
class Watched(EchoBackend):
    """Records the batches."""

    batches: list = attrs.field(factory=list)
    options: dict = attrs.field(factory=dict)

    async def train_sft(self, model, batches, **options):
        self.batches += [[t.messages()[-1]["content"] for t in batch] for batch in batches]
        self.options = options
        return await super().train_sft(model, batches, **options)


async def test_batches_are_trained_at_the_server_as_they_would_be_here(
    serving, connect, make_model
):
    backend = Watched(gpu_cost_per_hour_usd=3600.0)
    server = serving(backend)
    model = make_model()
    async with model:
        await model.register(connect(server))
        result = await model.train_sft(
            lessons(), batch_size=2, shuffle=False, learning_rate=0.5, max_grad_norm=2.0
        )
        assert result.step == 2
        assert backend.batches == [["answer 0", "answer 1"], ["answer 2", "answer 3"]]
        assert backend.options["learning_rate"] == 0.5
        assert (backend.options["max_grad_norm"], backend.options["save_checkpoint"]) == (2.0, True)
        row = model.run.history.last
        assert row.metrics["data/cum/num_examples"] == 4
        assert row.metrics["data/sft_epochs"] == 1
        assert row.metrics["costs/gpu"] > 0
        await model.backend.close()


async def test_the_reason_of_a_failed_job_comes_back(serving, connect, make_model):
    class Refuses(EchoBackend):
        async def train_sft(self, model, batches, **options):
            raise art.ConfigError("line 3 is too long")

    class Lacks(EchoBackend):
        train_sft = None

    for backend, said in ((Refuses(), "line 3 is too long"), (Lacks(), "no supervised fine-")):
        server = serving(backend)
        model = make_model(type(backend).__name__)
        async with model:
            await model.register(connect(server))
            with pytest.raises(art.BackendError, match=said):
                await model.train_sft(lessons())
            assert await model.get_step() == 0
            await model.backend.close()
        server.stop()


async def test_weights_and_biases_are_not_sent_what_they_do_not_take(serving, connect, make_model):
    server = serving()
    model = make_model()
    async with model:
        backend = connect(server)
        await model.register(backend)
        backend._api.base_url = "https://api.training.wandb.ai/v1"
        with pytest.raises(art.ConfigError, match="only as the URL of an artifact"):
            await model.train_sft(lessons())
        await backend.close()


@pytest.fixture
def post(serving):
    server = serving()

    def post(path, body):
        return httpx2.post(
            server.url + path, json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=30
        )

    return post


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trajectory_groups": [], "config": {"learning_rat": 1}}, "no train_sft option"),
        ({"trajectory_groups": [], "config": {"learning_rate": -1}}, "learning_rate must be"),
        ({"trajectory_groups": [], "config": [1]}, "config must be an object"),
        ({"trajectory_groups": 5}, "trajectory_groups must be a list"),
        ({"training_data_url": "https://host/data.jsonl"}, "not as a URL"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(post, change, said):
    fields = {"project": "p", "name": "m", "base_model": "base", "entity": "e"}
    model = post("/preview/models", fields).json()
    answer = post(SFT_JOBS, {"model_id": model["id"], **change})
    assert answer.status_code == 422, answer.text
    assert said in answer.json()["error"]["message"]
