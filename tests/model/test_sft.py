"""`model.train_sft`: batches in a fixed order, one row per step, resumed where it stopped."""

import json

import attrs
import pytest

import art_core as art
from art_core.log.rows import read_rows
from art_core.model.sft import SFTOptions
from art_core.model.sft_plan import FILE, SFTPlan
from art_core.testing.echo import EchoBackend

ASK = {"role": "user", "content": "hi"}


def lessons(count=10, start=0):
    return [
        art.Trajectory(
            messages_and_choices=[ASK, {"role": "assistant", "content": f"answer {n}"}], reward=0.0
        )
        for n in range(start, start + count)
    ]


@attrs.define(kw_only=True, eq=False)
class Watched(EchoBackend):
    """Records the answers of each batch; the process "is killed" before a step."""

    batches: list = attrs.field(factory=list)
    saved: list = attrs.field(factory=list)
    rates: list = attrs.field(factory=list)
    dies_at: int | None = None

    async def train_sft(self, model, batches, **options):
        if self.dies_at == await self.step(model):
            raise KeyboardInterrupt
        self.batches += [[t.messages()[-1]["content"] for t in batch] for batch in batches]
        self.saved.append(options["save_checkpoint"])
        self.rates.append(options["learning_rate"])
        return await super().train_sft(model, batches, **options)


@pytest.fixture
async def opened(tmp_path):
    made = []

    async def open_model(backend, **options):
        model = art.TrainableModel(
            name="m", project="p", base_model="echo", base_path=tmp_path, sinks=[]
        )
        made.append((model, backend))
        await model.register(backend, **options)
        return model

    yield open_model
    for model, backend in made:
        await model.close()
        await backend.close()


def rows(model):
    return [row for row, _ in read_rows(model.run_dir / "history.jsonl")]


async def interrupted(opened, data, at=3, **options):
    backend = Watched(dies_at=at)
    model = await opened(backend)
    with pytest.raises(KeyboardInterrupt):
        await model.train_sft(data, **options)
    await model.close()
    return backend


async def test_each_batch_is_a_step_with_a_row(opened):
    backend = Watched()
    model = await opened(backend)
    result = await model.train_sft(lessons(), batch_size=4, epochs=2, shuffle=False)
    assert result.step == 6
    texts = [f"answer {n}" for n in range(10)]
    epoch = [texts[:4], texts[4:8], texts[8:]]
    assert backend.batches == [*epoch, *epoch]
    found = rows(model)
    assert [row.step for row in found] == [1, 2, 3, 4, 5, 6]
    assert [row.metrics["data/step_num_examples"] for row in found] == [4, 4, 2, 4, 4, 2]
    assert [row.metrics["data/sft_epochs"] for row in found[2:4]] == [1.0, 4 / 3]
    assert not any(key.startswith("reward/") for key in found[-1].metrics)


async def test_an_epoch_has_an_order_of_its_own_that_the_seed_decides(opened):
    orders = []
    for seed in (0, 0, 1):
        backend = Watched()
        model = await opened(backend)
        await model.train_sft(lessons(), batch_size=5, epochs=2, seed=seed, resume=False)
        orders.append([[text for b in half for text in b] for half in halves(backend.batches)])
    first, again, other = orders
    assert first == again != other
    assert first[0] != first[1]
    assert sorted(first[0]) == sorted(first[1]) == [f"answer {n}" for n in range(10)]


def halves(batches):
    return batches[: len(batches) // 2], batches[len(batches) // 2 :]


async def test_several_batches_may_be_one_step(opened):
    backend = Watched()
    model = await opened(backend)
    result = await model.train_sft(
        lessons(), batch_size=2, batches_per_step=3, learning_rate=lambda batch: 1.0 / (1 + batch)
    )
    assert result.step == 2
    assert [row.metrics["data/step_num_gradient_steps"] for row in rows(model)] == [3, 2]
    assert backend.rates == [1.0, 1 / 4]


@pytest.mark.parametrize(("count", "size"), [(3, 1), (10, 1), (85, 8), (1000, 32)])
def test_an_automatic_batch_gives_an_epoch_ten_batches_of_at_most_32(count, size):
    assert SFTOptions().plan(0, lessons(count)).batch_size == size


async def test_a_twentieth_of_the_steps_and_the_last_have_a_checkpoint(opened):
    backend = Watched()
    model = await opened(backend)
    await model.train_sft(lessons(6), batch_size=1, checkpoint_every=4)
    assert backend.saved == [False, False, False, True, False, True]
    backend.saved.clear()
    await model.train_sft(lessons(41), batch_size=1)
    assert backend.saved.count(True) == 21


async def test_an_interrupted_training_goes_on_in_the_middle_of_an_epoch(opened):
    options = {"batch_size": 2, "epochs": 2}
    plan = SFTOptions(**options).plan(0, lessons())
    texts = [f"answer {n}" for n in range(10)]
    whole = [[texts[place] for place in plan.places(n, {})] for n in range(10)]
    first = await interrupted(opened, lessons(), **options)
    second = Watched()
    model = await opened(second)
    assert (await model.train_sft(lessons(), **options)).step == 10
    assert (first.batches, second.batches) == (whole[:3], whole[3:])
    assert [row.step for row in rows(model)] == list(range(1, 11))


async def test_steps_after_the_last_checkpoint_are_repeated(opened):
    await interrupted(opened, lessons(), batch_size=1, checkpoint_every=2)
    backend = Watched()
    model = await opened(backend)
    await model.train_sft(lessons(), batch_size=1, checkpoint_every=2)
    assert len(backend.batches) == 8
    assert [row.step for row in rows(model)] == [1, 2, 3, *range(3, 11)]


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (lessons(11), {}, "had 10 examples and has 11: 0 are gone, 1 are new.*at example 11"),
        (lessons(9), {}, "had 10 examples and has 9: 1 are gone, 0 are new.*at example 10"),
        ([*lessons(4), *lessons(1, 50), *lessons(5, 5)], {}, "1 are gone, 1 are new.*example 5"),
        (lessons()[::-1], {}, "the same in another order"),
        (lessons(), {"batch_size": 2}, "batch_size was 1 and is 2"),
        (lessons(), {"epochs": 3, "seed": 7}, "epochs was 1 and is 3; seed was 0 and is 7"),
    ],
)
async def test_other_data_or_options_are_refused_with_the_difference(opened, data, options, said):
    await interrupted(opened, lessons(), batch_size=1)
    backend = Watched()
    model = await opened(backend)
    with pytest.raises(art.ConfigError, match=f"at step 3, inside .*1 to 10, and .*{said}"):
        await model.train_sft(data, **{"batch_size": 1, **options})
    assert backend.batches == []
    result = await model.train_sft(data, resume=False, **{"batch_size": 1, **options})
    assert result.step == 3 + len(backend.batches)


async def test_a_program_that_is_started_again_passes_over_a_completed_training(opened, caplog):
    model = await opened(Watched())
    await model.train_sft(lessons(), batch_size=5)
    await model.close()
    again = Watched()
    model = await opened(again)
    result = await model.train_sft(lessons(), batch_size=5)
    assert (result.step, again.batches) == (2, [])
    assert "these 10 examples were trained in steps 1 to 2" in caplog.text
    assert (await model.train_sft(lessons(), batch_size=5)).step == 4  # asked for a second time
    assert (await model.train_sft(lessons(5), batch_size=5)).step == 5


async def test_other_training_ends_an_unfinished_one(opened):
    await interrupted(opened, lessons(), batch_size=1)
    backend = Watched()
    model = await opened(backend)
    group = art.TrajectoryGroup([art.Trajectory(reward=r) for r in (0.0, 1.0)])
    await model.train([group])
    result = await model.train_sft(lessons(), batch_size=1)
    assert result.step == 4 + 10
    plans = json.loads((model.run_dir / FILE).read_text())["plans"]
    assert [plan["left_at"] for plan in plans] == [3, None]
    await model.train([group])  # after the end of the plan, nothing changes


async def test_a_backend_without_supervised_fine_tuning_is_refused(opened):
    class Lacking(EchoBackend):
        train_sft = None

    with pytest.raises(art.ConfigError, match="Lacking has no supervised fine-tuning"):
        await (await opened(Lacking())).train_sft(lessons())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_sise": 2}, "Did you mean 'batch_size'"),
        ({"loss_fn": "cispo"}, "no train_sft option 'loss_fn'"),
        ({"save_checkpoint": True}, "no train_sft option 'save_checkpoint'"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"epochs": 0.5}, "epochs must be"),
        ({"checkpoint_every": 0}, "checkpoint_every must be"),
        ({"seed": "x"}, "seed must be a whole number"),
        ({"shuffle": 1}, "shuffle must be True or False"),
        ({"learning_rate": -1.0}, "learning_rate must be"),
    ],
)
async def test_an_option_that_does_not_fit_is_refused(opened, options, said):
    backend = Watched()
    model = await opened(backend)
    with pytest.raises(art.ConfigError, match=said):
        await model.train_sft(lessons(), **options)
    assert not (model.run_dir / FILE).exists()


async def test_data_are_a_file_trajectories_or_groups(opened, tmp_path):
    backend = Watched()
    model = await opened(backend)
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({"messages": lessons(1)[0].messages()}))
    await model.train_sft(file)
    await model.train_sft([art.TrajectoryGroup(lessons(2))], batch_size=2)
    assert [len(batch) for batch in backend.batches] == [1, 2]
    for wrong in ([], ["text"]):
        with pytest.raises(art.ConfigError, match="train_sft takes trajectories, got"):
            await model.train_sft(wrong)


async def test_what_the_backend_cannot_train_is_refused_before_the_first_step(opened, caplog):
    backend = Watched()
    model = await opened(backend)
    broken = art.Trajectory(messages_and_choices=[ASK], metadata={"line": 40})
    with pytest.raises(art.ConfigError, match="1 of 3 .*line 40: it has no assistant message"):
        await model.train_sft([*lessons(2), broken])
    await model.train_sft([*lessons(2), broken], batch_size=2, skip_invalid=True)
    assert [len(batch) for batch in backend.batches] == [2]
    assert "1 conversations are left out" in caplog.text


async def test_a_backend_without_a_tokenizer_trains_unchecked(opened):
    class Unchecked(Watched):
        check_sft = None

    assert (await (await opened(Unchecked())).train_sft(lessons(2), batch_size=2)).step == 1


def test_a_plan_counts_its_batches():
    plan = SFTPlan(
        start=5, digests="x" * 12 * 10, batch_size=4, epochs=2, batches_per_step=4, shuffle=False,
        seed=0,
    )  # fmt: skip
    assert (plan.examples, plan.batches_per_epoch, plan.batches, plan.steps) == (10, 3, 6, 2)
    assert [list(plan.numbers(step)) for step in (5, 6)] == [[0, 1, 2, 3], [4, 5]]
    assert [plan.is_open(step) for step in (4, 5, 6, 7)] == [False, True, True, False]


async def test_a_schedule_runs_over_the_batches_of_all_epochs(opened):
    backend = Watched()
    model = await opened(backend)
    schedule = art.Schedule(1.0, "linear", warmup_steps=1)
    await model.train_sft(lessons(2), batch_size=1, epochs=2, learning_rate=schedule)
    assert backend.rates == pytest.approx([1.0, 1.0, 2 / 3, 1 / 3])
