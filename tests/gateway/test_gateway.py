"""A gateway: agents that know only HTTP are recorded, each in its own attempt, and trained."""

from __future__ import annotations

import asyncio
import ssl
import subprocess

import httpx2
import openai
import pytest

import art_core as art
from art_core.base.errors import BackendError, ConfigError
from art_core.data.trajectory import tokens_of
from art_core.gateway.gateway import _wake
from art_core.log.rows import read_rows
from art_core.rl.sequences import merge_turns, turns_of

REQUESTS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"max_tokens": 200, "messages": [{"role": "user", "content": "hi"}]},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
}


def rows_of(model):
    return [row for row, _ in read_rows(model.run_dir / "history.jsonl")]


async def test_attempts_over_http_become_a_group_that_trains_a_step(model, gateway, client):
    async def attempt(reward):
        one = await client.begin("sea", metadata={"lang": "none"})
        assert one["base_url"] == gateway.base_url
        assert (await client.chat(one, f"earn {reward}")).status_code == 200
        await client.post(f"/attempts/{one['id']}/metrics", {"turns": 1})
        ended = await client.end(one, reward=reward, metrics={"solved": reward > 0.5})
        assert ended.json()["calls"] == 1

    for reward in (0.0, 1.0):
        await attempt(reward)
    group = await gateway.group("sea", size=2)
    assert (group.rewards, group.metadata) == ([0.0, 1.0], {"scenario_id": "sea"})
    assert [t.metadata for t in group] == [{"lang": "none"}] * 2
    assert [t.initial_policy_version for t in group] == [0, 0]
    await model.train([group])
    (row,) = rows_of(model)
    assert row.metrics["data/step_num_sequences"] == 2
    assert (row.metrics["reward/turns"], row.metrics["reward/solved"]) == (1, 0.5)


async def test_turns_are_one_sequence_with_the_engines_tokens(gateway, client):
    one = await client.begin()
    options = {"base_url": one["base_url"], "api_key": one["api_key"], "max_retries": 0}
    messages = [{"role": "user", "content": "hello"}]
    async with openai.AsyncOpenAI(**options) as agent:
        for text in ("more", "less"):
            answer = await agent.chat.completions.create(model=one["model_name"], messages=messages)
            said = {"role": "assistant", "content": answer.choices[0].message.content}
            messages += [said, {"role": "user", "content": text}]
    await client.end(one, reward=1)
    (trajectory,) = await gateway.group(size=1)
    (sequence,) = merge_turns(turns_of(trajectory.histories()[0])[0]).sequences
    text = b"user:hello\nassistant:hello\nuser:more\nassistant:more\n"
    assert bytes(sequence.token_ids) == text
    assert trajectory.additional_histories == []


async def test_every_protocol_is_recorded_in_the_order_of_the_calls(gateway, client):
    one = await client.begin()
    url, key, name = one["base_url"], one["api_key"], one["model_name"]
    asked = [{"role": "user", "content": "first"}]
    async with openai.AsyncOpenAI(base_url=url, api_key=key) as agent:
        await agent.chat.completions.create(model=name, messages=asked)
        await agent.responses.create(model=name, input="second")
    asked = [{"role": "user", "content": "third"}]
    body = {"model": name, "max_tokens": 100, "messages": asked}
    url, as_anthropic = url.removesuffix("/v1"), {"x-api-key": key}
    answer = await client.http.post(f"{url}/v1/messages", json=body, headers=as_anthropic)
    assert answer.json()["content"][0]["text"] == "third"
    await client.end(one, reward=1)
    (trajectory,) = await gateway.group(size=1)
    histories = trajectory.histories()
    assert [h.messages()[0]["content"] for h in histories] == ["first", "second", "third"]
    ids = [tokens_of(h.messages_and_choices[1]).completion_ids for h in histories]
    assert [bytes(each) for each in ids] == [b"first\n", b"second\n", b"third\n"]


async def test_agents_that_run_at_the_same_time_are_kept_apart(gateway, client):
    begun = [await client.begin() for _ in range(8)]
    await asyncio.gather(*[client.chat(one, one["id"]) for one in begun])
    for one in begun:
        await client.end(one, reward=0.0)
    group = await gateway.group(size=8)
    texts = [t.messages()[1]["content"] for t in group]
    assert texts == [one["id"] for one in begun]


async def test_a_call_after_the_end_is_refused_in_the_form_of_its_protocol(client):
    one = await client.begin()
    await client.end(one, failure="crashed")
    for path, body in REQUESTS.items():
        refused = await client.post(path, {"model": "agent", **body}, key=one["api_key"])
        assert refused.status_code == 401
        error = refused.json()["error"]
        assert error["message"] == f"attempt {one['id']} is over (failed), and so is its key"
        assert error["type"] == "authentication_error"
        assert ("type" in refused.json()) is path.startswith("/v1/messages")


async def test_an_agent_that_never_calls_the_model_is_told_what_comes_of_it(model, gateway, client):
    silent, other = await client.begin(), await client.begin()
    await client.chat(other, "hi")
    ended = (await client.end(silent, reward=1.0)).json()
    assert (ended["status"], ended["calls"]) == ("ended", 0)
    assert "the agent never called the model" in ended["warning"]
    assert (await client.end(other, reward=0.0)).json()["warning"] is None
    group = await gateway.group(size=2)
    assert group.rewards == [1.0, 0.0]
    await model.train([group])
    (row,) = rows_of(model)
    assert row.metrics["data/step_num_sequences"] == 1


async def test_a_call_with_another_attempts_key_is_recorded_there(gateway, client):
    one, other = await client.begin(), await client.begin()
    await client.chat({**one, "api_key": other["api_key"]}, "hi")
    shown = [(await client.get(f"/attempts/{each['id']}")).json()["calls"] for each in (one, other)]
    assert shown == [0, 1]


async def test_a_stream_that_the_agent_cuts_off_leaves_its_attempt_open_for_more_calls(
    gateway, client
):
    one = await client.begin()
    headers = {"Authorization": f"Bearer {one['api_key']}"}
    long = [{"role": "user", "content": 500 * "x"}]
    bodies = {
        "chat/completions": {"messages": long},
        "responses": {"input": long},
        "messages": {"messages": long, "max_tokens": 1000},
        "completions": {"prompt": long[0]["content"], "max_tokens": 1000},
    }
    for path, body in bodies.items():
        asked = {"model": one["model_name"], "stream": True, **body}
        url = f"{one['base_url']}/{path}"
        async with client.http.stream("POST", url, json=asked, headers=headers) as answer:
            begun = await anext(answer.aiter_text(chunk_size=16))
        assert begun.startswith(("data:", "event:"))
    assert (await client.chat(one, "again")).status_code == 200
    await client.end(one, reward=1.0)
    (trajectory,) = await gateway.group(size=1)
    histories = [history.messages() for history in trajectory.histories()]
    # An answer of which the echo had sent all before the agent left is recorded whole.
    assert histories[-1][-1]["content"] == "again"
    assert {len(messages[-1]["content"]) for messages in histories[:-1]} <= {500}


async def test_the_model_is_listed_for_the_key_of_an_open_attempt(gateway, client):
    one = await client.begin()
    async with openai.AsyncOpenAI(base_url=one["base_url"], api_key=one["api_key"]) as agent:
        (listed,) = (await agent.models.list()).data
    assert (listed.id, listed.owned_by) == (one["model_name"], "art")
    as_anthropic = {"x-api-key": one["api_key"]}
    answer = (await client.http.get(f"{gateway.url}/v1/models", headers=as_anthropic)).json()
    assert (answer["data"][0]["type"], answer["has_more"]) == ("model", False)
    await client.end(one, failure="crashed")
    refused = await client.get("/v1/models", key=one["api_key"])
    assert refused.status_code == 401
    assert "is over (failed)" in refused.json()["error"]["message"]


async def test_each_key_opens_only_its_own_routes(gateway, client):
    one = await client.begin()
    as_agent = [
        await client.post("/attempts", {"scenario_id": "s"}, key=one["api_key"]),
        await client.post(f"/attempts/{one['id']}/end", {"reward": 1}, key=one["api_key"]),
        await client.get("/attempts", key=one["api_key"]),
        await client.chat({**one, "api_key": gateway.api_key}, "hi"),
        await client.chat({**one, "api_key": "another"}, "hi"),
    ]
    assert {answer.status_code for answer in as_agent} == {401}
    assert "POST /attempts begins one" in as_agent[-1].text
    shown = (await client.get(f"/attempts/{one['id']}")).json()
    assert (shown["status"], shown["calls"]) == ("open", 0)
    assert (await client.http.get(f"{gateway.url}/health")).json() == {"status": "ok"}


async def test_attempts_are_shown_and_unknown_ones_are_not_found(client):
    one = await client.begin("sea")
    await client.chat(one, "hi")
    (listed,) = (await client.get("/attempts")).json()["data"]
    assert listed == (await client.get(f"/attempts/{one['id']}")).json()
    assert (listed["scenario_id"], listed["calls"], listed["reward"]) == ("sea", 1, None)
    assert "api_key" not in listed
    unknown = [
        await client.get("/attempts/none"),
        await client.post("/attempts/none/end", {"reward": 1}),
        await client.post("/attempts/none/metrics", {"turns": 1}),
        await client.get("/v1/attempts"),
    ]
    assert {answer.status_code for answer in unknown} == {404}
    assert "/attempts/{attempt_id}/end" in unknown[-1].text


WRONG_BODIES = [
    ("", {}, "scenario_id must be a text"),
    ("", {"scenario_id": "x" * 257}, "scenario_id must be a text"),
    ("", {"scenario_id": "s", "metadata": [1]}, "metadata must be an object"),
    ("", {"scenario_id": "s", "group": 1}, "unknown field 'group'; known: metadata"),
    ("", {"scenario_id": "s", "metadata": {"a": "x" * (64 << 10)}}, "body is larger"),
    ("end", {}, "give either a reward or a failure"),
    ("end", {"reward": 1, "failure": "x"}, "give either a reward or a failure"),
    ("end", {"reward": True}, "reward must be a finite number"),
    ("end", {"reward": "1"}, "reward must be a finite number"),
    ("end", {"failure": 1}, "failure must be the reason"),
    ("end", {"reward": 1, "metrics": 2}, "metrics must be an object"),
    ("end", {"reward": 1, "metrics": {"costs/x": 1}}, "may not be a cost"),
    ("metrics", {"a": None}, "a must be a number, true or false"),
    ("metrics", {"": 1}, "names of 1 to 256 characters"),
    ("metrics", {"mean": 1}, "may not be named 'mean'"),
    ("metrics", {f"m{i}": i for i in range(101)}, "at most 100 metrics, got 101"),
]


async def test_bodies_that_do_not_fit_are_refused_with_the_reason(client):
    one = await client.begin()
    for path, body, message in WRONG_BODIES:
        route = f"/attempts/{one['id']}/{path}" if path else "/attempts"
        refused = await client.post(route, body)
        assert refused.status_code in (400, 413)
        assert message in refused.json()["error"]["message"]
    assert (await client.get(f"/attempts/{one['id']}")).json()["status"] == "open"


async def test_groups_come_until_the_gateway_is_stopped(model):
    async with httpx2.AsyncClient() as http:
        gateway = model.gateway()
        async with gateway:
            headers = {"Authorization": f"Bearer {gateway.api_key}"}
            taken = []

            async def train():
                taken.extend([group.rewards async for group in gateway.groups(size=1)])

            training = asyncio.create_task(train())
            for reward in (0.25, 0.5):
                begun = await http.post(
                    f"{gateway.url}/attempts", json={"scenario_id": "s"}, headers=headers
                )
                url = f"{gateway.url}/attempts/{begun.json()['id']}/end"
                await http.post(url, json={"reward": reward}, headers=headers)
        await training
    assert taken == [[0.25], [0.5]]
    with pytest.raises(ConfigError, match="the gateway is stopped"):
        await gateway.group(size=1)


async def test_who_waits_for_a_group_gets_attempts_that_are_late(model):
    async with model.gateway(attempt_timeout_s=0.05) as gateway, httpx2.AsyncClient() as http:
        headers = {"Authorization": f"Bearer {gateway.api_key}"}
        waiting = asyncio.create_task(gateway.group(size=2))
        for _ in range(2):
            begun = {"scenario_id": "s"}
            await http.post(f"{gateway.url}/attempts", json=begun, headers=headers)
            await asyncio.sleep(0)
        group = await waiting
    assert [f.reason for f in group.failures] == ["timeout"] * len(group.failures)
    assert group.trajectories == ()


async def test_a_group_without_a_trajectory_can_be_trained(model, gateway, client):
    await client.end(await client.begin(), failure="no such page")
    group = await gateway.group(size=1)
    assert [str(failure) for failure in group.failures] == ["AttemptFailed: no such page"]
    await model.train([group])
    (row,) = rows_of(model)
    assert row.metrics["reward/exception_rate"] == 1.0


async def test_calls_have_the_context_in_which_the_gateway_was_made(model):
    with model.metrics_builder("eval").activate_context():
        gateway = model.gateway()
    assert gateway._attempts.begin("s", {}).recording.context == "eval"


async def test_a_baseline_is_recorded_without_tokens(model, tmp_path):
    served = model.endpoint()
    baseline = art.Model(
        name="baseline",
        project="p",
        base_path=tmp_path,
        sinks=[],
        inference_base_url=served.base_url,
        inference_model_name=served.model_name,
    )
    async with baseline, baseline.gateway() as gateway, httpx2.AsyncClient() as http:
        attempt = gateway._attempts.begin("s", {})
        async with openai.AsyncOpenAI(base_url=gateway.base_url, api_key=attempt.key) as agent:
            asked = [{"role": "user", "content": "hi"}]
            await agent.chat.completions.create(model=served.model_name, messages=asked)
        url = f"{gateway.url}/attempts/{attempt.id}/end"
        key = {"Authorization": f"Bearer {gateway.api_key}"}
        await http.post(url, json={"reward": 1}, headers=key)
        (trajectory,) = await gateway.group(size=1)
    assert trajectory.messages()[1]["content"] == "hi"
    assert tokens_of(trajectory.messages_and_choices[1]) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "0.0.0.0"}, "can be reached from other machines"),
        ({"api_key": "short"}, "at least 16 ASCII characters"),
        ({"api_key": "a key with spaces in it"}, "without spaces"),
        ({"attempt_timeout_s": -1}, "attempt_timeout_s can't be negative"),
        ({"max_attempts": 1.5}, "max_attempts must be a whole number"),
        ({"ssl_keyfile": "key.pem"}, "has no certificate"),
        ({"ssl_certfile": "nowhere.pem"}, "certificate nowhere.pem"),
    ],
)
async def test_options_that_do_not_fit_are_refused(model, options, message):
    with pytest.raises(ConfigError, match=message):
        model.gateway(**options)


async def test_a_group_has_at_least_one_attempt(gateway):
    with pytest.raises(ConfigError, match="size must be at least 1"):
        await gateway.group(size=0)


async def test_other_machines_reach_it_only_on_request_and_with_a_warning(model, caplog):
    async with (
        model.gateway(host="0.0.0.0", allow_remote=True, api_key="0123456789abcdef") as gateway,
        httpx2.AsyncClient() as http,
    ):
        assert "as plain text; give ssl_certfile" in caplog.text
        port = gateway.url.rpartition(":")[2]
        key = {"Authorization": "Bearer 0123456789abcdef"}
        url = f"http://127.0.0.1:{port}"
        begun = await http.post(f"{url}/attempts", json={"scenario_id": "s"}, headers=key)
    assert begun.json()["base_url"] == f"{url}/v1"


async def test_it_serves_tls(model, tmp_path, caplog):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    written = ["-keyout", str(key), "-out", str(cert)]
    await asyncio.to_thread(
        subprocess.run, [*made, *named, *written], check=True, stderr=subprocess.DEVNULL
    )
    trusting = ssl.create_default_context(cafile=str(cert))
    options = {"ssl_certfile": str(cert), "ssl_keyfile": str(key)}
    async with model.gateway(**options) as gateway, httpx2.AsyncClient(verify=trusting) as http:
        headers = {"Authorization": f"Bearer {gateway.api_key}"}
        url = f"{gateway.url}/attempts"
        begun = await http.post(url, json={"scenario_id": "s"}, headers=headers)
    assert begun.json()["base_url"] == gateway.base_url
    assert gateway.base_url.startswith("https://127.0.0.1:")
    caplog.clear()
    model.gateway(host="0.0.0.0", allow_remote=True, **options)
    assert caplog.text == ""


def test_an_end_does_not_fail_if_the_loop_of_who_waited_is_closed():
    with asyncio.Runner() as runner:
        loop, changed = runner.get_loop(), asyncio.Event()
    _wake(loop, changed)
    assert not changed.is_set()


async def test_a_port_that_is_taken_is_an_error(model, gateway):
    port = int(gateway.url.rpartition(":")[2])
    with pytest.raises((ConfigError, BackendError), match="cannot listen"):
        async with model.gateway(port=port):
            pass
