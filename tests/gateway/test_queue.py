"""A gateway with a queue: workers lease, call the model, renew and submit over HTTP."""

from __future__ import annotations

import asyncio

import httpx2
import orjson
import pytest

import art_core as art
from art_core.base.errors import BackendError, BudgetError, ConfigError
from art_core.base.spending import active_spending
from art_core.client.recorder import Recording
from art_core.data.trajectory import tokens_of
from art_core.gateway.leases import LeaseRecordings
from art_core.model.leased import LeasedModel
from art_core.queue.paid import paid_from
from art_core.queue.payload import to_json
from art_core.queue.queue import AttemptQueue
from art_core.queue.remote import RemoteQueue
from art_core.queue.worker import QueueWorker
from queued import FAILURE, attempt, scenarios


@pytest.fixture
async def queue(model):
    async with AttemptQueue.open(model.run_dir, step=0, version="v1") as queue:
        yield queue


@pytest.fixture
async def gateway(model, queue):
    async with model.gateway(queue=queue) as gateway:
        yield gateway


@pytest.fixture
async def remote(gateway):
    async with RemoteQueue(gateway.url, gateway.api_key, patience_s=0) as remote:
        yield remote


async def lease(client, n=1, **body):
    answer = await client.post("/queue/lease", {"worker": "curl", "n": n, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_three_calls_over_http_make_an_attempt_with_the_engines_tokens(
    queue, client, gateway, model
):
    await queue.fill(scenarios(1), size=1, last=True)
    (one,) = (await lease(client))["leases"]
    assert (one["base_url"], one["api_key"]) == (gateway.base_url, one["key"])
    assert one["scenario"] == {"epoch": 0, "index": 0, "value": {"question": 0}, "id": "0"}
    assert (await client.chat(one, "hello")).status_code == 200
    ending = {"key": one["key"], "reward": 0.5, "metrics": {"turns": 1}}
    first, again = [await client.post("/queue/submit", ending) for _ in range(2)]
    assert [first.json(), again.json()] == [{"reply": "accepted"}, {"reply": "duplicate"}]
    batch = await queue.take(1, 1, step=0)
    (trajectory,) = batch.groups[0]
    assert (trajectory.reward, trajectory.metrics["turns"]) == (0.5, 1)
    assert tokens_of(trajectory.messages_and_choices[-1]).policy_version == 0
    await model.train(batch.groups, cursor=batch.cursor)
    await queue.commit(batch.cursor)
    assert await lease(client) == {"leases": [], "finished": True}
    shown = (await client.get("/queue")).json()
    assert (shown["trained"], shown["filled"]) == (1, 1)


async def test_an_attempt_that_failed_is_leased_again(queue, client):
    await queue.fill(scenarios(1), size=1)
    (one,) = (await lease(client))["leases"]
    await client.post("/queue/submit", {"key": one["key"], "failure": "crashed"})
    (two,) = (await lease(client))["leases"]
    assert two["attempt"] == 2
    renewed = await client.post("/queue/renew", {"key": two["key"]})
    returned = await client.post("/queue/return", {"key": two["key"]})
    over = await client.post("/queue/renew", {"key": two["key"]})
    assert renewed.json() == {"renewed": True}
    assert (returned.json(), over.json()) == ({"returned": True}, {"renewed": False})


async def test_after_a_restart_leases_go_on_and_calls_that_are_lost_are_not_trained(
    queue, model, gateway, client
):
    await queue.fill(scenarios(1), size=1)
    (one,) = (await lease(client))["leases"]
    await client.chat(one, "hello")
    async with model.gateway(queue=queue) as later:
        client.url, client.key = later.url, later.api_key
        assert (await client.chat(one, "more")).status_code == 200
        answer = await client.post("/queue/submit", {"key": one["key"], "reward": 1.0})
        assert answer.status_code == 409
        assert "started again since the lease" in answer.json()["error"]["message"]
        assert (await client.chat(one, "more")).status_code == 401
        assert len((await lease(client))["leases"]) == 1


@pytest.mark.parametrize(
    ("route", "body", "status", "message"),
    [
        ("lease", {"worker": 3}, 400, "worker must be a text of at most 256 characters"),
        ("lease", {"n": -1}, 400, "n must be a number from 0 to 1024"),
        ("lease", {"version": "v2"}, 422, "version v2 of the rollout, and the run has v1"),
        ("submit", {"key": "a", "failure": "f", "step": -1}, 400, "step must be a count of steps"),
        ("submit", {"key": "a"}, 400, "give either a reward or a failure"),
        ("submit", {"key": "a", "failure": "f"}, 422, "no lease has the key 'a'"),
        ("submit", {"key": "a", "reward": 1}, 409, "does not have the calls of the attempt"),
        ("submit", {"key": "a", "outcome": {}}, 422, "not the outcomes of an attempt"),
    ],
)
async def test_requests_that_do_not_fit_are_refused(queue, client, route, body, status, message):
    answer = await client.post(f"/queue/{route}", body)
    assert (answer.status_code, message in answer.text) == (status, True), answer.text


async def test_a_queue_needs_the_key(queue, client):
    for route in ("lease", "renew", "return", "submit"):
        assert (
            await client.post(f"/queue/{route}", key="wrong-key-of-16-chars")
        ).status_code == 401
    assert (await client.get("/queue", key="wrong-key-of-16-chars")).status_code == 401


async def test_a_full_disk_is_answered_as_such(queue, client):
    await queue.fill(scenarios(1), size=1)
    (one,) = (await lease(client))["leases"]
    pages = await queue._write(lambda db: db.execute("pragma page_count").fetchone()[0])
    await queue._write(lambda db: db.execute(f"pragma max_page_count = {pages}").fetchone())
    body = {"key": one["key"], "outcome": orjson.loads(to_json({None: large()}))}
    answer = await client.post("/queue/submit", body)
    assert answer.status_code == 507
    assert "nothing of it was stored" in answer.text


def large():
    trajectory = attempt()
    trajectory.logs.append("x" * 100_000)
    return trajectory


async def test_a_remote_queue_does_what_the_queue_does(queue, remote, gateway):
    await queue.fill(scenarios(2), size=1, last=True)
    one, two = await remote.lease("w", 2, version="v1")
    assert (one.scenario, one.slot, one.attempt) == (scenarios(1)[0], 0, 1)
    assert remote.reached == (gateway.base_url, "agent")
    assert await remote.renew(one.key)
    assert await remote.give_back(two.key)
    assert await remote.submit(one.key, attempt(0.5), step=0) == "accepted"
    assert await remote.submit(one.key, attempt(0.5), step=0) == "duplicate"
    (two,) = await remote.lease("w", 2)
    assert await remote.submit(two.key, {"white": attempt(1.0), "black": FAILURE}) == "accepted"
    batch = await queue.take(2, 2, step=0)
    assert [group.rewards for group in batch.groups] == [[0.5], [1.0], []]
    await queue.commit(batch.cursor)
    assert (await remote.lease("w")).finished


async def test_a_remote_queue_states_why_it_is_refused(queue, remote):
    await queue.fill(scenarios(1), size=1)
    with pytest.raises(ConfigError, match=r"refuses to lease: .* version v2 of the rollout"):
        await remote.lease("w", version="v2")


async def test_a_server_that_is_away_is_asked_again_until_patience_ends(queue, gateway, remote):
    await queue.fill(scenarios(1), size=1)
    (one,) = await remote.lease("w")
    await asyncio.to_thread(gateway.stop)
    with pytest.raises(BackendError, match="did not answer for 0 s"):
        await remote.renew(one.key)
    waits = []

    async def sleep(seconds):
        waits.append(seconds)
        await asyncio.to_thread(gateway.start)

    async with RemoteQueue(gateway.url, gateway.api_key, sleep=sleep) as patient:
        assert await patient.submit(one.key, attempt()) == "accepted"
    assert len(waits) == 1


async def test_an_answer_without_a_reason_is_shown_by_its_status():
    class Odd:
        status_code = 502

        def json(self):
            raise ValueError

    class Http:
        async def post(self, *given, **options):
            return Odd()

    remote = RemoteQueue("http://x/v1", "k", patience_s=0)
    remote._http = Http()
    with pytest.raises(BackendError, match="http://x did not answer for 0 s: HTTP 502"):
        await remote.renew("a")


async def test_the_rollouts_of_a_worker_call_the_model_of_the_gateway(queue, remote, tmp_path):
    await queue.fill(scenarios(2), size=2, last=True)
    model = LeasedModel(name="worker", project="worker", sinks=[], base_path=tmp_path)
    with pytest.raises(ConfigError, match="only be called inside a rollout"):
        model.endpoint()

    async def rollout(one):
        model.inference_base_url, model.inference_model_name = remote.reached
        model.begin(one.key)
        trajectory = art.Trajectory(messages_and_choices=[{"role": "user", "content": "hi"}])
        completion = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(), messages=trajectory.messages()
        )
        trajectory.messages_and_choices.append(completion.choices[0])
        trajectory.reward = 1.0
        return trajectory

    worker = QueueWorker(queue=remote, attempt=rollout, name="w", version="v1")
    working = asyncio.create_task(worker.run())
    batch = await queue.take(2, 2, step=0)
    await queue.commit(batch.cursor)
    await working
    await model.close()
    assert worker.replies == {"accepted": 4}
    tokens = [tokens_of(t.messages_and_choices[-1]) for group in batch.groups for t in group]
    assert [each.policy_version for each in tokens] == [0] * 4


def test_only_so_many_recordings_are_kept():
    recordings = LeaseRecordings(
        limit=2,
        new_recording=lambda t: Recording(trajectory=t),
        is_leased=lambda key: key == "known",
    )
    for key in "abc":
        recordings.begin(key)
    assert recordings.recording_of("a") is None
    assert recordings.recording_of("b") is recordings.recording_of("b")
    assert recordings.recording_of("known") is not None


async def test_a_gateway_without_a_queue_has_no_routes_of_one(model):
    async with model.gateway() as gateway, httpx2.AsyncClient() as http:
        headers = {"Authorization": f"Bearer {gateway.api_key}"}
        assert (await http.get(f"{gateway.url}/queue", headers=headers)).status_code == 404


async def test_what_a_worker_paid_travels_with_its_attempt(queue, remote, client, model):
    await queue.fill(scenarios(3), size=1)
    receipt = {"item": "m", "provider": "p", "input_tokens": 1000, "usd": 0.25}
    paid = paid_from([{"source": "judge", "receipt": receipt}])
    one, two, three = await remote.lease("w", 3)
    assert await remote.submit(one.key, attempt(), paid=paid) == "accepted"
    assert await remote.give_back(two.key, paid=paid)
    body = {"key": three.key, "failure": "no", "paid": [each.to_dict() for each in paid]}
    assert (await client.post("/queue/submit", body)).json() == {"reply": "accepted"}
    refused = await client.post("/queue/submit", body | {"paid": [{"source": "judge"}]})
    assert (refused.status_code, "not a paid call" in refused.text) == (422, True)
    batch = await queue.take(1, 1, step=0)
    await model.train(batch.groups, cursor=batch.cursor)
    (row,) = art.open_run(model.run_dir).rows()
    assert row.metrics["costs/train/judge"] == 0.5  # the failed one's group is not whole


async def test_a_leased_attempt_whose_budget_refused_a_call_is_a_failure(queue, client, gateway):
    await queue.fill(scenarios(1), size=1)
    (one,) = (await lease(client))["leases"]
    recording = gateway._leases.recording_of(one["key"])
    recording.payers[active_spending].exceeded = BudgetError("too much")
    await client.post("/queue/submit", {"key": one["key"], "reward": 1.0})
    (two,) = (await lease(client))["leases"]
    assert two["attempt"] == 2
