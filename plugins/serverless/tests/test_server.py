"""The server by itself, asked over HTTP: keys, limits, names, pages."""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import re
import subprocess
import threading

import attrs
import httpx2
import openai
import pytest

from art_core.base.errors import BackendError, ConfigError
from art_core.endpoint.errors import RequestError
from art_core.testing.backend import ask as ask_model
from art_core.testing.echo import EchoBackend
from art_serverless.protocol import JOBS, MODELS
from art_serverless.server.keys import Keys, exposure, server_keys
from art_serverless.server.openapi import openapi
from art_serverless.server.private import DIRECTORY, PrivatePaths
from art_serverless.server.routes import OPERATIONS
from art_serverless.server.settings import options_of
from art_serverless.server.store import GroupFiles, Store
from waiting import until

KEY = "a key of the tests"
MODEL = {"project": "demo", "name": "agent", "base_model": "base"}


@pytest.fixture
def ask(serving):
    """Ask a server: `ask(method, path, ...)`, with its key."""
    server = serving(max_body_bytes=100_000)
    with httpx2.Client(headers={"Authorization": f"Bearer {KEY}"}, timeout=30) as http:

        def asked(method, path, **request):
            return http.request(method, server.url + path, **request)

        asked.server = server
        yield asked


def message(answer):
    return answer.json()["error"]["message"]


def register(ask, **fields):
    answer = ask("POST", MODELS, json={**MODEL, "return_existing": True, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}])
def test_a_wrong_or_missing_key_is_refused_and_never_repeated(ask, header):
    with httpx2.Client() as http:
        answer = http.post(ask.server.url + MODELS, json=MODEL, headers=header)
    assert answer.status_code == 401
    assert "Bearer" in message(answer)
    assert KEY not in answer.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:1"}, 200),
        ({"Host": "127.0.0.1:1", "Origin": "http://127.0.0.1:1"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "rebound.example"}, 403),
        ({"Host": "localhost.example"}, 403),
        ({"Host": "localhost@page.example"}, 403),
        ({"Host": "10.0.0.1"}, 403),
        ({"Host": "["}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://page.example"}, 403),
        ({"Host": "127.0.0.1:1", "Origin": "http://127.0.0.1:2"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_without_keys_web_pages_of_elsewhere_are_refused(serving, headers, status):
    server = serving(keys=Keys(()))
    for method, path in (("GET", "/models"), ("POST", MODELS), ("DELETE", MODELS + "/none")):
        answer = httpx2.request(method, server.url + path, headers=headers, content=b"{}")
        assert (answer.status_code == 403) == (status == 403), (method, answer.text)
    assert answer.json()["error"]["code"] == (
        "permission_denied" if status == 403 else "model_not_found"
    )


def test_health_and_pages_need_no_key_and_figures_do(ask):
    root = ask.server.root
    with httpx2.Client() as http:
        assert http.get(f"{root}/health").json() == {"status": "ok"}
        assert MODELS in http.get(f"{root}/docs").text
        paths = http.get(f"{root}/openapi.json").json()["paths"]
        assert http.get(f"{root}/metrics").status_code == 401
    assert {"post"} <= paths[f"/v1{MODELS}"].keys()
    register(ask)
    figures = httpx2.get(f"{root}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    assert f'art_requests_total{{route="POST {MODELS}",status="200"}} 1.0' in figures
    assert "art_models_awake 1.0" in figures


def test_the_openapi_page_declares_each_name_of_a_path_once():
    for path, item in openapi(OPERATIONS)["paths"].items():
        for operation in item.values():
            declared = [p["name"] for p in operation["parameters"] if p["in"] == "path"]
            assert declared == re.findall(r"{(\w+)}", path), path


def test_a_text_is_scored_by_the_models_own_endpoint(ask):
    stored = register(ask)
    body = {"model": "agent", "prompt": [104, 105], "echo": True, "max_tokens": 0, "logprobs": 1}
    answer = ask("POST", "/completions", json=body).json()
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [None, -0.5]
    uri = f"wandb-artifact:///{stored['entity']}/demo/agent:step7"
    missing = ask("POST", "/completions", json={**body, "model": uri})
    assert missing.status_code == 404
    assert ask("POST", "/completions", json={**body, "model": 3}).status_code == 400


def test_models_are_listed_and_found_by_name_as_openai_does(ask):
    stored = register(ask)
    (listed,) = ask("GET", "/models").json()["data"]
    assert listed["id"] == f"wandb-artifact:///{stored['entity']}/demo/agent"
    client = openai.OpenAI(base_url=ask.server.url, api_key=KEY)
    for name in (listed["id"], "agent", "agent@3"):
        assert client.models.retrieve(name).to_dict() == listed
    with pytest.raises(openai.NotFoundError, match="no model 'agnt'; served: wandb-artifact"):
        client.models.retrieve("agnt")


def test_registering_again_finds_the_model_or_is_a_conflict(ask):
    first = register(ask)
    assert register(ask)["id"] == first["id"]
    assert first.keys() == {"id", "entity", "project", "name", "base_model", "run_id"}
    again = ask("POST", MODELS, json=MODEL)
    assert again.status_code == 409
    assert "return_existing" in message(again)
    other = ask("POST", MODELS, json={**MODEL, "base_model": "other", "return_existing": True})
    assert other.status_code == 409
    assert "'base'" in message(other)


@pytest.mark.parametrize("field", ["entity", "project", "name"])
@pytest.mark.parametrize(
    "value", ["..", "../x", "a/b", "/etc", "a\\b", " ", ".hidden", "x" * 129, "a..b", 5, "a\0b"]
)
def test_a_name_that_could_leave_the_directory_is_refused(ask, field, value):
    answer = ask("POST", MODELS, json={**MODEL, field: value})
    assert answer.status_code == 422
    assert field in message(answer)


@pytest.mark.parametrize("value", ["serve.sqlite", "serve.key", "serve.lock", "Serve.sqlite-wal"])
def test_an_entity_that_is_called_as_a_file_of_the_server_is_refused(ask, value):
    answer = ask("POST", MODELS, json={**MODEL, "entity": value})
    assert answer.status_code == 422
    assert "entity can't begin with 'serve.'" in message(answer)
    assert register(ask, project=value, name=value)


@pytest.mark.parametrize("value", ["/etc/passwd", "../weights", "a/b/c", "a/..", None, 7])
def test_a_base_model_is_a_name_never_a_path(ask, value):
    answer = ask("POST", MODELS, json={**MODEL, "base_model": value})
    assert answer.status_code == 422
    assert "base_model must be a name" in message(answer)


@pytest.mark.parametrize("value", ["private/weights", "private", "notes.txt", "broken"])
def test_a_base_model_is_no_file_or_directory_of_the_server(ask, tmp_path, monkeypatch, value):
    register(ask, name="earlier", base_model=value)
    (tmp_path / "private" / "weights").mkdir(parents=True)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "broken").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    answer = ask("POST", MODELS, json={**MODEL, "base_model": value})
    assert answer.status_code == 422
    assert "base_model must be a name" in message(answer)
    listed = ask("GET", "/models").json()["data"]
    assert [model["id"].rpartition("/")[2] for model in listed] == ["earlier"]


def test_a_model_is_not_loaded_from_a_directory_that_appeared_later(serving, tmp_path, monkeypatch):
    server = serving(idle_s=0.01)
    headers = {"Authorization": f"Bearer {KEY}"}
    answer = httpx2.post(server.url + MODELS, json=MODEL, headers=headers)
    figures = f"{server.root}/metrics"
    until(lambda: "art_models_awake 0.0" in httpx2.get(figures, headers=headers).text)
    (tmp_path / MODEL["base_model"]).mkdir()
    monkeypatch.chdir(tmp_path)
    path = f"{server.url}{MODELS}/{answer.json()['id']}/checkpoints"
    assert httpx2.get(path, headers=headers).status_code == 422


def test_errors_name_base_models_not_their_places_and_no_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "very-secret-value")
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.chdir(tmp_path)
    private = PrivatePaths.of(tmp_path / "serve", {"tiny": "models/tiny", "qwen": "qwen"})

    def sent(status, text):
        return str(private.of_error(RequestError(status, text, "model")))

    assert sent(404, f"served: agent@0, {tmp_path}/models/tiny") == "served: agent@0, tiny"
    assert sent(404, "served: agent@0, models/tiny") == "served: agent@0, tiny"
    assert sent(422, "no qwen at /home/somebody/x") == "no qwen at ~/x"
    assert sent(500, f"{tmp_path}/serve/a is locked") == f"{DIRECTORY}/a is locked"
    assert sent(500, "very-secret-value and sk-abcdefghijk") == "*** and ***"
    error = private.of_error(RequestError(404, "text", "model", "model_not_found"))
    assert error.body()["error"]["code"] == "model_not_found"


def test_an_answer_of_the_engine_that_is_an_error_names_no_place(serving):
    class Names(EchoBackend):
        async def register(self, model):
            endpoint = await super().register(model)
            return attrs.evolve(endpoint, model_name="nobody at /srv/models/tiny")

    server = serving(Names(), base_models={"tiny": "/srv/models/tiny"})
    headers = {"Authorization": f"Bearer {KEY}"}
    model = {**MODEL, "base_model": "tiny"}
    assert httpx2.post(server.url + MODELS, json=model, headers=headers).status_code == 200
    body = {"model": "agent", "messages": [{"role": "user", "content": "hi"}]}
    answer = httpx2.post(f"{server.url}/chat/completions", json=body, headers=headers)
    assert answer.status_code == 404
    assert "nobody at tiny" in message(answer)
    assert "/srv" not in answer.text


def test_a_server_with_a_list_of_base_models_tells_it(serving):
    server = serving(base_models={"tiny": "/somewhere/tiny"})
    answer = httpx2.post(
        server.url + MODELS, json=MODEL, headers={"Authorization": f"Bearer {KEY}"}
    )
    assert answer.status_code == 422
    assert message(answer) == "no base model 'base'; known: tiny"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "not JSON"),
        (b"[]", 400, "must be a JSON object"),
        (b'{"x": "' + b"y" * 200_000 + b'"}', 413, "larger than 100000 bytes"),
        (b"{}", 404, "no model"),
    ],
)
def test_a_body_that_does_not_fit_is_told_why(ask, body, status, said):
    answer = ask("POST", JOBS, content=body)
    assert answer.status_code == status
    assert said in message(answer)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trajectory_groups": 5}, "trajectory_groups must be a list"),
        ({"trajectory_groups": [{"trajectories": [{"reward": "high"}]}]}, "[0].reward"),
        ({"trajectory_groups": [{"trajectories": [{"reward": None}]}]}, "[0].reward"),
        ({"trajectory_groups": [{"trajectories": [], "baseline": "high"}]}, "[0].baseline"),
        (
            {"trajectory_groups": [{"trajectories": [{"reward": 1.0, "turn_rewards": [1.0]}]}]},
            "trajectory_groups[0]: turn_rewards has 1 rewards, and the conversation 0 choices",
        ),
        ({"trajectory_groups": [{"trajectories": [{"rewrad": 1}]}]}, "rewrad"),
        (
            {"trajectory_groups": [{"trajectories": [{"messages_and_choices": [{}]}]}]},
            "neither a message nor a choice",
        ),
        (
            {"trajectory_groups": [{"trajectories": [{"additional_histories": [5]}]}]},
            "additional_histories[0] must be an object",
        ),
        (
            {
                "trajectory_groups": [
                    {"trajectories": [{"additional_histories": [{"messages_and_choices": 5}]}]}
                ]
            },
            "additional_histories[0].messages_and_choices must be a list",
        ),
        ({"experimental_config": {"learning_rat": 1}}, "Did you mean 'learning_rate'"),
        ({"experimental_config": {"precalculate_logprobs": True}}, "precalculate_logprobs"),
        ({"experimental_config": {"learning_rate": -1}}, "learning_rate"),
        ({"experimental_config": {"loss_fn": "os:system"}}, "a loss's name on a service"),
        ({"experimental_config": {"loss_fn": "cispoo"}}, "cispo"),
        ({"experimental_config": {"advantage_fn": "os:system"}}, "name of advantages on a service"),
        ({"experimental_config": {"advantage_fn": "ranks"}}, "no advantages 'ranks'"),
        ({"experimental_config": {"advantage_baseline": "value"}}, "only backend 'local' trains"),
        ({"experimental_config": []}, "experimental_config must be an object"),
    ],
)
def test_a_job_that_cannot_run_is_refused_before_it_is_accepted(ask, change, said):
    given = {"model_id": register(ask)["id"], "trajectory_groups": [], **change}
    answer = ask("POST", JOBS, json=given)
    assert answer.status_code == 422, answer.text
    assert said in message(answer)


def test_what_is_not_there_is_not_found(ask):
    assert ask("GET", f"{JOBS}/none/events").status_code == 404
    assert ask("GET", f"{MODELS}/none/checkpoints").status_code == 404
    assert ask("GET", "/nothing").status_code == 404
    asked = ask("POST", "/chat/completions", json={"model": "nobody", "messages": []})
    assert asked.status_code == 404
    assert "served: none" in message(asked)


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        (
            "POST",
            MODELS,
            {**MODEL, "name": "../x"},
            ("invalid_request_error", "name", "invalid_value"),
        ),
        ("POST", JOBS, {"model_id": "none"}, ("not_found_error", "model_id", "model_not_found")),
        (
            "POST",
            "/chat/completions",
            {"model": "nobody"},
            ("not_found_error", "model", "model_not_found"),
        ),
        (
            "POST",
            "/chat/completions",
            {"model": 5},
            ("invalid_request_error", "model", "invalid_value"),
        ),
        ("GET", f"{JOBS}/none/events", None, ("not_found_error", None, "not_found")),
        (
            "POST",
            "/preview/sft-training-jobs",
            {"model_id": "none"},
            ("not_found_error", "model_id", "model_not_found"),
        ),
    ],
)
def test_errors_have_the_endpoints_shape(ask, method, path, body, expected):
    error = ask(method, path, json=body).json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == expected


def test_one_name_in_two_projects_must_be_said_whole(ask):
    register(ask)
    register(ask, project="other")
    question = {"messages": [{"role": "user", "content": "hi"}]}
    either = ask("POST", "/chat/completions", json={"model": "agent", **question})
    assert either.status_code == 409
    whole = {"model": "wandb-artifact:///local/other/agent:step0", **question}
    assert ask("POST", "/chat/completions", json=whole).json()["choices"]


def test_a_job_tells_what_happens_in_order_and_a_page_at_a_time(ask):
    model_id = register(ask)["id"]
    job = ask("POST", JOBS, json={"model_id": model_id, "trajectory_groups": []}).json()["id"]
    told, after = [], ""
    while not told or told[-1]["type"] != "training_ended":
        page = ask("GET", f"{JOBS}/{job}/events?limit=1&wait=5&after={after}").json()
        told += page["data"]
        after = told[-1]["id"]
    assert [event["type"] for event in told] == [
        "training_started",
        "gradient_step",
        "training_ended",
    ]
    assert told[0]["data"] == {"num_sequences": 1}
    assert all(isinstance(value, float) for value in told[1]["data"].values())
    assert told[2]["data"] == {"step": 1}


def test_a_request_with_the_same_key_makes_no_second_job(ask):
    model_id = register(ask)["id"]
    given = {"model_id": model_id, "trajectory_groups": []}
    ids = [
        ask("POST", JOBS, json=given, headers={"Idempotency-Key": "k"}).json()["id"]
        for _ in range(2)
    ]
    assert ids[0] == ids[1]
    found = ask("GET", f"{JOBS}?model_id={model_id}&idempotency_key=k").json()["data"]
    assert [item["id"] for item in found] == ids[:1]


def test_a_key_that_comes_with_another_body_is_refused(ask):
    model_id = register(ask)["id"]
    given = {"model_id": model_id, "trajectory_groups": []}
    others = (
        {"trajectory_groups": [{"trajectories": [{"reward": 1.0}]}]},
        {"experimental_config": {"learning_rate": 1e-3}},
    )
    headers = {"Idempotency-Key": "k"}
    job_id = ask("POST", JOBS, json=given, headers=headers).json()["id"]
    for other in others:
        answer = ask("POST", JOBS, json={**given, **other}, headers=headers)
        assert answer.status_code == 422
        assert "'k' came with another body" in message(answer)
    assert ask("POST", JOBS, json=given, headers=headers).json()["id"] == job_id


def test_requests_of_one_key_at_the_same_time_make_one_job(ask, monkeypatch):
    given = {"model_id": register(ask)["id"], "trajectory_groups": []}
    both, keep = threading.Barrier(2), GroupFiles.save

    def keep_together(self, job_id, groups):
        both.wait(10)
        keep(self, job_id, groups)

    monkeypatch.setattr(GroupFiles, "save", keep_together)

    def once(_):
        return ask("POST", JOBS, json=given, headers={"Idempotency-Key": "k"}).json()["id"]

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(once, range(2)))) == 1
    store = Store(ask.server.settings.directory)
    assert sum(store.job_counts().values()) == 1
    store.close()


def test_a_disk_that_is_slow_to_take_a_jobs_groups_holds_up_nobody_else(ask, monkeypatch):
    given = {"model_id": register(ask)["id"], "trajectory_groups": []}
    written, begun = threading.Event(), threading.Event()

    def keep_slowly(self, job_id, groups):
        begun.set()
        assert written.wait(20)
        keep(self, job_id, groups)

    keep = GroupFiles.save
    monkeypatch.setattr(GroupFiles, "save", keep_slowly)
    question = {"model": "agent", "messages": [{"role": "user", "content": "hi"}]}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        submitted = pool.submit(ask, "POST", JOBS, json=given)
        assert begun.wait(10)
        try:
            asked = ask("POST", "/chat/completions", json=question, timeout=10)
        finally:
            written.set()
        assert asked.status_code == 200
        assert submitted.result().status_code == 200


def test_checkpoints_are_listed_in_pages_both_ways_and_deleted(ask):
    model_id = register(ask)["id"]
    for _ in range(3):
        job = ask("POST", JOBS, json={"model_id": model_id, "trajectory_groups": []}).json()["id"]
        while (
            not ask("GET", f"{JOBS}/{job}/events?wait=5&after=0")
            .json()["data"][-1]["data"]
            .get("step")
        ):
            pass
    path = f"{MODELS}/{model_id}/checkpoints"
    page = ask("GET", f"{path}?limit=2").json()
    assert [item["step"] for item in page["data"]] == [1, 2]
    assert page["has_more"]
    rest = ask("GET", f"{path}?after={page['data'][-1]['id']}").json()
    assert [item["step"] for item in rest["data"]] == [3]
    assert ask("GET", f"{path}?order=desc&limit=1").json()["data"][0]["step"] == 3
    gone = ask("DELETE", path, json={"steps": [1, 3, 9]})
    assert gone.json() == {"deleted_count": 1, "not_found_steps": [3, 9]}
    assert ask("DELETE", path, json={"steps": "all"}).status_code == 422


def test_a_deleted_model_is_gone_with_its_files(ask):
    model_id = register(ask)["id"]
    run = ask.server.settings.directory / "local" / "demo" / "models" / "agent"
    assert run.is_dir()
    assert ask("DELETE", f"{MODELS}/{model_id}").status_code == 204
    assert not run.exists()
    assert ask("GET", f"{MODELS}/{model_id}/checkpoints").status_code == 404
    assert register(ask)["id"] != model_id


def test_trajectories_are_kept_in_the_servers_own_log(ask):
    model_id = register(ask)["id"]
    groups = [{"trajectories": [{"reward": 0.25}, {"reward": 0.75}]}]
    given = {"model_id": model_id, "trajectory_groups": groups, "split": "val"}
    assert ask("POST", f"{MODELS}/{model_id}/log", json=given).status_code == 204
    run = ask.server.settings.directory / "local" / "demo" / "models" / "agent"
    assert '"val/reward":0.5' in (run / "history.jsonl").read_text()
    odd = [{"trajectories": [{"metrics": {"speed": "high"}}]}]
    refused = ask("POST", f"{MODELS}/{model_id}/log", json={**given, "trajectory_groups": odd})
    assert refused.status_code == 422
    assert "'speed' must be a number" in message(refused)


def test_what_fails_inside_the_server_is_in_its_own_log(ask, caplog, monkeypatch):
    async def checkpoints(self, model):
        raise KeyError("a bug")

    model_id = register(ask)["id"]
    monkeypatch.setattr(EchoBackend, "checkpoints", checkpoints)
    answer = ask("GET", f"{MODELS}/{model_id}/checkpoints")
    assert answer.status_code == 500
    assert "KeyError" in message(answer)
    assert "a request failed" in caplog.text
    assert "in checkpoints" in caplog.text


def test_a_hundred_clients_that_ask_at_once_are_answered(ask):
    register(ask)
    given = {"model": "agent", "messages": [{"role": "user", "content": "hi"}]}

    def once(_):
        return ask("POST", "/chat/completions", json=given).status_code

    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        statuses = list(pool.map(once, range(300)))
    assert set(statuses) == {200}


def test_tls_is_served_with_a_certificate(serving, connect, make_model, tmp_path, monkeypatch):
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    about = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    subprocess.run([*made, "-keyout", key, "-out", cert, *about], check=True, capture_output=True)
    server = serving(certfile=cert, keyfile=key)
    url = server.url.replace("http:", "https:")

    async def asked():
        backend, model = connect(url), make_model()
        try:
            await model.register(backend)
            return (await ask_model(model)).message.content
        finally:
            await model.close()
            await backend.close()

    with pytest.raises(BackendError, match="cannot reach"):
        asyncio.run(asked())
    monkeypatch.setenv("SSL_CERT_FILE", cert)
    assert asyncio.run(asked()) == "Say yes "


def test_a_model_that_nobody_uses_sleeps_and_wakes_when_asked(serving):
    server = serving(idle_s=0.2)
    given = {"model": "agent", "messages": [{"role": "user", "content": "hi"}]}
    with httpx2.Client(headers={"Authorization": f"Bearer {KEY}"}, timeout=30) as http:
        http.post(server.url + MODELS, json=MODEL)
        for _ in range(2):
            assert http.post(server.url + "/chat/completions", json=given).status_code == 200
            until(lambda: "art_models_awake 0.0" in http.get(server.root + "/metrics").text)


def test_a_key_is_made_once_for_its_owner_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("ART_API_KEY", raising=False)
    keys, about = server_keys(tmp_path, "0.0.0.0", no_auth=False)
    again, _ = server_keys(tmp_path, "0.0.0.0", no_auth=False)
    assert keys == again
    assert str(tmp_path / "serve.key") in about
    assert (tmp_path / "serve.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "serve.key").read_text().strip() not in repr(keys) + about


def test_the_environment_gives_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("ART_API_KEY", "from outside")
    keys, about = server_keys(tmp_path, "127.0.0.1", no_auth=False)
    assert keys == Keys((b"from outside",))
    assert "from outside" not in about
    assert not (tmp_path / "serve.key").exists()


@pytest.mark.parametrize("key", ["k", "1234567"])
def test_a_key_that_can_be_guessed_is_refused(tmp_path, monkeypatch, key):
    monkeypatch.setenv("ART_API_KEY", key)
    with pytest.raises(ConfigError, match="ART_API_KEY has a key of fewer than 8 characters"):
        server_keys(tmp_path, "127.0.0.1", no_auth=False)
    monkeypatch.delenv("ART_API_KEY")
    file = tmp_path / "serve.key"
    file.write_text(f"a long and random key\n{key}\n")
    file.chmod(0o600)
    with pytest.raises(ConfigError, match=r"serve.key has a key of fewer than 8 characters"):
        server_keys(tmp_path, "127.0.0.1", no_auth=False)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_key_file_that_others_may_read_is_refused(tmp_path, monkeypatch, mode):
    monkeypatch.delenv("ART_API_KEY", raising=False)
    server_keys(tmp_path, "127.0.0.1", no_auth=False)
    (tmp_path / "serve.key").chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        server_keys(tmp_path, "127.0.0.1", no_auth=False)


def test_an_address_that_others_reach_without_tls_is_warned_about():
    for host in ("0.0.0.0", "::", "10.0.0.1"):
        assert "plain text" in exposure(host, tls=False)
        assert exposure(host, tls=True) is None
    assert exposure("127.0.0.1", tls=False) is None


def test_out_of_files_is_reported_once_a_minute(serving, caplog):
    server = serving()
    error = {"message": "accept", "exception": OSError(errno.EMFILE, "Too many open files")}
    for _ in range(5):
        server._loop.call_soon_threadsafe(server._loop.call_exception_handler, error)
    until(lambda: "may open no more files" in caplog.text)
    server.stop()
    assert caplog.text.count("Too many open files") == 1


def test_an_empty_key_file_is_an_error(tmp_path, monkeypatch):
    monkeypatch.delenv("ART_API_KEY", raising=False)
    (tmp_path / "serve.key").write_text("\n")
    (tmp_path / "serve.key").chmod(0o600)
    with pytest.raises(ConfigError, match="holds no key"):
        server_keys(tmp_path, "127.0.0.1", no_auth=False)


def test_no_key_is_for_loopback_alone(tmp_path):
    assert server_keys(tmp_path, "127.0.0.1", no_auth=True)[0] == Keys(())
    with pytest.raises(ConfigError, match="anyone who reaches it"):
        server_keys(tmp_path, "0.0.0.0", no_auth=True)


def test_options_of_the_backend_are_literals_or_words():
    given = ["lora_rank=32", "device=cuda", "progress=False", "name=a=b"]
    told = {"lora_rank": 32, "device": "cuda", "progress": False, "name": "a=b"}
    assert options_of(given) == told
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        options_of(["nonsense"])
