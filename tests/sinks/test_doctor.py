"""The sink `doctor`: console, webhook and the end of the training."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import attrs
import pytest

import art_core as art
from art_core.hooks.doctor import DoctorSink
from art_core.sinks.delivery import Delivery
from art_core.sinks.sync import kind_of, made_again, run_info, sync
from art_core.testing.echo import EchoBackend
from waiting import until_async


def late(curves):
    """Find each run from its third step on."""
    if len(curves.steps) >= 3:
        yield art.Finding(
            rule="late",
            onset=3,
            problem="the run is long",
            numbers={"steps": 3.0},
            metric="reward/mean",
            change="Stop it.",
        )


RULE = art.CheckSpec(name="late", check=late, summary="")


@attrs.define(eq=False)
class Hook:
    """A server of webhooks: `answers` are the statuses of the next requests, else 200."""

    address: str
    answers: list[int]
    posted: list[dict]


@pytest.fixture
def hook():
    found = Hook("", [], [])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = found.answers.pop(0) if found.answers else 200
            if status == 200:
                found.posted.append(body)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.address = f"http://127.0.0.1:{server.server_port}/hooks/s3cret"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def opened(book, **options):
    printed = []
    sink = DoctorSink([RULE], print_line=printed.append, **options)
    sink.open(attrs.evolve(book.run, sink="doctor"))
    return sink, printed


def rows_of(book):
    return list(art.LoggedRun(book.path.parent).rows())


def test_a_finding_is_printed_once_and_not_by_a_later_process(book):
    book.add(5, **{"reward/mean": 0.5, "costs/all": 0.25})
    for expected in (
        [
            "doctor: late: from step 3, $0.7500",
            "  the run is long. Stop it. See reward/mean.",
        ],
        [],
    ):
        sink, printed = opened(book)
        sink.write(rows_of(book))
        sink.close(book.run)
        assert printed == expected


def test_what_a_run_has_at_its_end_is_found_when_it_closes(book):
    sink, printed = opened(book)
    book.add(401, **{"reward/mean": 0.5})
    rows = rows_of(book)
    sink.write(rows[:2])
    sink.rules = sink._watch.rules = [RULE]
    sink._watch._examined = 400  # as if the step before had been examined
    sink.write(rows[2:])
    assert printed == []
    sink.close(book.run)
    assert len(printed) == 2


def test_a_finding_is_posted_as_json_until_the_webhook_takes_it(book, hook):
    hook.answers = [500, 403]
    sink, printed = opened(book, webhook=hook.address)
    book.add(3, **{"reward/mean": 0.5})
    for answer in ("500", "403"):
        with pytest.raises(art.SinkError, match=rf"webhook at 127.0.0.1 answered {answer}$"):
            sink.write(rows_of(book))
    book.add(1, **{"reward/mean": 0.5})
    sink.write(rows_of(book))
    sink.close(book.run)
    (posted,) = hook.posted
    assert posted["id"] == "p/m/late/3"
    assert (posted["rule"], posted["onset"], posted["until"]) == ("late", 3, None)
    assert posted["numbers"] == {"steps": 3.0}
    assert posted["text"] == "p/m: late: from step 3. the run is long. Stop it."
    assert len(printed) == 2


def test_what_a_killed_process_did_not_post_is_posted_by_the_next(book, hook):
    hook.answers = [500]
    book.add(3, **{"reward/mean": 0.5})
    killed, printed = opened(book, webhook=hook.address)
    with pytest.raises(art.SinkError):
        killed.write(rows_of(book))
    sink, again = opened(book, webhook=hook.address)
    sink.write(rows_of(book))
    assert [posted["id"] for posted in hook.posted] == ["p/m/late/3"]
    assert len(printed) == 2
    assert again == []


def test_a_webhook_that_is_not_there_is_an_error_without_its_address(book):
    sink, _ = opened(book, webhook="http://127.0.0.1:1/s3cret")
    book.add(3, **{"reward/mean": 0.5})
    with pytest.raises(art.SinkError) as raised:
        sink.write(rows_of(book))
    assert str(raised.value) == "the webhook at 127.0.0.1 was not reached (ConnectionRefusedError)"
    assert "s3cret" not in repr(sink)


def test_options_that_do_not_fit_are_refused_at_once():
    with pytest.raises(art.ConfigError, match="Did you mean 'truncation'"):
        art.doctor_sink(stop_on=["truncatoin"])
    with pytest.raises(art.ConfigError, match="no rule 'x'; known: late"):
        art.doctor_sink(stop_on=["x"], rules=[RULE])
    with pytest.raises(art.ConfigError) as raised:
        art.doctor_sink(webhook="hooks.example.com/s3cret")
    assert "s3cret" not in str(raised.value)


def test_the_installed_rules_and_the_webhook_of_the_environment_are_used(monkeypatch, hook):
    monkeypatch.setenv("ART_DOCTOR_WEBHOOK", hook.address)
    sink = art.doctor_sink().create()
    assert "entropy-collapse" in {rule.name for rule in sink.rules}
    assert sink.webhook == hook.address


def test_art_sync_makes_the_sink_again_without_its_webhook(book, hook, monkeypatch):
    spec = art.doctor_sink(stop_on=["truncation"], webhook=hook.address)
    model = art.Model(name="m", project="p", base_path=book.path.parent / "runs", sinks=[spec])
    asyncio.run(logged(model))
    stored = (model.run_dir / "sinks.json").read_text()
    assert "truncation" in stored
    assert "s3cret" not in stored
    run = run_info(art.LoggedRun(model.run_dir))
    again = made_again(art.doctor_sink(), model.run_dir)
    assert again.options == {"stop_on": ["truncation"]}
    assert kind_of(model.run_dir, "doctor") == "doctor"
    assert list(sync(again, run, 10.0))


async def logged(model):
    await model.log(metrics={"loss/x": 1.0}, step=1)
    await model.close()


def test_a_slow_rule_delays_no_row_and_the_sink_beside_it_gets_all(book):
    begun, go_on, seen = threading.Event(), threading.Event(), []

    def slow(curves):
        begun.set()
        go_on.wait(60)
        return []

    class Beside:
        def open(self, run):
            pass

        def write(self, rows):
            seen.extend(rows)

        def close(self, run):
            pass

    rule = art.CheckSpec(name="slow", check=slow, summary="")
    specs = [
        art.doctor_sink(rules=[rule]),
        art.SinkSpec(name="beside", create=Beside, summary=""),
    ]
    book.add(1, **{"reward/mean": 0.5})
    delivery = Delivery.start(specs, book.run, book.path, 1)
    assert begun.wait(60)
    book.add(5, **{"reward/mean": 0.5})
    delivery.followers[1].wake(6)
    reports = {}
    closing = threading.Thread(target=lambda: reports.update(delivery.close(60)))
    closing.start()
    go_on.set()
    closing.join()
    assert {name: report.undelivered for name, report in reports.items()} == {
        "doctor": 0,
        "beside": 0,
    }
    assert [row.seq for row in seen] == [1, 2, 3, 4, 5, 6]


def groups():
    turns = [{"role": "user", "content": "?"}]
    pair = [art.Trajectory(messages_and_choices=turns, reward=reward) for reward in (0.0, 1.0)]
    return [art.TrajectoryGroup(pair)]


def trained_model(tmp_path, backend, **sink):
    spec = art.doctor_sink(rules=[RULE], stop_on=["late"], **sink)
    return art.TrainableModel(
        name="m", project="p", base_model="b", base_path=tmp_path, backend=backend, sinks=[spec]
    )


async def examined(model):
    """Wait until the doctor has seen the newest row."""
    file, newest = model.run_dir / "sinks" / "doctor.cursor", model.run.history.last.seq

    def is_done():
        return file.exists() and json.loads(file.read_bytes())["seq"] >= newest

    await until_async(is_done)


async def until_stopped(model, **options):
    for _ in range(20):
        await model.train(groups(), **options)
        await examined(model)


async def test_training_ends_before_the_step_after_a_finding(tmp_path):
    backend = EchoBackend()
    model = trained_model(tmp_path, backend)
    with pytest.raises(art.StoppedError) as raised:
        async with model:
            await until_stopped(model)
    message = (
        "the doctor stopped the training of 'm' after step 3: late: from step 3. the run is long. "
        "Change what it names, and train again: the run goes on at this step."
    )
    assert str(raised.value) == message
    logged = art.LoggedRun(model.run_dir)
    assert logged.state().status == "stopped by the doctor"
    assert logged.state().reason.startswith("StoppedError: the doctor stopped")
    assert logged.steps() == [1, 2, 3, 4]  # the groups of the step that was not trained are kept
    assert [row.step for row in logged.rows()] == [1, 2, 3]
    assert [checkpoint.step for checkpoint in await backend.checkpoints(model)][-1] == 3
    await backend.close()
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (str(copy), copy.status) == (message, "stopped by the doctor")


async def test_a_newest_step_without_a_checkpoint_gets_one_more_step_with_it(tmp_path):
    backend = EchoBackend()
    model = trained_model(tmp_path, backend)
    with pytest.raises(art.StoppedError, match="after step 4"):
        async with model:
            await until_stopped(model, save_checkpoint=False)
    assert [checkpoint.step for checkpoint in await backend.checkpoints(model)] == [4]
    await backend.close()


async def test_a_run_that_was_stopped_goes_on_and_is_not_stopped_by_the_same_finding(tmp_path):
    backend = EchoBackend()
    with pytest.raises(art.StoppedError):
        async with trained_model(tmp_path, backend) as model:
            await until_stopped(model)
    async with trained_model(tmp_path, backend) as model:
        for _ in range(3):
            await model.train(groups())
            await examined(model)
    assert art.LoggedRun(model.run_dir).status() == "finished"
    await backend.close()


async def test_supervised_fine_tuning_ends_before_a_step_too(tmp_path):
    backend = EchoBackend()
    data = [
        art.Trajectory(
            messages_and_choices=[
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": "!"},
            ]
        )
    ] * 4
    model = trained_model(tmp_path, backend)
    async with model:
        await model.register(backend)
        model.run.info.stop.request("a test", "because")
        model.run.info.stop.request("another", "it counts no more")
        with pytest.raises(art.StoppedError, match="a test stopped the training of 'm' after step"):
            await model.train_sft(data, batch_size=1)
    await backend.close()


def test_the_first_request_of_an_end_counts(caplog):
    caplog.set_level(logging.WARNING)
    stop = art.RunInfo(project="p", name="m", run_dir=".").stop
    stop.request("one", "why")
    stop.request("two", "not")
    assert (stop.by, stop.reason) == ("one", "why")
