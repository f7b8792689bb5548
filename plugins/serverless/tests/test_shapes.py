"""The client against the shapes that W&B Training answers with, field for field, and no more."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

import attrs
import orjson
import pytest

import art_core as art
from art_serverless.jobs import JobFailedError

KEY = "a key of the tests"
CHOICE = {
    "index": 0,
    "message": {"role": "assistant", "content": "yes"},
    "finish_reason": "stop",
    "prompt_token_ids": [1, 2],
    "token_ids": [7],
    "logprobs": {"content": [{"logprob": -0.25}]},
}
STARTED = {"type": "training_started", "data": {"num_sequences": 3}}
STEPS = [
    {"type": "gradient_step", "data": {"loss": loss, "grad_norm": 0.5, "learning_rate": 1e-5}}
    for loss in (0.3, 0.2, 0.1)
]
ENDED = {"type": "training_ended", "data": {}}
FAILED = {"type": "training_failed", "data": {"error_message": "the job ran out of memory"}}


@attrs.define
class Service:
    """The state of the service, and the requests that it got."""

    events: list
    steps: list = attrs.field(factory=list)
    asked: list = attrs.field(factory=list)
    told: int = 0

    def answer(self, method, path, query, body):
        if (method, path) == ("POST", "/preview/models"):
            return 200, {**body_of(body), "id": "m1", "entity": "team", "run_id": "r1"}
        if path == "/preview/models/m1/checkpoints":
            return self.checkpoints(method, query, body)
        if (method, path) == ("POST", "/preview/training-jobs"):
            self.told = 0
            return 200, {"id": "j1"}
        if path == "/preview/training-jobs/j1/events":
            return self.events_after(query)
        return 404, {"error": {"message": "no such path"}}

    def checkpoints(self, method, query, body):
        if method == "DELETE":
            gone = [step for step in body["steps"] if step in self.steps]
            missing = [step for step in body["steps"] if step not in self.steps]
            self.steps = [step for step in self.steps if step not in gone]
            return 200, {"deleted_count": len(gone), "not_found_steps": missing}
        items = [{"id": f"c{step}", "step": step, "metrics": {}} for step in self.steps]
        if query.get("order") == ["desc"]:
            items.reverse()
        ids = [item["id"] for item in items]
        start = ids.index(query["after"][0]) + 1 if "after" in query else 0
        shown = items[start : start + min(2, int(query["limit"][0]))]  # small pages
        return 200, {"data": shown, "has_more": start + len(shown) < len(items)}

    def events_after(self, query):
        # Nothing at first, then one event per request: a job that is polled while it runs.
        self.told += 1
        start = int(query["after"][0][1:]) if "after" in query else 0
        shown = self.events[start : start + 1] if self.told > 2 else []
        if shown and shown[0]["type"] == "training_ended":
            self.steps.append(len(self.steps))
        items = [{"id": f"e{start + 1}", **event} for event in shown]
        return 200, {"data": items, "has_more": False}


def body_of(body):
    return {key: body[key] for key in ("entity", "project", "name", "base_model")}


@pytest.fixture
def service(listen):
    def start(*events, steps=(0,)):
        held = Service(list(events), list(steps))

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                where = urlsplit(self.path)
                length = int(self.headers.get("Content-Length", 0))
                body = orjson.loads(self.rfile.read(length)) if length else None
                path = where.path.removeprefix("/v1")
                held.asked.append((self.command, path, body, self.headers["Authorization"]))
                status, value = held.answer(self.command, path, parse_qs(where.query), body)
                data = b"" if value is None else orjson.dumps(value)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, *_):
                pass

        return listen(Handler), held

    return start


def groups():
    return [
        art.TrajectoryGroup(
            art.Trajectory(
                messages_and_choices=[{"role": "user", "content": "hi"}, CHOICE], reward=reward
            )
            for reward in (0.0, 1.0)
        )
    ]


async def test_a_step_from_the_first_request_to_its_row(service, connect, make_model):
    url, held = service(STARTED, *STEPS, ENDED)
    backend, model = connect(url, entity="team"), make_model()
    await model.register(backend)
    assert model.get_inference_name() == "wandb-artifact:///team/demo/agent"
    assert model.get_inference_name(3) == "wandb-artifact:///team/demo/agent:step3"
    result = await model.train(groups(), learning_rate=1e-5, loss_fn="ppo")
    assert result.step == 1
    metrics = model.run.history.last.metrics
    assert metrics["loss/train"] == pytest.approx(0.2)
    assert metrics["loss/grad_norm"] == 0.5
    assert metrics["data/step_num_gradient_steps"] == 3
    assert metrics["data/step_trainer_tokens"] == 2  # counted here: the service does not report it
    assert metrics["time/step_trainer_s"] >= 0
    sent = next(body for _, path, body, _ in held.asked if path == "/preview/training-jobs")
    assert sent.keys() == {"model_id", "trajectory_groups", "experimental_config"}
    assert sent["experimental_config"] == {"learning_rate": 1e-5, "loss_fn": "ppo"}
    (group,) = sent["trajectory_groups"]
    assert [t["reward"] for t in group["trajectories"]] == [0.0, 1.0]
    assert group["trajectories"][0]["messages_and_choices"][1]["token_ids"] == [7]
    assert {authorization for *_, authorization in held.asked} == {f"Bearer {KEY}"}
    await model.close()
    await backend.close()


async def test_a_failed_job_gives_the_services_reason(service, connect, make_model):
    url, _ = service(STARTED, FAILED)
    backend, model = connect(url), make_model()
    await model.register(backend)
    with pytest.raises(JobFailedError, match="the job ran out of memory"):
        await model.train(groups())
    await model.close()
    await backend.close()


async def test_checkpoints_come_in_pages_and_the_newest_stays(service, connect, make_model):
    url, held = service(steps=[0, 1, 2, 3, 4])
    backend, model = connect(url), make_model()
    await model.register(backend)
    assert await model.get_step() == 4
    assert [c.step for c in await model.checkpoints()] == [0, 1, 2, 3, 4]
    assert await backend.delete_checkpoints(model, {2}) == [0, 1, 3]
    assert held.steps == [2, 4]
    await model.close()
    await backend.close()
