from __future__ import annotations

import builtins
import shutil
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from current_line import CURVES, rows

import art_core as art
from art_core.base.errors import ConfigError
from art_core.hooks.host import installed_plugins
from art_core.log import reader
from art_core.metrics.taxonomy import MetricSpec
from art_core.testing.echo import EchoBackend

HISTORIES = Path(__file__).parents[1] / "histories"


def group(*rewards):
    message = {"role": "user", "content": "hello"}
    return art.TrajectoryGroup(
        [art.Trajectory(messages_and_choices=[message], reward=reward) for reward in rewards]
    )


@pytest.fixture
def run(tmp_path):
    """A run whose second attempt trained again from an older step."""
    path = tmp_path / "demo" / "models" / "m"
    path.mkdir(parents=True)
    (path / "history.jsonl").write_bytes(b"".join(row.to_line() for row in rows()))
    return art.open_run("m", tmp_path)


@pytest.fixture
def model(tmp_path):
    made = art.Model(name="live", project="demo", base_path=tmp_path, sinks=[])
    yield made
    made.run.close()


def test_a_run_is_opened_by_name_project_or_directory(run, tmp_path, monkeypatch):
    assert run.path == tmp_path / "demo" / "models" / "m"
    assert art.open_run("demo/m", str(tmp_path)) == run == art.open_run(run.path)
    monkeypatch.setenv("ART_DIR", str(tmp_path))
    assert art.open_run("m") == run
    with pytest.raises(ConfigError, match="no run 'n'; in .*: demo/m"):
        art.open_run("n")


def test_rows_are_chosen_by_seq_split_and_attempt(run):
    every = [row.seq for row in run.rows()]
    assert every == [row.seq for row in rows()]
    assert [row.seq for row in run.rows(after=10)] == [seq for seq in every if seq > 10]
    assert {row.split for row in run.rows(split="val")} == {"val"}
    assert {row.attempt for row in run.rows(attempt=2)} == {2}
    assert run.last_row() == list(run.rows())[-1]


def test_rows_of_the_current_line_are_those_that_no_later_attempt_replaced(run):
    current = [(row.attempt, row.step) for row in run.rows(current=True)]
    begins_at = min(row.step for row in rows() if row.attempt == 2 and "reward/mean" in row.metrics)
    assert all(step < begins_at for attempt, step in current if attempt == 1)
    assert list(run.rows(attempt=2)) == list(run.rows(attempt=2, current=True))
    assert len(current) < len(rows())


def test_curves_and_costs_are_those_of_the_current_line(run):
    assert run.timeline().curves() == CURVES
    assert run.curve("reward/mean") == run.curve("train/reward") == CURVES["reward/mean"]
    costs = run.costs()
    assert costs.total == {"all": 5.75}
    assert {step: usd["all"] for step, usd in costs.steps.items()} == CURVES["costs/all"]
    with pytest.raises(ConfigError, match=r"no metric 'reward/men'.*Did you mean 'reward/mean'"):
        run.curve("reward/men")


def test_a_live_run_is_followed(model):
    model.run.record("train", 1, metrics={"reward/mean": 0.5})
    run = art.open_run(model.run_dir)
    assert run.status() == "running"
    (first,) = run.rows()
    with run.history.open("ab") as file:
        file.write(b'{"schema":1,"seq":2,"attempt":1,"ste')
    assert list(run.rows()) == [first]
    assert list(run.rows(after=first.seq)) == []


@pytest.mark.parametrize("end", [b"", b"\n", b"torn", b'{"seq":1,"step":1', b"torn\n\n"])
def test_the_rows_after_each_row_are_found_from_the_end(run, end):
    with run.history.open("ab") as file:
        file.write(end)
    every = list(run.rows())
    for count, row in enumerate(every, start=1):
        assert list(run.rows(after=row.seq)) == every[count:]
    whole = run.history.read_bytes().splitlines(keepends=True)[0]
    run.history.write_bytes(whole + whole.removesuffix(b"\n"))
    assert list(run.rows(after=every[0].seq)) == []


def test_rows_that_come_while_the_current_line_is_read_wait_for_the_next_call(model):
    model.run.record("train", 1)
    current = art.open_run(model.run_dir).rows(current=True)
    next(current)
    model.run.record("train", 2)
    assert list(current) == []


def test_what_the_run_was_made_with_is_in_an_archived_directory_too(model, tmp_path):
    model.run.record("train", 1)
    model.run.close()
    shutil.move(model.run_dir, tmp_path / "archive")
    run = art.open_run(tmp_path / "archive")
    assert (run.model()["project"], run.model()["name"]) == ("demo", "live")
    assert (run.status(), run.last_row().step) == ("finished", 1)
    (run.path / "model.json").unlink()
    assert run.model() == {
        "project": tmp_path.parent.name,
        "name": "archive",
        "base_model": None,
        "config": {},
    }


def test_an_empty_run_has_nothing(tmp_path):
    (tmp_path / "history.jsonl").touch()
    run = art.open_run(tmp_path)
    assert (run.last_row(), list(run.rows(current=True)), run.checkpoints()) == (None, [], {})
    assert (run.splits(), run.steps(), run.costs()) == ([], [], art.Costs({}, {}))
    with pytest.raises(ConfigError, match="has no trajectories of step 1 of 'train'; stored: none"):
        run.groups(1)


async def test_trajectories_and_checkpoints_are_read_by_step(tmp_path):
    model = art.TrainableModel(
        name="m", project="p", base_model="echo", base_path=tmp_path, sinks=[]
    )
    await model.register(EchoBackend())
    await model.train([group(0.0, 1.0)])
    await model.log([group(0.5), group(0.25)], split="val")
    await model.close()
    run = art.open_run(model.run_dir)
    assert (run.splits(), run.steps("val")) == (["train", "val"], [1])
    assert [g.rewards for g in run.groups(1, "val")] == [[0.5], [0.25]]
    assert [path.name for path in run.checkpoints().values()] == ["0001"]
    earlier = run.path / "trajectories" / "val" / "earlier"
    earlier.mkdir()
    shutil.copy(run.path / "trajectories" / "val" / "0001.jsonl", earlier)
    assert len(run.groups(1, "val", earlier=True)) == 2
    with pytest.raises(ConfigError, match="no trajectories of step 2 of 'val'; stored: 1"):
        run.groups(2, "val")


def test_receipts_come_with_their_rows(model):
    usage = art.TokenUsage(input_tokens=10, output_tokens=5)
    builder = model.metrics_builder()
    builder.add_usage("judge", usage, provider="openai", model_name="gpt-5")
    model.run.record("train", 3)
    bought = [(row.step, receipt.item) for row, receipt in art.open_run(model.run_dir).receipts()]
    assert bought == [(3, "gpt-5")]


@pytest.mark.parametrize("history", sorted(HISTORIES.glob("art-*.jsonl")), ids=lambda p: p.stem)
def test_a_run_of_art_is_read_under_todays_names(tmp_path, history):
    shutil.copy(history, tmp_path / "history.jsonl")
    run = art.open_run(tmp_path)
    found = list(run.rows())
    assert all(row.seq == 0 for row in found)
    assert list(run.rows(after=len(found) - 1)) == found[-1:]
    assert not any(key.startswith("train/reward") for row in found for key in row.metrics)


LINE = {
    "trajectories": [
        {
            "messages_and_choices": [{"role": "user", "content": "hello"}],
            "reward": 0.5,
            "metrics": {"tries": 2},
            "metadata": {},
            "tools": None,
            "logs": ["a"],
            "additional_histories": [
                {"messages_and_choices": [{"role": "user", "content": "again"}], "tools": None}
            ],
        }
    ]
}


def test_trajectories_of_earlier_art_are_groups(tmp_path):
    (tmp_path / "history.jsonl").touch()
    file = tmp_path / "trajectories" / "train" / "0003.jsonl"
    file.parent.mkdir(parents=True)
    file.write_bytes(orjson.dumps(LINE))
    run = art.open_run(tmp_path)
    ((trajectory,),) = run.groups(3)
    assert (trajectory.reward, trajectory.metrics, trajectory.logs) == (0.5, {"tries": 2}, ["a"])
    assert trajectory.additional_histories[0].messages_and_choices[0]["content"] == "again"
    assert trajectory.start_time == datetime.fromtimestamp(file.stat().st_mtime, UTC)


@pytest.mark.parametrize("text", ['{"a":1}', "[]", '{"trajectories":[5]}', "5"])
@pytest.mark.parametrize("name", ["0001.jsonl", "0001.parquet"])
def test_files_that_are_not_of_trajectories_are_named(tmp_path, text, name):
    (tmp_path / "history.jsonl").touch()
    (tmp_path / "trajectories" / "train").mkdir(parents=True)
    (tmp_path / "trajectories" / "train" / name).write_text(text)
    (tmp_path / "trajectories" / "train" / "\u00b2.jsonl").touch()
    run = art.open_run(tmp_path)
    assert run.steps() == [1]
    with pytest.raises(ConfigError, match=f"{name} holds no groups of trajectories"):
        run.groups(1)


def parquet(path):
    """Write a file as ART's `write_trajectory_groups_parquet` does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, texts = pa.string(), pa.list_(pa.string())
    message = [(name, text) for name in ("role", "content", "tool_calls", "tool_call_id")]
    fields = [("group_index", pa.int64()), ("group_metadata", text), ("group_metrics", text)]
    fields += [("group_logs", texts), ("reward", pa.float64()), ("metrics", text)]
    fields += [("metadata", text), ("tools", text), ("logs", texts)]
    messages = pa.list_(pa.struct([*message, ("trainable", pa.bool_())]))
    schema = pa.schema([*fields, ("messages", messages)])
    user = {"role": "user", "content": "hello", "trainable": False}
    answer = {"role": "assistant", "tool_calls": '[{"id":"1"}]', "trainable": True}
    tool = {"role": "tool", "content": "4", "tool_call_id": "1"}
    records = [
        {"group_index": 1, "reward": 0.25, "messages": [user, answer, tool]},
        {"group_index": 0, "reward": 0.5, "metrics": '{"tries":2}', "messages": None},
        {"group_index": 1, "reward": 0.75, "group_metadata": '{"n":1}', "messages": [user]},
    ]
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(records, schema=schema), path)


def test_trajectories_of_art_in_parquet_are_groups(tmp_path, monkeypatch):
    (tmp_path / "history.jsonl").touch()
    parquet(tmp_path / "trajectories" / "train" / "0003.parquet")
    run = art.open_run(tmp_path)
    assert run.steps() == [3]
    first, second = run.groups(3)
    assert (first.rewards, second.rewards) == ([0.5], [0.25, 0.75])
    assert first.trajectories[0].metrics == {"tries": 2}
    _, answer, tool = second.trajectories[0].messages()
    assert answer == {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert tool["tool_call_id"] == "1"
    monkeypatch.setattr(builtins, "__import__", without("pyarrow.parquet"))
    with pytest.raises(ConfigError, match=r"^\S+ needs pyarrow.*pip install 'art-core\[parquet\]'"):
        run.groups(3)


def without(missing):
    """Return an import statement's function that does not find a library."""
    real = builtins.__import__

    def find(name, *others):
        if name == missing:
            raise ImportError(name)
        return real(name, *others)

    return find


def test_rows_are_a_table_of_pandas(run):
    table = run.to_pandas(split="train")
    assert list(table.columns[:5]) == list(reader.FIELDS)
    assert set(table["split"]) == {"train"}
    assert table.set_index("seq")["reward/mean"].dropna().to_dict() == {
        row.seq: row.metrics["reward/mean"]
        for row in rows()
        if row.split == "train" and "reward/mean" in row.metrics
    }


def test_rows_are_a_table_of_polars(run):
    table = run.to_polars(current=True)
    assert table["seq"].to_list() == [row.seq for row in run.rows(current=True)]
    values = [row.metrics.get("val/reward") for row in run.rows(current=True)]
    assert table["val/reward"].to_list() == values


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_row_with_an_odd_field_is_in_the_table(run, library):
    line = run.history.read_bytes().splitlines(keepends=True)[-1]
    with run.history.open("ab") as file:
        file.write(line.replace(b'"seq":13', b'"seq":"x"'))
    assert str(list(getattr(run, f"to_{library}")()["seq"])[-1]) == "x"


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_library_that_is_missing_is_named_with_its_extra(run, monkeypatch, library):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(reader, "import_module", missing)
    with pytest.raises(ConfigError, match=rf"needs {library}.*pip install 'art-core\[{library}\]'"):
        getattr(run, f"to_{library}")()


def test_metrics_of_plugins_add_up_as_their_plugins_say(tmp_path, monkeypatch):
    class Counted:
        @art.hookimpl
        def art_metrics(self):
            return [MetricSpec(key="own/shots", unit="shot", help="", combine="sum")]

    installed_plugins.cache_clear()
    installed_plugins().register(Counted(), "counted")
    line = b'{"seq":%d,"attempt":1,"step":1,"split":"val","recorded_at":"2026-05-01T00:00:00Z"'
    lines = [line % seq + b',"own/shots":2.0}\n' for seq in (1, 2)]
    (tmp_path / "history.jsonl").write_bytes(b"".join(lines))
    try:
        assert art.open_run(tmp_path).curve("own/shots") == {1: 4.0}
        assert art.LoggedRun(tmp_path).curve("own/shots") == {1: 2.0}
    finally:
        installed_plugins.cache_clear()
