"""What the page's server answers, over HTTP."""

from __future__ import annotations

import csv
import io
import json
import re
import socket
from html.parser import HTMLParser
from pathlib import Path

import httpx2
import orjson
import pytest

import art_core as art
from art_board import export, server
from art_board.app import STATIC, create_app
from art_board.curves import curves_of, decimated
from art_board.export import page_of
from art_board.library import Library
from art_core.reports import board
from art_core.reports.follow import Follower


@pytest.fixture(scope="session")
def taxonomy():
    return art.Plugins.discover().taxonomy()


@pytest.fixture
def library(shelf, taxonomy):
    return Library([shelf], taxonomy)


def client(library, **headers):
    transport = httpx2.ASGITransport(create_app(library), raise_app_exceptions=False)
    return httpx2.AsyncClient(
        transport=transport, base_url="http://127.0.0.1:7007", headers=headers
    )


async def ask(library, path, **query):
    async with client(library) as http:
        answer = await http.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def id_of(library, name):
    return next(key for key, run in library.runs().items() if run.name == name)


@pytest.fixture
def run(library):
    return f"/api/run/{id_of(library, 'inbox/agent-001')}"


async def test_the_list_has_every_run_with_the_columns_asked_for(library):
    page = await ask(library, "/api/runs", columns="step,reward/mean,no/such")
    assert page["total"] == 3
    assert [row["run"] for row in page["rows"]] == [
        "inbox/agent-001", "inbox/agent-002", "maths/agent-001",
    ]  # fmt: skip
    assert page["rows"][0]["values"].keys() == {"step", "reward/mean"}
    assert page["statuses"] == {"finished": 3}
    assert {"costs/cum/all", "val/reward.best", "reward_per_dollar"} <= set(page["columns"])
    assert page["directions"]["loss/train"] == "lower"


@pytest.mark.parametrize("key", ["reward/mean", "loss/train"])
async def test_the_better_value_comes_first_and_the_other_way_round(library, key):
    page = await ask(library, "/api/runs", sort=key, columns=key)
    values = [row["values"][key] for row in page["rows"]]
    assert values == sorted(values, reverse=key == "reward/mean")
    page = await ask(library, "/api/runs", sort=key, columns=key, reverse="1")
    assert [row["values"][key] for row in page["rows"]] == values[::-1]


async def test_runs_without_a_value_come_last_in_both_directions(tmp_path, taxonomy):
    for name, reward in (("a", None), ("b", 1.0), ("c", 2.0)):
        model = art.Model(name=name, project="p", sinks=[], base_path=tmp_path)
        metrics = {"loss/train": 1.0} | ({} if reward is None else {"mine": reward})
        await model.log([], split="train", step=1, metrics=metrics)
        await model.close()
    library = Library([tmp_path], taxonomy)
    for reverse, order in (("", ["p/c", "p/b", "p/a"]), ("1", ["p/b", "p/c", "p/a"])):
        page = await ask(library, "/api/runs", sort="train/mine", reverse=reverse)
        assert [row["run"] for row in page["rows"]] == order


async def test_a_long_list_comes_page_by_page(tmp_path, taxonomy):
    for n in range(25):
        directory = tmp_path / "p" / "models" / f"run-{n:02}"
        directory.mkdir(parents=True)
        row = {"step": n, "recorded_at": "2026-03-01T12:00:00", "reward/mean": n / 10}
        (directory / "history.jsonl").write_bytes(orjson.dumps(row) + b"\n")
    library = Library([tmp_path], taxonomy)
    names = []
    for offset in (0, 10, 20, 30):
        query = {"sort": "reward/mean", "offset": offset, "limit": 10}
        page = await ask(library, "/api/runs", **query)
        assert page["total"] == 25
        names += [row["run"] for row in page["rows"]]
    assert names == [f"p/run-{n:02}" for n in range(24, -1, -1)]


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ("maths", ["maths/agent-001"]),
        ("agent-001 inbox", ["inbox/agent-001"]),
        ("step>=20", ["inbox/agent-001"]),
        ("project=maths", ["maths/agent-001"]),
        ("step<20 status=finished", ["inbox/agent-002", "maths/agent-001"]),
    ],
)
async def test_filters_are_words_and_conditions(library, filters, names):
    page = await ask(library, "/api/runs", q=filters)
    assert [row["run"] for row in page["rows"]] == names


@pytest.mark.parametrize("query", [{"q": "reward/meen>1"}, {"q": "step>many"}, {"sort": "no"}])
async def test_a_wrong_filter_or_column_is_named(library, query):
    async with client(library) as http:
        answer = await http.get("/api/runs", params=query)
    assert answer.status_code == 400
    assert next(iter(query.values())).partition(">")[0] in answer.json()["error"]


async def test_the_csv_is_that_of_the_leaderboard_command(library, shelf, capsys):
    from art_core.cli.main import main

    async with client(library) as http:
        wide = await http.get("/api/runs.csv", params={"status": "ended", "sort": "reward/mean"})
        long = await http.get(
            "/api/runs.csv", params={"form": "long", "status": "ended", "sort": "reward/mean"}
        )
    for answer, option in ((wide, "--csv"), (long, "--long")):
        main(["leaderboard", str(shelf), option])
        assert answer.text == capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO(wide.text)))
    assert len(rows) == 3
    assert float(rows[0]["reward_per_dollar"]) > 0


async def test_the_matrix_has_models_by_projects(library):
    found = await ask(library, "/api/matrix", key="reward/mean.best")
    assert found["projects"] == ["inbox", "maths"]
    assert found["models"]["agent-001"].keys() == {"inbox", "maths"}
    assert found["models"]["agent-002"].keys() == {"inbox"}


async def test_a_run_has_its_cost_tree_and_metrics(library, run):
    about = await ask(library, run)
    assert (about["status"], about["step"], about["attempts"]) == ("finished", 20, 2)
    names = [(row["path"], row["depth"]) for row in about["costs"]]
    assert names == [("all", 0), ("train", 1), ("train/gpu", 2), ("train/judge", 2)]
    whole, train, gpu, judge = (row["usd"] for row in about["costs"])
    assert whole == pytest.approx(train) == pytest.approx(gpu + judge)
    assert about["metrics"]["loss/train"]["direction"] == "lower"
    (other,) = about["signal"]  # rows of `model.log` train nothing
    assert (other["name"], other["usd"]) == ("other", pytest.approx(whole))
    assert await ask(library, f"{run}/findings") == []
    bought = await ask(library, f"{run}/purchases")
    assert bought["per_step"] == pytest.approx(whole / 20)
    assert bought["reward"]["key"] == "reward/mean"


async def test_a_curve_has_its_place_on_every_axis(library, run):
    found = await ask(library, f"{run}/curves", keys="reward/mean,val/reward")
    curve = found["curves"]["reward/mean"]
    logged = library.run(run.rpartition("/")[2])
    assert dict(zip(curve["step"], curve["y"], strict=True)) == logged.curve("reward/mean")
    assert curve["usd"] == pytest.approx(list(logged.curve("costs/cum/all").values()))
    for axis in ("wall", "tokens", "usd"):
        assert curve[axis] == sorted(curve[axis])
        assert None not in curve[axis]
    assert found["curves"]["val/reward"]["step"] == [10, 20]
    attempts = [(each["attempt"], each["step"], each["last"]) for each in found["attempts"]]
    assert attempts == [(1, 1, 12), (2, 11, 20)]


async def test_a_part_of_a_curve_can_be_asked_for(library, run):
    found = await ask(library, f"{run}/curves", keys="reward/mean", first=5, last=8)
    assert found["curves"]["reward/mean"]["step"] == [5, 6, 7, 8]


def test_decimation_keeps_the_extremes_and_the_ends():
    values = [0.0] * 100_000
    values[777], values[50_001], values[0], values[-1] = 9.0, -9.0, 1.0, 2.0
    chosen = decimated(values, 200)
    assert len(chosen) <= 200
    assert {0, 777, 50_001, 99_999} <= set(chosen)
    assert chosen == sorted(set(chosen))
    assert decimated(values[:200], 200) == list(range(200))


def test_rows_of_art_have_the_wall_time_of_their_clock(tmp_path):
    directory = tmp_path / "p" / "models" / "m"
    directory.mkdir(parents=True)
    rows = [
        {"step": n, "recorded_at": f"2026-03-01T12:00:{n:02}", "reward/mean": 0.1 * n}
        for n in (1, 2, 4)
    ]
    (directory / "history.jsonl").write_bytes(b"".join(orjson.dumps(r) + b"\n" for r in rows))
    follower = Follower(art.open_run(directory))
    follower.read(["reward/mean"])
    curve = curves_of(follower, ["reward/mean"])["curves"]["reward/mean"]
    assert curve["wall"] == [0.0, 1.0, 3.0]
    assert curve["usd"] == [None, None, None]


async def test_groups_have_rewards_side_by_side_and_failures_their_traceback(library, run):
    steps = await ask(library, f"{run}/steps")
    assert steps == {"train": list(range(1, 21)), "val": [10, 20]}
    groups = await ask(library, f"{run}/groups", step=20)
    assert [group["scenario"] for group in groups] == [f"question-{n}" for n in range(4)]
    stored = library.run(run.rpartition("/")[2]).groups(20)
    assert [each["reward"] for each in groups[1]["attempts"]] == stored[1].rewards
    assert groups[1]["asked"] == "Which invoice of March is not paid? (question 1)"
    (failure,) = groups[0]["failures"]
    assert (failure["type"], failure["reason"]) == ("TimeoutError", "raised")
    assert "TimeoutError: the mail server" in failure["traceback"]


async def test_an_attempt_is_a_conversation_with_tokens(library, run):
    found = await ask(library, f"{run}/attempt", step=20, group=1, place=2)
    roles = [message["role"] for message in found["conversation"]]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]
    _, _, calling, _, answer = found["conversation"]
    assert calling["calls"][0]["name"] == "search_inbox"
    assert "".join(token for token, *_ in answer["tokens"]).strip() == answer["text"]
    assert all(logprob <= 0 and isinstance(token, int) for _, logprob, token, _ in answer["tokens"])
    assert found["metrics"].keys() >= {"correct", "sources"}


@pytest.mark.parametrize("place", [{"group": 9}, {"group": -1}, {"place": 99}])
async def test_an_attempt_that_is_not_there_is_a_404(library, run, place):
    async with client(library) as http:
        answer = await http.get(f"{run}/attempt", params={"step": 20, **place})
        assert answer.status_code == 404
        assert (await http.get("/api/run/0000")).status_code == 404
        missing = await http.get(f"{run}/groups", params={"step": 99})
    assert missing.status_code == 400
    assert "stored: 1, 2" in missing.json()["error"]


@pytest.mark.parametrize(
    "query",
    [
        "groups?split=../../maths&step=1",
        "groups?step=many",
        "groups?step=inf",
        "search?q=",
        "search?q=x&before=y",
        "search?q=x&split=..",
        "curves?points=inf",
    ],
)
async def test_a_request_that_makes_no_sense_is_refused(library, run, query):
    async with client(library) as http:
        answer = await http.get(f"{run}/{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]


async def test_a_search_finds_texts_calls_and_failures_newest_first(library, run):
    found = await ask(library, f"{run}/search", q="INVOICE 3-17")
    assert found["hits"][0]["step"] == 20
    assert "Invoice 3-17" in found["hits"][0]["text"]
    assert found["next"] is not None
    more = await ask(library, f"{run}/search", q="invoice 3-17", before=found["next"])
    assert more["hits"][0]["step"] == found["next"]
    failed = await ask(library, f"{run}/search", q="mail server")
    assert {hit["place"] for hit in failed["hits"]} == {None}
    assert (await ask(library, f"{run}/search", q="no such words"))["hits"] == []


async def test_evaluations_have_their_interval(library, run):
    found = await ask(library, f"{run}/evaluations")
    assert [(each["split"], each["step"], each["scenarios"]) for each in found] == [
        ("val", 10, 12), ("val", 20, 12),
    ]  # fmt: skip
    assert all(each["low"] < each["reward"] < each["high"] for each in found)
    assert found[0]["pass_at"].keys() == {"1", "2"}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:7007", 200),
        ("localhost", 200),
        ("[::1]:7007", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:7007", 403),
        ("", 403),
    ],
)
async def test_requests_under_other_names_are_refused(library, host, status):
    async with client(library, host=host) as http:
        assert (await http.get("/api/runs")).status_code == status


async def test_other_sites_and_changes_are_refused(library):
    async with client(library) as http:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            assert (await http.request(method, "/api/runs")).status_code == 405
        from_elsewhere = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}
        assert (await http.get("/api/runs", headers=from_elsewhere)).status_code == 403
        link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
        assert (await http.get("/", headers=link)).status_code == 200
        assert (await http.get("/static/../app.py")).status_code == 404


async def test_every_answer_has_the_strict_policy(library):
    async with client(library) as http:
        for path in ("/", "/api/runs", "/static/app.js", "/none"):
            headers = (await http.get(path)).headers
            assert headers["content-security-policy"].startswith("default-src 'self';")
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"


class Scripts(HTMLParser):
    """Collects scripts, styles, handlers and what a page loads."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_the_page_has_no_inline_script_and_loads_nothing_from_elsewhere():
    page = Scripts()
    page.feed((STATIC / "index.html").read_text())
    for tag, attributes in page.found:
        assert tag != "script" or attributes["src"].startswith("/static/")
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        assert attributes.get("href", "/").startswith(("/", "#"))


def test_no_script_makes_elements_from_markup():
    for file in STATIC.glob("*.js"):
        text = file.read_text()
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|srcdoc|https?://",
            text,
        ), file
        assert text.count("\n") <= 400


def test_scripts_fit_into_one_scope_for_the_exported_file():
    names = re.compile(r"^(?:export )?(?:async )?(?:function|const|let|class) (\w+)", re.MULTILINE)
    found = [name for file in STATIC.glob("*.js") for name in names.findall(file.read_text())]
    assert sorted(found) == sorted(set(found))
    assert {f.stem for f in STATIC.glob("*.js")} == set(export.modules_of("app"))


async def test_the_exported_file_holds_the_run_and_runs_only_its_own_script(library, run):
    entry = library.entry(id_of(library, "inbox/agent-001"), library.run(run.rpartition("/")[2]))
    page = page_of(entry)
    parsed = Scripts()
    parsed.feed(page)
    assert [
        t
        for t, a in parsed.found
        if t in ("script", "link", "img", "iframe") and (a.get("src") or a.get("href"))
    ] == []
    policy = next(a["content"] for t, a in parsed.found if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    data = json.loads(re.search(r'id="answers">(.*?)</script>', page)[1])
    assert data[run]["run"] == "inbox/agent-001"
    assert data["left_out"] == 0
    assert data[run]["path"] == "inbox/agent-001"
    assert str(library.directories[0]) not in page
    assert data[f"{run}/attempt?group=1&place=2&split=train&step=20"]["scenario"] == "question-1"
    async with client(library) as http:
        answer = await http.get(f"{run}/export.html")
    assert answer.text == page
    assert answer.headers["content-disposition"] == 'attachment; filename="inbox-agent-001.html"'


async def test_markup_in_a_run_stays_text_in_the_exported_file(tmp_path, taxonomy):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)><!--"
    model = art.Model(name="m", project="p", sinks=[], base_path=tmp_path)
    group = art.TrajectoryGroup(
        [
            art.Trajectory(
                reward=1.0, messages_and_choices=[{"role": "user", "content": evil}], logs=[evil]
            )
        ],
        metadata={"scenario_id": evil},
    )
    await model.log([group], split="train", step=1)
    await model.close()
    library = Library([tmp_path], taxonomy)
    (entry,) = library.listed()
    page = page_of(entry)
    assert evil not in page
    assert page.count("<script") == 2
    assert "\\u003c/script\\u003e" in page


def test_a_run_with_many_bytes_is_exported_in_part(library, run, monkeypatch):
    monkeypatch.setattr(export, "MAX_BYTES", 100_000)
    entry = library.entry(id_of(library, "inbox/agent-001"), library.run(run.rpartition("/")[2]))
    found = export.answers(entry)
    assert found["left_out"] > 0
    assert 20 in found[f"{run}/steps"]["train"]


async def test_a_directory_that_is_a_run_is_one_run(shelf, taxonomy):
    page = await ask(Library([shelf / "maths" / "models" / "agent-001"], taxonomy), "/api/runs")
    assert [row["run"] for row in page["rows"]] == ["maths/agent-001"]


async def test_a_directory_without_runs_is_an_empty_list(tmp_path, taxonomy):
    (tmp_path / "notes.txt").write_text("no run")
    assert (await ask(Library([tmp_path], taxonomy), "/api/runs"))["total"] == 0
    with pytest.raises(art.ConfigError, match="no directory .*none"):
        Library([tmp_path / "none"], taxonomy).runs()


async def test_a_run_that_cannot_be_read_is_listed_with_the_reason(tmp_path, taxonomy):
    (tmp_path / "p" / "models" / "odd" / "history.jsonl").mkdir(parents=True)
    library = Library([tmp_path], taxonomy)
    (row,) = (await ask(library, "/api/runs", sort="reward/mean"))["rows"]
    assert (row["status"], row["values"]) == ("unreadable", {})
    assert "directory" in row["problem"]
    about = await ask(library, f"/api/run/{row['id']}")
    assert about["metrics"] == {}
    async with client(library) as http:
        answer = await http.get(f"/api/run/{row['id']}/curves", params={"keys": "reward/mean"})
    assert answer.status_code == 409


async def test_torn_and_foreign_lines_are_passed_over(tmp_path, taxonomy):
    model = art.Model(name="m", project="p", sinks=[], base_path=tmp_path)
    for step in (1, 2):
        await model.log([], split="train", step=step, metrics={"loss/train": float(step)})
    await model.close()
    with (model.run_dir / "history.jsonl").open("ab") as file:
        file.write(b'not json\n\xff\xfe\n{"step": 3, "loss/tr')
    library = Library([tmp_path], taxonomy)
    (name,) = library.runs()
    found = await ask(library, f"/api/run/{name}/curves", keys="loss/train")
    assert found["curves"]["loss/train"]["y"] == [1.0, 2.0]
    assert (await ask(library, "/api/runs"))["rows"][0]["problem"] is None


async def test_trajectories_that_are_being_written_are_shown_up_to_there(tmp_path, taxonomy):
    model = art.Model(name="m", project="p", sinks=[], base_path=tmp_path)
    group = art.TrajectoryGroup([art.Trajectory(reward=1.0)], metadata={"scenario_id": "whole"})
    await model.log([group], split="train", step=1)
    with (model.run_dir / "trajectories" / "train" / "0001.jsonl").open("ab") as file:
        file.write(b'{"trajectories": [{"messages_and')
    library = Library([tmp_path], taxonomy)
    (name,) = library.runs()
    found = await ask(library, f"/api/run/{name}/groups", step=1)
    assert [group["scenario"] for group in found] == ["whole"]
    await model.close()


async def test_summaries_are_read_again_only_when_a_log_changed(tmp_path, taxonomy, monkeypatch):
    model = art.Model(name="m", project="p", sinks=[], base_path=tmp_path)
    await model.log([], split="train", step=1, metrics={"loss/train": 1.0})
    library = Library([tmp_path], taxonomy)
    reads = []
    monkeypatch.setattr(
        "art_board.library.read_place", lambda *a: reads.append(a) or board.read_place(*a)
    )
    library.listed(), library.listed()
    assert len(reads) == 1
    await model.log([], split="train", step=2, metrics={"loss/train": 0.5})
    (entry,) = library.listed()
    assert len(reads) == 2
    assert entry.place.values["loss/train"] == 0.5
    await model.close()


async def events_of(lines, count):
    found, event = [], {}
    async for line in lines:
        name, _, value = line.partition(": ")
        if not line and event:
            found.append(event)
            event = {}
            if len(found) >= count:
                break
        elif line:
            event[name] = value
    return found


async def lines_of(stream):
    async for chunk in stream:
        for line in chunk.decode().split("\n")[:-1]:
            yield line


async def test_new_rows_arrive_and_a_reader_that_comes_back_gets_what_it_missed(
    tmp_path, monkeypatch
):
    from art_board import live

    monkeypatch.setattr(live, "EVERY_S", 0.01)
    model = art.Model(name="m", project="p", sinks=[], base_path=tmp_path)
    await model.log([], split="train", step=1, metrics={"loss/train": 1.0})
    run = art.open_run(model.run_dir)
    stream = live.events(run)
    retry, status, row = await events_of(lines_of(stream), 3)
    assert retry == {"retry": "2000"}
    assert (status["event"], json.loads(status["data"])) == ("status", {"status": "running"})
    assert (row["event"], row["id"], json.loads(row["data"])["step"]) == ("row", "1", 1)
    await stream.aclose()
    for step in (2, 3):
        await model.log([], split="train", step=step, metrics={"loss/train": 1.0})
    again = live.events(run, after=1)
    _, _, second, third = await events_of(lines_of(again), 4)
    assert [second["id"], third["id"]] == ["2", "3"]
    await model.close()
    (ended,) = await events_of(lines_of(again), 1)
    assert json.loads(ended["data"]) == {"status": "finished"}
    await again.aclose()


def test_a_port_in_use_is_an_error_if_it_was_asked_for_and_passed_over_if_not(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(art.ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            server._listener(port)
        monkeypatch.setattr(server, "DEFAULT_PORT", port)
        with server._listener(None) as found:
            assert found.getsockname()[0] == "127.0.0.1"
            assert found.getsockname()[1] != port


def test_the_command_writes_a_file_and_refuses_half_a_request(shelf, tmp_path, capsys):
    from art_core.cli.main import main

    out = tmp_path / "run.html"
    assert (
        main(["board", str(shelf), "--export", "maths/agent-001", "--out", str(out), "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["bytes"] == out.stat().st_size
    assert main(["board", "--export", "x"]) == 2
    assert "--out FILE" in capsys.readouterr().err
    assert main(["board", str(tmp_path / "none"), "--port", "0"]) == 2
    assert main(["board", "--port", "70000"]) == 2
    assert main(["board", str(shelf), "--export", "maths/agent-001", "--out", str(tmp_path)]) == 2


def test_an_address_of_a_run_does_not_depend_on_how_it_was_named(shelf, taxonomy, monkeypatch):
    monkeypatch.chdir(shelf.parent)
    relative = Library([Path(shelf.name)], taxonomy)
    assert relative.runs().keys() == Library([shelf], taxonomy).runs().keys()
