"""The client by itself: its errors when the service, the network or the user is at fault."""

from __future__ import annotations

import math
import threading
from http.server import BaseHTTPRequestHandler

import orjson
import pytest

import art_core as art
from art_core.base.errors import BackendError, ConfigError
from art_core.testing.backend import attempts
from art_serverless.backend import ServerlessBackend
from art_serverless.jobs import JobResult, combined, costs_of, metrics_of
from art_serverless.protocol import Address, InferenceName
from art_serverless.remote_model import Journal, Pending

KEY = "a key of the tests"


@pytest.fixture
def service(listen):
    """A server that answers as a test decides: `service(status, body, kind)` gives its URL."""

    def start(status=200, body=b"{}", kind="application/json", headers=(), script=None):
        asked = []

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                length = int(self.headers.get("Content-Length", 0))
                asked.append((self.command, self.path, self.rfile.read(length)))
                answers = {"status": status, "body": body} | (script(asked) if script else {})
                self.send_response(answers["status"])
                self.send_header("Content-Type", kind)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answers["body"])))
                self.end_headers()
                self.wfile.write(answers["body"])

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, *_):
                pass

        return listen(Handler), asked

    return start


REGISTERED = orjson.dumps(
    {"id": "m1", "entity": "team", "project": "demo", "name": "agent", "base_model": "base"}
)


async def refusal(connect, make_model, url, error=ConfigError, **options):
    backend, model = connect(url, **options), make_model()
    try:
        with pytest.raises(error) as caught:
            await model.register(backend)
    finally:
        await model.close()
        await backend.close()
    assert KEY not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        (401, ConfigError, "has it expired"),
        (403, ConfigError, "The key may not do this"),
        (404, BackendError, "404: no"),
        (409, ConfigError, "409: no"),
        (422, ConfigError, "422: no"),
        (429, BackendError, "The quota is used up"),
        (500, BackendError, "its own log has details"),
        (418, BackendError, "418: no"),
    ],
)
async def test_each_status_becomes_an_error_that_says_what_to_do(
    service, connect, make_model, status, error, said
):
    url, asked = service(status, orjson.dumps({"error": {"message": "no"}}))
    assert said in await refusal(connect, make_model, url, error)
    assert len(asked) == 1  # a POST is not sent again


async def test_a_proxy_that_answers_html_is_told_apart(service, connect, make_model):
    url, _ = service(200, b"<html>please log in</html>", "text/html")
    text = await refusal(connect, make_model, url, BackendError)
    assert "text/html" in text and "proxy" in text


async def test_html_with_an_error_status_is_shown_as_it_is(service, connect, make_model):
    url, _ = service(502, b"<html>bad gateway</html>", "text/html")
    assert "bad gateway" in await refusal(connect, make_model, url, BackendError)


@pytest.mark.parametrize(
    ("body", "said"),
    [(b"{}", "has no 'id'"), (b"[]", "not with JSON"), (b'{"id": ""}', "has no 'id'")],
)
async def test_an_answer_without_what_is_needed_is_an_error(
    service, connect, make_model, body, said
):
    url, _ = service(200, body)
    assert said in await refusal(connect, make_model, url, BackendError)


async def test_a_service_that_is_not_there_is_said_with_its_address(connect, make_model):
    text = await refusal(connect, make_model, "http://127.0.0.1:9/v1", BackendError)
    assert "cannot reach http://127.0.0.1:9/v1" in text and "art serve" in text


async def test_a_service_that_does_not_answer_is_given_up(service, connect, make_model):
    release = threading.Event()

    def script(asked):
        release.wait(5)
        return {}

    url, _ = service(script=script)
    text = await refusal(connect, make_model, url, BackendError, register_timeout_s=0.3)
    release.set()
    assert "did not answer POST /preview/models within 0.3 s" in text


async def test_reads_are_tried_again_and_a_pause_that_is_asked_for_is_kept(
    service, connect, make_model
):
    def script(asked):
        if asked[-1][0] == "POST":
            return {"body": REGISTERED}
        if len(asked) < 4:
            return {"status": 503, "body": b"busy"}
        return {"body": orjson.dumps({"data": [{"id": "c", "step": 7}], "has_more": False})}

    url, asked = service(headers=[("Retry-After", "0.01")], script=script)
    backend, model = connect(url), make_model()
    await model.register(backend)
    assert await model.get_step() == 7
    assert [kind for kind, _, _ in asked] == ["POST", "GET", "GET", "GET"]
    await model.close()
    await backend.close()


async def test_another_base_model_than_the_registered_one_is_refused(service, connect, make_model):
    body = REGISTERED.replace(b'"base"', b'"another"')
    url, _ = service(200, body)
    assert "'another'" in await refusal(connect, make_model, url)


@pytest.mark.parametrize("url", ["gpu-box:8080/v1", "ftp://gpu-box", "http://"])
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(ConfigError, match="base_url"):
        art.backend("serverless", base_url=url, api_key=KEY)


def test_a_missing_key_says_where_it_could_come_from(monkeypatch):
    for name in ("ART_API_KEY", "WANDB_API_KEY", "ART_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="set WANDB_API_KEY"):
        art.backend("serverless")
    with pytest.raises(ConfigError, match="set ART_API_KEY"):
        art.backend("serverless", base_url="http://gpu-box/v1")
    monkeypatch.setenv("WANDB_API_KEY", "W&B's")
    for url in ("http://gpu-box/v1", "https://wandb.ai.example.org/v1", "https://notwandb.ai/v1"):
        with pytest.raises(ConfigError, match="set ART_API_KEY"):
            art.backend("serverless", base_url=url)  # W&B's key is for W&B
    assert ServerlessBackend()._api.api_key == "W&B's"
    monkeypatch.setenv("ART_API_KEY", "mine")
    backend = ServerlessBackend(base_url="http://gpu-box/v1")
    assert "mine" not in repr(backend._api)


async def test_a_closed_backend_and_a_model_of_nobodys_are_told(serving, connect, make_model):
    backend, model = connect(serving()), make_model()
    with pytest.raises(ConfigError, match="is not registered"):
        await backend.step(model)
    await backend.close()
    with pytest.raises(BackendError, match="closed"):
        await backend.register(model)
    await model.close()


def test_names_of_a_model_go_both_ways():
    address = Address(entity="my team", project="demo", name="agent")
    assert address.uri == "wandb-artifact:///my%20team/demo/agent"
    whole = InferenceName(entity="my team", project="demo", name="agent", step=12)
    assert InferenceName.parse(address.uri + ":step12") == whole
    assert InferenceName.parse("agent@3") == InferenceName(name="agent", step=3)
    assert InferenceName.parse("agent") == InferenceName(name="agent")
    assert InferenceName.parse("") == InferenceName(name="")
    assert InferenceName.parse("agent@latest").step is None


def job(*steps, seconds=2.0):
    return JobResult(gradient_steps=steps, seconds=seconds, ended={})


def test_gradient_steps_are_averaged_and_counts_added_up():
    steps = [{"loss": 1.0, "data/step_trainer_tokens": 10.0}, {"loss": 3.0}]
    assert combined(steps, ["data/step_trainer_tokens"]) == {
        "loss": 2.0,
        "data/step_trainer_tokens": 10.0,
    }


def test_metrics_get_canonical_names_and_costs_go_apart(make_model, caplog):
    taxonomy = make_model().plugins.taxonomy()
    told = job(
        {"loss": 1.0, "grad_norm": 2.0, "costs/gpu": 0.25, "nonsense/x": 1.0},
        {"loss": 2.0, "grad_norm": 4.0, "costs/gpu": 0.25, "data/step_trainer_tokens": 5.0},
    )
    assert metrics_of(told, taxonomy) == {
        "loss/train": 1.5,
        "loss/grad_norm": 3.0,
        "data/step_trainer_tokens": 5.0,
        "data/step_num_gradient_steps": 2.0,
        "time/step_trainer_s": 2.0,
    }
    assert costs_of(told) == {"gpu": 0.5}
    sums = {"costs/all": 3.0, "costs/train": 3.0, "costs/train/a": 1.0, "costs/cum/train/a": 9.0}
    assert costs_of(job({**sums, "costs/train/b": 2.0})) == {"train/a": 1.0, "train/b": 2.0}
    assert "'nonsense/x' is left out" in caplog.text


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("cost_per_hour_usd", -1.0),
        ("cost_per_hour_usd", float("nan")),
        ("request_timeout_s", 0),
        ("register_timeout_s", -1),
        ("stall_timeout_s", float("nan")),
        ("stall_timeout_s", "1800"),
    ],
)
def test_a_price_or_a_limit_that_cannot_be_is_refused(option, value):
    with pytest.raises(ConfigError, match=option):
        ServerlessBackend(base_url="http://gpu-box/v1", api_key=KEY, **{option: value})


STARTED = {"id": "1", "type": "training_started", "data": {"num_sequences": 1}}
STEP = {"id": "2", "type": "gradient_step", "data": {"loss": 1.0, "costs//gpu": 0.5}}
ENDED = {"id": "3", "type": "training_ended", "data": {"step": 1}}


def answering(submitted, *, found, events):
    """The answers of a service to each request, the submission of a job first."""

    def script(asked):
        method, path, _ = asked[-1]
        where = path.partition("?")[0]
        if method == "POST":
            return submitted if where.endswith("training-jobs") else {"body": REGISTERED}
        if where.endswith("training-jobs"):
            return found
        return events if where.endswith("/events") else {"body": b'{"data": []}'}

    return script


def page(*items):
    return {"body": orjson.dumps({"data": items, "has_more": False})}


GONE = {"status": 404, "body": b'{"error": {"message": "gone"}}'}
BAD_GATEWAY = {"status": 502, "body": b"<html>bad gateway</html>"}


async def test_a_step_whose_answer_a_proxy_lost_is_looked_up_and_not_sent_again(
    service, connect, make_model, caplog
):
    script = answering(BAD_GATEWAY, found=page({"id": "j1"}), events=page(STARTED, STEP, ENDED))
    url, asked = service(script=script)
    backend, model = connect(url), make_model()
    await model.register(backend)
    assert (await model.train([], learning_rate=1e-5)).step == 1
    posts = [path for method, path, _ in asked if method == "POST"]
    assert sum(path.endswith("training-jobs") for path in posts) == 1
    assert "cost '/gpu' of $0.5 is left out" in caplog.text  # and the step is not lost for it
    assert Journal(model.run_dir).read() is None
    await model.close()
    await backend.close()


@pytest.mark.parametrize("status", [404, 405, 422])
async def test_a_service_that_cannot_look_up_jobs_does_not_keep_a_model_from_its_next_step(
    service, connect, make_model, status
):
    lost = {"status": status, "body": b"{}"}
    url, _ = service(script=answering(BAD_GATEWAY, found=lost, events=GONE))
    backend, model = connect(url), make_model()
    await model.register(backend)
    with pytest.raises(BackendError, match="bad gateway"):
        await model.train([])
    assert Journal(model.run_dir).read().job_id is None
    await model.register(backend)
    assert Journal(model.run_dir).read() is None
    await model.close()
    await backend.close()


async def test_a_job_that_the_service_forgot_is_forgotten_here(service, connect, make_model):
    script = answering({"body": b'{"id": "j1"}'}, found=page(), events=GONE)
    url, _ = service(script=script)
    backend, model = connect(url), make_model()
    await model.register(backend)
    with pytest.raises(BackendError, match="gone"):
        await model.train([])
    assert Journal(model.run_dir).read() is None
    Journal(model.run_dir).write(Pending(key="k", model_id="m1", step=1, job_id="j1"))
    await model.register(backend)
    assert Journal(model.run_dir).read() is None
    await model.close()
    await backend.close()


async def test_a_number_that_json_cannot_hold_is_refused_and_not_made_the_default(
    serving, connect, make_model
):
    backend, model = connect(serving()), make_model()
    await model.register(backend)
    with pytest.raises(ConfigError, match="truncated_importance_sampling=inf can't be sent"):
        await model.train([], truncated_importance_sampling=math.inf)
    assert (await model.train([], truncated_importance_sampling=1e9)).step == 1
    await model.close()
    await backend.close()


async def test_a_service_that_reports_no_cost_is_said_once(
    serving, connect, make_model, monkeypatch, caplog
):
    monkeypatch.setattr("art_serverless.remote_model.costs_of", lambda job: {})
    backend, model = connect(serving()), make_model()
    await model.register(backend)
    for _ in range(2):
        await model.train(await attempts(model, (0.0, 1.0)), mask_truncated=False)
    assert caplog.text.count("the service does not report the cost of jobs") == 1
    await model.close()
    await backend.close()


async def test_an_older_step_at_the_service_teaches(serving, connect, make_model):
    backend, model = connect(serving()), make_model()
    await model.register(backend)
    await model.train(await attempts(model, (0.0, 1.0)), mask_truncated=False)
    teacher = await art.teacher(model, step=0)
    groups = await attempts(model, (0.0, 0.0))
    result = await model.train(groups, teacher=teacher, mask_truncated=False)
    assert result.step == 2
    scores = [t.messages_and_choices[1].teacher_logprobs for t in groups[0]]
    own = [t.messages_and_choices[1].logprobs.content[0].logprob for t in groups[0]]
    assert {score for each in scores for score in each} == {-0.5}
    assert result.metrics["loss/teacher_kl"] == pytest.approx(own[0] + 0.5)
    assert result.metrics["data/step_num_gradient_steps"] > 0
    await model.close()
    await backend.close()


async def test_an_hour_has_its_price(serving, connect, make_model):
    backend, model = connect(serving(), cost_per_hour_usd=3600.0), make_model()
    await model.register(backend)
    await model.train(await attempts(model, (0.0, 1.0)), mask_truncated=False)
    assert 0 < model.run.history.last.metrics["costs/gpu"] < 30
    await model.close()
    await backend.close()


@pytest.mark.parametrize(
    ("loss", "said"), [("mine:loss", "a loss's name on a service"), ("theirs", "no loss 'theirs'")]
)
async def test_a_loss_is_named_and_checked_where_it_is_known(
    serving, connect, make_model, loss, said
):
    backend, model = connect(serving()), make_model()
    await model.register(backend)
    with pytest.raises(ConfigError, match=said):
        await model.train(await attempts(model, (0.0, 1.0)), loss_fn=loss)
    assert await backend.step(model) == 0
    await model.close()
    await backend.close()


async def test_a_critic_is_refused(serving, connect, make_model):
    backend, model = connect(serving()), make_model()
    await model.register(backend)
    with pytest.raises(ConfigError, match="a critic, which only backend 'local' trains"):
        await model.train(await attempts(model, (0.0, 1.0)), advantage_baseline="value")
    await model.close()
    await backend.close()


async def test_a_server_on_this_machine_is_reached_beside_a_proxy(
    serving, connect, make_model, monkeypatch
):
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY"):
        # First set, so that what the test leaves behind is taken away.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    backend, model = connect(serving()), make_model()
    await model.register(backend)
    assert await model.get_step() == 0
    await model.close()
    await backend.close()
