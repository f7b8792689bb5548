"""The report of a run's costs, made by the real wandb-workspaces: as JSON, and saved at a server
that answers W&B's GraphQL.
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import art_core as art
from art_core.cli.main import main
from art_wandb import wandb_sink

wr = pytest.importorskip("wandb_workspaces.reports.v2", reason="needs art-wandb[report]")


@pytest.fixture
async def run(tmp_path, monkeypatch):
    """A run of three steps that cost 1.25 dollars, with what the sink of an offline run keeps."""
    monkeypatch.setenv("ART_DIR", str(tmp_path))
    model = art.Model(name="agent", project="p", base_path=tmp_path, sinks=[])
    builder = model.metrics_builder("train")
    builder.register_model_pricing("judge-1", prompt_per_million=2.0, completion_per_million=8.0)
    for step, reward in enumerate([0.25, 0.5, 0.75], start=1):
        usage = art.TokenUsage(input_tokens=100_000, output_tokens=6_250)
        builder.add_usage("judge", usage, provider="acme", model_name="judge-1")
        builder.add_cost("train/search|web", 1 / 6)
        await model.log(metrics={"reward/mean": reward}, split="train", step=step)
    await model.close()
    (model.run_dir / "sinks").mkdir(exist_ok=True)
    (model.run_dir / "sinks" / "wandb.json").write_text('{"id": "agent-1a2b3c4d", "durable": 3}')
    options = {"project": "team-runs", "mode": "offline"}
    (model.run_dir / "sinks.json").write_text(json.dumps({"wandb": {"options": options}}))
    return art.open_run(model.run_dir)


def text_of(spec):
    blocks = spec["spec"]["blocks"]
    return "\n".join(b.get("content") or b["children"][0].get("text", "") for b in blocks)


def written(run, *more):
    assert main(["wandb", "report", str(run.path), *more]) == 0
    return json.loads((run.path / "wandb-report.json").read_text())


async def test_without_an_account_the_report_is_the_json_that_wandb_stores(run, capsys):
    spec = written(run)
    assert "nothing was sent (no API key is known)" in capsys.readouterr().out
    assert spec["project"] == {"name": "team-runs", "entityName": ""}
    assert spec["displayName"] == "Costs of p/agent"
    text = text_of(spec)
    assert "**$1.250000** for 3 trained steps, $0.416667 a step." in text
    assert "One point of reward cost **$2.5**" in text
    assert "| all | 1.250000 | 100% | 0.416667 |" in text
    assert "| \u2003train | 1.250000 | 100% | 0.416667 |" in text
    assert "| \u2003\u2003judge | 0.750000 | 60% | 0.250000 |" in text
    assert "| \u2003\u2003search\\|web | 0.500000 | 40% | 0.166667 |" in text
    assert "| acme/judge-1 | train/judge | 3 | 300000 | 18750 |  | 0.750000 |" in text


async def test_the_curves_are_those_of_the_runs_own_id(run):
    spec = written(run)
    (grid,) = [b for b in spec["spec"]["blocks"] if b["type"] == "panel-grid"]
    (runs,) = grid["metadata"]["runSets"]
    (chosen,) = runs["filters"]["filters"]
    assert (chosen["key"]["name"], chosen["op"]) == ("name", "=")
    assert chosen["value"] == "agent-1a2b3c4d"
    panels = grid["metadata"]["panelBankSectionConfig"]["panels"]
    drawn = {(p["config"]["xAxis"], *p["config"]["metrics"]) for p in panels}
    assert drawn == {
        ("training_step", "costs/cum/all"),
        ("training_step", "costs/train"),
        ("costs/cum/all", "reward/mean"),
        ("training_step", "reward/mean"),
    }


async def test_the_library_reads_the_json_back_as_the_same_report(run):
    from wandb_workspaces.reports.v2.internal import ReportViewspec

    spec = written(run)
    again = wr.Report._from_model(ReportViewspec.model_validate(spec))
    titles = [block.text for block in again.blocks if isinstance(block, wr.H2)]
    assert titles == ["Where the money went", "Costs and reward", "What was bought"]
    assert [panel.title for block in again.blocks if isinstance(block, wr.PanelGrid)
            for panel in block.panels] == [
        "Dollars so far", "Dollars of a step", "Reward over dollars", "Reward over steps",
    ]  # fmt: skip


async def test_a_run_without_costs_or_prices_has_a_report_too(tmp_path, capsys):
    sink = wandb_sink(mode="offline")
    model = art.Model(name="bare", project="p", base_path=tmp_path, sinks=[sink])
    await model.log(metrics={"loss/train": 1.0}, split="train", step=1)
    usage = art.TokenUsage(input_tokens=7)
    model.metrics_builder("train").add_usage("judge", usage, provider="acme", model_name="x")
    await model.log(metrics={"loss/train": 0.5}, split="train", step=2)
    await model.close()
    spec = written(art.open_run(model.run_dir), "--json")
    own_id = json.loads((model.run_dir / "sinks" / "wandb.json").read_text())["id"]
    assert own_id in json.dumps(spec) and spec["project"]["name"] == "p"
    text = text_of(spec)
    assert "No costs were recorded." in text and "No purchases were recorded." in text
    assert "| acme/x | train/judge | 1 | 7 | 0 |  | - |" in text
    assert json.loads(capsys.readouterr().out)["url"] is None


async def test_a_run_that_was_not_sent_names_the_command_that_sends_it(tmp_path, capsys):
    model = art.Model(name="home", project="p", base_path=tmp_path, sinks=[])
    await model.log(metrics={"loss/train": 1.0}, split="train", step=1)
    await model.close()
    assert main(["wandb", "report", str(model.run_dir)]) != 0
    assert "art sync" in capsys.readouterr().err


async def test_without_the_library_the_error_names_the_extra(run, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "art_wandb.report", raising=False)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    assert main(["wandb", "report", str(run.path)]) == 2
    assert "pip install 'art-wandb[report]'" in capsys.readouterr().err


class Wandb(BaseHTTPRequestHandler):
    """Answers the requests of a library that is logged in and saves a report."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        query, variables = asked["query"], asked.get("variables") or {}
        errors = []
        self.server.asked.append((query, variables))
        if "upsertView" in query and self.server.refuses:
            data, errors = None, [{"message": "permission denied"}]
        elif "upsertView" in query:
            known = {"id": "VmlldzoxMjM=", "name": variables["name"], "type": variables["type"]}
            known |= {"displayName": variables["displayName"], "spec": variables["spec"]}
            known |= {"description": variables["description"], "user": {"name": "me"}}
            known |= {"project": {"name": variables["projectName"], "entityName": "team"}}
            known |= {"createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z"}
            data = {"upsertView": {"view": known, "inserted": True}}
        elif "models(" in query or "projects" in query.lower():
            project = {"id": "1", "name": "team-runs", "entityName": "team"}
            project |= {"createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False}
            project["user"] = None
            page = {"endCursor": None, "hasNextPage": False}
            data = {"models": {"edges": [{"node": project, "cursor": "1"}], "pageInfo": page}}
        else:
            viewer = {"id": "u1", "username": "me", "entity": "team", "flags": "{}", "teams": {}}
            data = {"viewer": viewer, "serverInfo": {}}
        body = json.dumps({"data": data} | ({"errors": errors} if errors else {})).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Wandb) as server:
        server.asked, server.refuses = [], False
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield server
        server.shutdown()


@pytest.fixture
def online(run, server):
    """The run as if it had been sent online."""
    options = {"project": "team-runs", "entity": "team"}
    (run.path / "sinks.json").write_text(json.dumps({"wandb": {"options": options}}))


async def test_a_report_that_wandb_refuses_is_an_error_with_the_reason(run, server, online, capsys):
    server.refuses = True
    assert main(["wandb", "report", str(run.path)]) == 2
    assert "permission denied" in capsys.readouterr().err


async def test_with_an_account_the_report_is_saved_in_the_runs_project(run, server, online, capsys):
    assert main(["wandb", "report", str(run.path), "--draft", "--json"]) == 0
    url = json.loads(capsys.readouterr().out)["url"]
    assert "/team/team-runs/reports/Costs-of-p/agent--" in url
    ((_, saved),) = [asked for asked in server.asked if "upsertView" in asked[0]]
    assert (saved["entityName"], saved["projectName"]) == ("team", "team-runs")
    assert (saved["type"], saved["displayName"]) == ("runs/draft", "Costs of p/agent")
    assert "**$1.250000**" in saved["spec"]
