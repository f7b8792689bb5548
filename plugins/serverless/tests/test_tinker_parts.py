"""Parts of `art serve --api tinker`: settings, sessions that end, bodies, the meter."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest
from tinker.proto import tinker_public_pb2 as proto

import art_core as art
from art_core.endpoint.errors import RequestError
from art_core.testing.echo import EchoBackend
from art_serverless.server.keys import Keys, server_keys
from art_serverless.server.settings import Settings
from art_serverless.tinker_api import start
from art_serverless.tinker_api.checkpoints import Checkpoints, TinkerPath
from art_serverless.tinker_api.futures import Failed, Futures
from art_serverless.tinker_api.meter import DeviceMeter
from art_serverless.tinker_api.sampling import Stops
from art_serverless.tinker_api.wire import pass_request
from waiting import until

pytestmark = [pytest.mark.torch, pytest.mark.timeout(120)]
KEY = "tml-a-key-of-the-tests"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from art_local.testing.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def serve(serving, tiny):
    """Start a server: `serve(session_s)`, the seconds that a session lives without a heartbeat."""

    def start_server(session_s):
        backend = art.backend("local", device="cpu", dtype="float32", progress=False)
        keys, models = Keys((KEY.encode(),)), {"tiny/base": str(tiny)}
        return serving(backend, api=start.run, session_s=session_s, base_models=models, keys=keys)

    return start_server


@pytest.fixture
def server(serve):
    return serve(300.0)


@contextmanager
def heartbeats(server, session_id):
    """Send heartbeats inside the block, as the SDK does."""
    over = threading.Event()

    def beat():
        while not over.wait(0.1):
            asked(server, "/session_heartbeat", {"session_id": session_id})

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        yield
    finally:
        over.set()
        beating.join()


def asked(server, path, body=None, **headers):
    """Send a request; return its status and its JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    given = {"X-API-Key": KEY, "Content-Type": "application/json", **headers}
    request = urllib.request.Request(f"{server.root}/api/v1{path}", data, given)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def begun(server):
    given = {"tags": [], "user_metadata": {}, "sdk_version": "0"}
    return asked(server, "/create_session", given)[1]["session_id"]


def result(server, request_id):
    while (found := asked(server, "/retrieve_future", {"request_id": request_id}))[0] == 408:
        pass
    return found


def made(server, session_id, **lora):
    given = {"session_id": session_id, "model_seq_id": 0, "base_model": "tiny/base"}
    status, found = asked(server, "/create_model", {**given, "lora_config": {"rank": 8, **lora}})
    assert status == 200, found
    return result(server, found["request_id"])[1]


def test_the_models_of_a_client_that_was_killed_leave_memory(serve):
    server = serve(3.0)
    session_id = begun(server)
    with heartbeats(server, session_id):
        model_id = made(server, session_id)["model_id"]
        assert asked(server, "/get_info", {"model_id": model_id})[0] == 200
    until(lambda: session_id not in asked(server, "/sessions")[1]["sessions"])
    assert asked(server, "/session_heartbeat", {"session_id": session_id})[0] == 410
    status, error = asked(server, "/get_info", {"model_id": model_id})
    assert status == 404
    assert "its session has ended" in error["error"]["message"]
    assert asked(server, f"/training_runs/{model_id}")[1]["lora_rank"] == 8


def test_a_request_that_is_sent_again_is_the_same_request(server):
    session_id = begun(server)
    first, second = made(server, session_id), made(server, session_id)
    assert first == second == {"model_id": f"{session_id}:train:0", "type": "create_model"}


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/create_session", {"tags": []}, 422, "user_metadata"),
        ("/create_session", [1], 400, "must be a JSON object"),
        ("/forward_backward", {}, 415, "application/x-protobuf"),
        ("/retrieve_future", {"request_id": "none"}, 404, "checkpoints are on disk"),
        ("/get_info", {"model_id": "none"}, 404, "no model 'none' is loaded"),
        ("/copy_weights", {}, 501, "not served here"),
        ("/nothing", {}, 404, "speaks Tinker's API"),
        ("/training_runs/..%2f..", None, 404, ""),
        ("/training_runs?limit=-1", None, 422, "limit must be a number"),
        (
            "/weights_info",
            {"tinker_path": "tinker://a:train:0/weights/../x"},
            422,
            "tinker://<run>",
        ),
    ],
)
def test_malformed_requests_are_refused(server, path, body, status, words):
    found, error = asked(server, path, body)
    assert found == status, error
    assert words in error["error"]["message"]


def test_bytes_that_are_no_message_are_refused(server):
    headers = {"Content-Type": "application/x-protobuf"}
    status, error = asked(server, "/forward_backward", b"\xff\xff", **headers)
    assert status == 400
    assert "no ForwardBackwardRequest" in error["error"]["message"]


def test_a_created_key_begins_as_the_sdk_demands(tmp_path, monkeypatch):
    monkeypatch.delenv("ART_API_KEY", raising=False)
    keys, _ = server_keys(tmp_path, "127.0.0.1", no_auth=False, prefix="tml-")
    assert keys.accepted[0].startswith(b"tml-")


def settings(tmp_path, **given):
    usual = {"keys": Keys((KEY.encode(),)), "base_models": {"a/b": "a/b"}}
    return Settings(
        backend="echo", options={}, directory=tmp_path, host="", port=0, **{**usual, **given}
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"base_models": {}}, "--base-model NAME"),
        ({"keys": Keys((b"a long key without it",))}, "does not begin with 'tml-'"),
        ({}, "has no single operations"),
    ],
)
async def test_settings_that_do_not_fit_are_refused(tmp_path, given, words):
    with pytest.raises(art.ConfigError, match=words):
        await start.run(settings(tmp_path, **given), None, EchoBackend())


def tensor(**fields):
    message = proto.ForwardBackwardRequest()
    datum = message.data.add()
    datum.model_input.add().encoded_text.tokens = np.arange(3, dtype=np.int32).tobytes()
    datum.loss_fn_inputs["weights"].MergeFrom(proto.Tensor(**fields))
    return message.SerializeToString()


def test_a_sparse_tensor_has_zeros_where_it_lists_nothing():
    csr = proto.SparseCsr(
        values=np.array([5, 7], np.float32).tobytes(),
        crow_indices=np.array([0, 1, 1, 2]).tobytes(),
        col_indices=np.array([1, 0]).tobytes(),
    )
    body = tensor(sparse_csr=csr, dtype=proto.DTYPE_FLOAT32, shape=[3, 2])
    ((tokens, inputs),) = pass_request(body).data
    assert tokens.tolist() == [0, 1, 2]
    assert inputs["weights"].tolist() == [[0, 5], [0, 0], [7, 0]]


@pytest.mark.parametrize(
    "fields",
    [
        {"dense": b"\0" * 7, "dtype": proto.DTYPE_FLOAT32},
        {"dense": b"\0" * 8, "dtype": proto.DTYPE_FLOAT32, "shape": [3]},
        {"dense": b"\0" * 8},
        {
            "sparse_csr": proto.SparseCsr(crow_indices=b"\0" * 16),
            "dtype": proto.DTYPE_FLOAT32,
            "shape": [1 << 40, 1 << 40],
        },
        {
            "sparse_csr": proto.SparseCsr(
                values=b"\0" * 4, crow_indices=np.array([0, 1]).tobytes(),
                col_indices=np.array([9]).tobytes(),
            ),
            "dtype": proto.DTYPE_FLOAT32,
            "shape": [1, 2],
        },
        {
            "sparse_csr": proto.SparseCsr(
                values=b"\0" * 4, crow_indices=np.array([5, 4]).tobytes(),
                col_indices=np.array([0]).tobytes(),
            ),
            "dtype": proto.DTYPE_FLOAT32,
            "shape": [1, 2],
        },
    ],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_its_shape_is_refused(fields):
    with pytest.raises(RequestError, match="weights"):
        pass_request(tensor(**fields))


def test_each_second_of_the_device_is_charged_once():
    clock = [0.0]
    meter = DeviceMeter(lambda: clock[0])
    with meter.using("a"):
        clock[0] = 4.0
        with meter.using("b"), meter.using("b"):
            clock[0] = 6.0  # two seconds, which both share
        clock[0] = 7.0
    clock[0] = 100.0  # without any work
    assert (meter.take("a"), meter.take("b"), meter.take("a")) == (6.0, 1.0, 0.0)


def test_an_expired_checkpoint_is_gone(tmp_path):
    store, path = Checkpoints(tmp_path), TinkerPath("s:train:0", "weights", "a")
    fill = lambda place: (place / "file").write_text("x")  # noqa: E731
    store.write(path, {}, fill, ttl_s=-1)
    with pytest.raises(RequestError, match="may have expired"):
        store.read(path)
    store.sweep()
    assert not store.place(path).exists()
    store.write(path, {}, fill)
    with pytest.raises(RequestError, match="exists; choose another name"):
        store.write(path, {}, fill)
    store.write(path, {"a": 1}, fill, overwrite=True)
    assert store.read(path)[1]["a"] == 1


def test_a_checkpoint_that_fails_leaves_nothing(tmp_path):
    store, path = Checkpoints(tmp_path), TinkerPath("s:train:0", "weights", "a")

    def fail(_):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        store.write(path, {}, fail)
    assert list(store.place(path).parent.iterdir()) == []


async def test_results_are_kept_until_they_were_sent_and_work_of_an_owner_ends():
    futures = Futures()

    async def work():
        await asyncio.sleep(0)
        return {"a": 1}

    request_id = futures.submit("run", "1", work())
    assert futures.submit("run", "1", work()) == request_id
    assert await futures.result(request_id, 10.0) == {"a": 1}
    assert await futures.result(request_id, 10.0) == {"a": 1}  # the answer may have been lost
    endless = futures.submit("run", "2", asyncio.sleep(1000))
    assert await futures.result(endless, 0.01) is None
    futures.cancel_of("run")
    with pytest.raises(RequestError, match="no request"):
        await futures.result(endless, 0.01)
    assert Failed("x", by_user=True).by_user


def test_stops_of_the_sdk():
    assert Stops.of(None) == Stops()
    assert Stops.of([]) == Stops(at_end=False)
    assert Stops.of([7]) == Stops(ids=(7,), at_end=False)
    assert Stops.of("end") == Stops(texts=("end",))
