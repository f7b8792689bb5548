import asyncio
import fcntl
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import attrs
import numpy as np
import orjson
import pytest

import art_core as art
from art_core.base.errors import BackendError, ConfigError, HistoryError, MetricError
from art_core.data.store import read_groups
from art_core.log.rows import read_rows
from art_core.testing.echo import EchoBackend, echo_spec


class EchoPlugin:
    @art.hookimpl
    def art_backends(self):
        return [echo_spec()]


@pytest.fixture
def plugins(monkeypatch):
    found = art.Plugins()
    found.register(EchoPlugin(), "echo")
    monkeypatch.setattr("art_core.model.backend.installed_plugins", lambda: found)
    return found


@pytest.fixture
async def make(tmp_path, plugins):
    made = []

    def model(name="m", **options):
        given = {"base_model": "echo-base", "base_path": tmp_path, "sinks": [], "plugins": plugins}
        made.append(art.TrainableModel(name=name, project="p", **given | options))
        return made[-1]

    yield model
    for each in made:
        await each.close()
        if isinstance(each.backend, EchoBackend):
            await each.backend.close()


def attempts(*rewards):
    return [art.TrajectoryGroup([art.Trajectory(reward=r) for r in rewards])]


def rows(model):
    return [row for row, _ in read_rows(model.run_dir / "history.jsonl")]


@pytest.mark.parametrize(
    "name", ["a/b", "..", ".hidden", "", " ", "x" * 300, "a\0b", "a\\b", " a", "a:b", None]
)
def test_a_name_that_would_leave_its_directory_is_an_error(make, name):
    with pytest.raises(ConfigError, match="can't be a directory's name"):
        make(name)
    with pytest.raises(ConfigError, match="project name"):
        art.Model(name="m", project=name)


def test_a_name_with_spaces_and_umlauts_is_fine(make, tmp_path):
    assert make("größer und besser 2.0").run_dir == tmp_path / "p/models/größer und besser 2.0"


@pytest.mark.parametrize("how", ["argument", "option", "environment"])
async def test_a_backend_is_chosen_by_name_in_three_ways(make, monkeypatch, how):
    model = make(backend="echo" if how == "option" else None)
    if how == "environment":
        monkeypatch.setenv("ART_BACKEND", "echo")
    await model.register("echo" if how == "argument" else None)
    assert isinstance(model.backend, EchoBackend)
    assert model.get_inference_name() == "m"
    assert model.get_inference_name(step=3) == "m@3"
    await model.close()


async def test_without_a_backend_the_error_says_how_to_choose_one(make, monkeypatch):
    monkeypatch.delenv("ART_BACKEND", raising=False)
    with pytest.raises(ConfigError, match=r"art.backend\(\"local\"\)"):
        await make().train(attempts(0, 1))
    with pytest.raises(ConfigError, match="not registered"):
        make("n").openai_client()


def test_an_unknown_backend_and_an_unknown_option_say_what_there_is(plugins):
    with pytest.raises(ConfigError, match="Did you mean 'echo'"):
        art.backend("ecko")
    with pytest.raises(ConfigError, match="gpu_cost_per_hour_usd"):
        art.backend("echo", gpu_cost_per_hour=1.0)
    assert art.backend("echo", gpu_cost_per_hour_usd=1.0).gpu_cost_per_hour_usd == 1.0


async def test_a_train_step_registers_by_itself_and_logs_one_row(make):
    model = make(backend=EchoBackend())
    with_tokens = art.Trajectory(reward=1.0, messages_and_choices=[{"role": "user", "content": ""}])
    result = await model.train([art.TrajectoryGroup([with_tokens, art.Trajectory()])])
    assert (result.step, await model.get_step(), len(rows(model))) == (1, 1, 1)
    assert model.endpoint().model_name == "m"


async def test_groups_are_stored_before_the_step_so_that_a_failing_one_loses_nothing(make):
    model = make(backend=EchoBackend())
    with pytest.raises(ConfigError, match="no training option 'lerning_rate'"):
        await model.train(attempts(0, 1), lerning_rate=1.0)
    assert (model.run_dir / "trajectories/train/0001.jsonl").stat().st_size > 100
    assert rows(model) == []


class Unsteady(EchoBackend):
    """Fails at every other step."""

    steps = 0

    async def train(self, model, groups, **options):
        self.steps += 1
        if self.steps % 2:
            raise BackendError("the engine is away")
        return await super().train(model, groups, **options)


async def test_groups_of_a_step_that_is_tried_again_are_stored_once(make):
    model, groups = make(backend=Unsteady()), attempts(0, 1) + attempts(1, 0)
    file = model.run_dir / "trajectories/train/0001.jsonl"
    with pytest.raises(BackendError):
        await model.train(groups)
    await model.train(groups)
    assert [g.rewards for g in read_groups(file)] == [[0.0, 1.0], [1.0, 0.0]]


class Late(EchoBackend):
    """Its steps go on when their caller does not wait any more, and end in the order asked."""

    def __init__(self):
        super().__init__()
        self.turn = asyncio.Lock()
        self.under_way = []

    async def train(self, model, groups, **options):
        async def step():
            async with self.turn:
                await asyncio.sleep(0.1)
                return await EchoBackend.train(self, model, groups, **options)

        self.under_way.append(asyncio.create_task(step()))
        return await asyncio.shield(self.under_way[-1])


async def stored_after_a_cancelled_step(model):
    """What the files of two steps hold, the first of which was cancelled and went on."""
    await model.register(Late())
    cancelled = asyncio.create_task(model.train(attempts(0, 1)))
    await asyncio.sleep(0.03)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    assert (await model.train(attempts(2, 3))).step == 2
    found = sorted((model.run_dir / "trajectories" / "train").iterdir())
    return {file.name: [g.rewards for g in read_groups(file)] for file in found}


async def test_groups_stand_under_the_step_that_they_were_trained_in(make):
    model = make()
    stored = await stored_after_a_cancelled_step(model)
    assert stored == {"0001.jsonl": [[0, 1]], "0002.jsonl": [[2, 3]]}
    assert [row.step for row in rows(model)] == [2]


async def test_groups_that_cannot_be_moved_to_their_step_are_told(make, monkeypatch, caplog):
    def full(groups, source, target):
        raise HistoryError(f"cannot store trajectories in {target.name}")

    monkeypatch.setattr("art_core.data.store.move_groups", full)
    model = make()
    assert await stored_after_a_cancelled_step(model) == {"0001.jsonl": [[0, 1], [2, 3]]}
    assert "trajectories of step 2: cannot store trajectories in 0002.jsonl" in caplog.text
    assert [row.step for row in rows(model)] == [2]


async def test_groups_that_are_others_or_were_changed_meanwhile_are_stored_too(make):
    model, groups = make(backend=Unsteady()), attempts(0, 1)
    with pytest.raises(BackendError):
        await model.train(groups)
    groups[0].trajectories[0].reward = 0.5
    await model.train(groups)
    alike = [art.TrajectoryGroup(exceptions=[ValueError("down")]) for _ in range(2)]
    for group in alike:
        await model.log([group], step=1, split="train")
    file = model.run_dir / "trajectories/train/0001.jsonl"
    assert [g.rewards for g in read_groups(file)] == [[0.5, 1.0], [], []]
    (earlier,) = read_groups(file.parent / "earlier" / file.name)
    assert earlier.rewards == [0.0, 1.0]


async def test_groups_of_an_attempt_that_ended_before_its_step_are_set_aside(make):
    killed = make(backend=Unsteady())
    with pytest.raises(BackendError):
        await killed.train(attempts(0, 1))
    await killed.close()
    for _ in range(2):
        model = make(backend=EchoBackend())
        result = await model.train(attempts(2, 3))
        await model.close()
    file = model.run_dir / f"trajectories/train/{result.step:04d}.jsonl"
    assert [g.rewards for g in read_groups(file)] == [[2.0, 3.0]]
    earlier = read_groups(model.run_dir / "trajectories/train/earlier/0001.jsonl")
    assert [0.0, 1.0] in [g.rewards for g in earlier]


async def test_rollouts_that_have_not_run_are_an_error(make):
    async def rollout():
        return art.Trajectory()

    group = art.TrajectoryGroup([rollout()])
    with pytest.raises(ConfigError, match="gather_trajectory_groups"):
        await make(backend=EchoBackend()).train([group])
    await group


@pytest.mark.parametrize("bad", [["text"], [art.Trajectory(), art.TrajectoryGroup()]])
async def test_anything_but_groups_or_trajectories_is_an_error(make, bad):
    with pytest.raises(ConfigError, match="expected trajectory groups"):
        await make().log(bad)


async def test_loose_trajectories_are_logged_as_one_group(make):
    row = await make().log([art.Trajectory(reward=0.0), art.Trajectory(reward=1.0)])
    assert (row.split, row.metrics["val/reward"], row.metrics["val/reward_std_dev"]) == (
        "val",
        0.5,
        0.5,
    )


async def test_a_bad_split_or_metric_is_an_error_and_writes_no_row(make):
    model = make()
    with pytest.raises(ConfigError, match="split name"):
        await model.log(split="../x")
    with pytest.raises(MetricError, match="Did you mean 'reward'"):
        await model.log(metrics={"rewards/x": 1.0})
    assert rows(model) == []


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"step": 2.5}, "a step must be a whole number"),
        ({"step": "3"}, "a step must be a whole number"),
        ({"step": -1}, "a step must be a whole number"),
        ({"step": 10**30}, "a step must be a whole number"),
        ({"step": math.nan}, "a step must be a whole number"),
        ({"split": "costs"}, "a split can't be named 'costs'"),
        ({"metrics": {"reward/cum/x": 1.0}}, "is reserved"),
        ({"metrics": {"costs/gpu": -1.0}}, "can't be negative"),
    ],
)
async def test_what_no_row_could_hold_is_refused_before_anything_is_written(make, given, error):
    model = make()
    with pytest.raises((ConfigError, MetricError), match=error):
        await model.log(attempts(0, 1), **given)
    assert not (model.run_dir / "trajectories").exists()
    assert (await model.log(attempts(0, 1), step=np.int64(3))).step == 3
    assert [(row.seq, row.step) for row in rows(model)] == [(1, 3)]


@pytest.mark.parametrize("name", ["", " ", "a//b", "cum/x", "mean", "std_dev"])
async def test_a_trajectorys_metric_that_no_row_could_hold_ends_no_paid_step(make, name):
    model = make(backend=EchoBackend())
    bad = art.Trajectory(reward=1.0, metrics={name: 1.0})
    with pytest.raises(MetricError):
        await model.train([art.TrajectoryGroup([bad, art.Trajectory()])])
    assert await model.get_step() == 0
    assert not (model.run_dir / "trajectories").exists()


async def test_a_run_that_another_process_has_is_a_clear_error(make):
    model = make()
    model.run_dir.mkdir(parents=True)
    with (model.run_dir / "history.jsonl").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as another process does
        with pytest.raises(HistoryError, match="in use by another process"):
            await model.log()
    await model.log()


async def test_devices_held_are_charged_at_the_given_or_a_known_price_else_said_once(make, caplog):
    model = make()
    assert model.charge(art.GpuTime(device="x", seconds=1800, count=2, usd_per_hour=2.0)) == 2.0
    assert model.charge(art.GpuTime(device="toaster", seconds=10)) is None
    assert model.charge(art.GpuTime(device="toaster", seconds=10)) is None
    assert caplog.text.count("no price is known for device 'toaster'") == 1
    assert (await model.log()).metrics["costs/gpu"] == 2.0


async def test_a_backend_finds_a_missing_price_before_it_holds_a_device_for_any_time(make, caplog):
    model = make()
    assert model.charge(art.GpuTime(device="x", seconds=0, usd_per_hour=2.0)) == 0.0
    assert model.charge(art.GpuTime(device="toaster", seconds=0)) is None
    assert "no price is known for device 'toaster'" in caplog.text
    row = await model.log()
    assert "costs/gpu" not in row.metrics
    assert row.receipts == ()


@attrs.define
class Unpriced:
    """A backend that takes no price of its own."""

    backend: EchoBackend

    def __getattr__(self, name):
        return getattr(self.backend, name)


async def test_a_remedy_names_only_an_option_that_the_backend_has(make, caplog):
    toaster = art.GpuTime(device="toaster", seconds=10)
    make(backend=EchoBackend()).charge(toaster)
    assert caplog.text.endswith("Give the backend gpu_cost_per_hour_usd=...\n")
    caplog.clear()
    model = make(name="other", backend=Unpriced(EchoBackend()))
    model.charge(toaster)
    assert "gpu_cost_per_hour_usd" not in caplog.text
    assert f"art reprice {model.run_dir} --gpu-usd-per-hour USD" in caplog.text


async def test_the_best_and_the_newest_checkpoint_are_kept(make):
    model = make(backend=EchoBackend(), keep_checkpoints=art.keep_all())
    for reward in (0.25, 0.75, 0.5, 0.0):
        await model.train(attempts(0, 0))
        await model.log(attempts(reward), split="val")
    assert [c.step for c in await model.checkpoints()] == [1, 2, 3, 4]
    assert await model.delete_checkpoints() == [1, 3]
    with pytest.raises(ConfigError, match="no metric 'val/rewart'"):
        await model.delete_checkpoints("val/rewart")


async def test_user_state_is_merged_and_read_back(make):
    model = make()
    assert model.read_state() == {}
    assert model.merge_state({"position": 3}) == {"position": 3}
    assert model.merge_state({"epoch": 1}) == {"position": 3, "epoch": 1}
    assert model.read_state() == {"position": 3, "epoch": 1}


def test_threads_that_come_at_once_open_one_run_and_keep_each_others_state(make):
    model, together = make(), threading.Barrier(8)

    def work(thread):
        together.wait()
        runs = {id(model.run)}
        for i in range(5):
            model.merge_state({f"{thread}-{i}": i})
        return runs

    with ThreadPoolExecutor(8) as pool:
        assert set().union(*pool.map(work, range(8))) == {id(model.run)}
    assert len(model.read_state()) == 40


async def test_leaving_the_model_says_how_it_ended(make):
    async with make("fine") as fine:
        await fine.log()
    with pytest.raises(ValueError, match="boo"):
        async with make("bad") as bad:
            await bad.log()
            raise ValueError("boo")

    def status(model):
        return orjson.loads((model.run_dir / "status.json").read_bytes())["status"]

    assert (status(fine), status(bad)) == ("finished", "failed")
    with pytest.raises(HistoryError, match="is closed"):
        await fine.log()


async def test_closing_a_model_closes_the_backend_that_it_made_and_no_other(make):
    named, given = make("named"), make("given")
    await named.register("echo")
    mine = EchoBackend()
    await given.register(mine)
    await named.close()
    await given.close()
    assert named.backend._server is None
    assert mine._server is not None


class TroubledBackend(EchoBackend):
    async def close(self):
        served = self._server is not None
        await super().close()
        if served:
            raise BackendError("the engine does not end")


async def test_a_backend_that_cannot_be_closed_does_not_keep_the_run_open(make, monkeypatch):
    model = make()
    monkeypatch.setattr("art_core.model.trainable.make_backend", lambda name: TroubledBackend())
    await model.register("echo")
    with pytest.raises(BackendError, match="does not end"):
        await model.close()
    assert orjson.loads((model.run_dir / "status.json").read_bytes())["status"] == "finished"


@pytest.fixture
def made(monkeypatch):
    """Return the backends that were made by name, in order; registering lets others go on."""
    found = []

    class Slow(EchoBackend):
        async def register(self, model):
            await asyncio.sleep(0)
            return await super().register(model)

    def make_one(name):
        found.append(Slow())
        return found[-1]

    monkeypatch.setattr("art_core.model.trainable.make_backend", make_one)
    return found


async def test_a_model_that_is_given_another_backend_closes_the_one_that_it_made(make, made):
    model, mine = make(), EchoBackend()
    await model.register("echo")
    await model.register()
    (first,) = made
    assert first._server is not None
    await model.register("echo")
    await model.register(mine)
    await model.close()
    assert [backend._server for backend in made] == [None, None]
    assert mine._server is not None


@pytest.mark.parametrize("by_name", [True, False])
async def test_a_backend_that_did_not_register_is_closed_if_it_was_made_for_that(
    make, monkeypatch, by_name
):
    class Full(EchoBackend):
        closed = False

        async def register(self, model):
            raise BackendError("no device is free")

        async def close(self):
            self.closed = True

    full = Full()
    monkeypatch.setattr("art_core.model.trainable.make_backend", lambda name: full)
    with pytest.raises(BackendError, match="no device"):
        await make().register("full" if by_name else full)
    assert full.closed is by_name


async def test_tasks_that_come_at_once_make_one_backend(make, made):
    model = make(backend="echo")
    await asyncio.gather(*(model.checkpoints() for _ in range(3)))
    assert len(made) == 1


async def test_a_backend_may_ask_a_model_for_its_step_while_it_is_registered_again(make):
    class Asking(EchoBackend):
        async def register(self, model):
            endpoint = await super().register(model)
            await model.get_step()
            return endpoint

    model, first, asking = make(), EchoBackend(), Asking()
    await model.register(first)
    async with asyncio.timeout(5):
        await model.register(asking)
    await first.close()
    assert model.backend is asking


async def test_a_cost_of_a_model_that_logged_nothing_is_written_when_it_is_closed(make):
    model = make()
    model.metrics_builder("eval").add_cost("eval/judge", 0.25)
    await model.close()
    (row,) = rows(model)
    assert row.metrics["costs/cum/all"] == 0.25


async def test_closing_a_model_that_was_never_used_does_nothing(make):
    model = make()
    assert await model.close() == {}
    assert not model.run_dir.exists()


def test_sinks_are_those_named_else_of_the_environment_else_the_default_ones(make, monkeypatch):
    def spec(name, default):
        return art.SinkSpec(name=name, create=object, summary="", default=default)

    class Sinks:
        @art.hookimpl
        def art_sinks(self):
            return [spec("on", True), spec("off", False)]

    plugins = art.Plugins()
    plugins.register(Sinks(), "sinks")
    own = spec("own", True)

    def names(**options):
        return [s.name for s in make(plugins=plugins, **options)._sink_specs]

    monkeypatch.delenv("ART_SINKS", raising=False)
    assert names(sinks=None) == ["on"]
    assert names(sinks=["off", own]) == ["off", "own"]
    monkeypatch.setenv("ART_SINKS", "off, on")
    assert names(sinks=None) == ["off", "on"]
    assert names(sinks=[]) == []
    with pytest.raises(ConfigError, match="no sink 'onn'"):
        names(sinks=["onn"])


def test_two_sinks_of_one_name_are_refused_before_the_run_begins(make, tmp_path):
    specs = [art.SinkSpec(name="own", create=object, summary="") for _ in range(2)]
    assert specs[0] == specs[1]
    assert [s.name for s in make(sinks=specs)._sink_specs] == ["own"]
    other = art.SinkSpec(name="own", create=dict, summary="")
    with pytest.raises(ConfigError, match=r"two sinks are named 'own'.*spec\.named\('own-2'\)"):
        make(sinks=[specs[0], other])
    assert [*tmp_path.iterdir()] == []
    with pytest.raises(ConfigError, match="sink name 'a/b' can't be"):
        other.named("a/b")


async def test_two_places_of_one_kind_get_all_rows_under_two_names(make):
    class Place:
        def __init__(self):
            self.steps, self.name = [], ""

        def open(self, run):
            self.name = run.sink

        def write(self, rows):
            self.steps += [row.step for row in rows]

        def close(self, run): ...

    places = Place(), Place()
    first, second = (art.SinkSpec(name="own", create=lambda p=p: p, summary="") for p in places)
    model = make(sinks=[first, second.named("own-2")])
    for step in range(3):
        await model.log(metrics={"reward/mean": 0.5}, split="train", step=step)
    reports = await model.close()
    assert [(place.name, place.steps) for place in places] == [
        ("own", [0, 1, 2]),
        ("own-2", [0, 1, 2]),
    ]
    assert {name: report.undelivered for name, report in reports.items()} == {"own": 0, "own-2": 0}


async def test_a_hosted_model_is_logged_under_its_own_endpoint(tmp_path, plugins):
    model = art.Model(
        name="gpt",
        project="p",
        base_path=tmp_path,
        sinks=[],
        plugins=plugins,
        inference_model_name="gpt-4.1",
        inference_base_url="http://127.0.0.1:9/v1",
        inference_api_key="sk-secret",
    )
    client = model.openai_client()
    assert client is model.openai_client()
    assert str(client.base_url) == "http://127.0.0.1:9/v1/"
    assert model.get_inference_name() == "gpt-4.1"
    assert await model.get_step() == 0
    assert "sk-secret" not in repr(model)
    assert "sk-secret" not in repr(model.endpoint())
    await model.log(metrics={"score": 1.0})
    assert "sk-secret" not in (model.run_dir / "model.json").read_text()
    await model.close()
    with pytest.raises(ConfigError, match="no endpoint"):
        art.Model(name="x", project="p", plugins=plugins).endpoint()


def test_each_event_loop_has_a_client_of_its_own(tmp_path, plugins):
    model = art.Model(
        name="m",
        project="p",
        base_path=tmp_path,
        plugins=plugins,
        inference_model_name="x",
        inference_base_url="http://127.0.0.1:9/v1",
    )

    async def client():
        return model.openai_client()

    first = asyncio.run(client())
    assert asyncio.run(client()) is not first


async def test_a_backend_that_is_asked_about_a_strange_model_says_so(make):
    with pytest.raises(BackendError, match="not registered here"):
        await EchoBackend().step(make())


async def test_closing_a_model_closes_its_client(make):
    model = make(backend=EchoBackend())
    await model.register()
    first = model.openai_client()
    await model.register()
    assert first.is_closed()
    second = model.openai_client()
    await model.close()
    assert second.is_closed()


async def test_a_run_stays_where_it_was_begun_when_the_program_changes_its_directory(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ART_DIR", raising=False)
    model = art.Model(name="agent", project="p", sinks=[])
    attempt = art.Trajectory(messages_and_choices=[{"role": "user", "content": "hi"}], reward=1.0)
    await model.log([attempt], split="val", step=1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    await model.log([attempt], split="val", step=2)
    model.merge_state({"position": 2})
    await model.close()
    run = tmp_path / ".art" / "p" / "models" / "agent"
    assert model.run_dir == run
    assert len(list((run / "trajectories" / "val").iterdir())) == 2
    assert (run / "state.json").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []
