"""Clients that send choices without token fields: the server knows what it sampled."""

from __future__ import annotations

import time

import httpx2
import openai
import pytest

from art_core.data.trajectory import tokens_of
from art_core.testing.echo import EchoBackend
from art_serverless.protocol import JOBS, MODELS
from art_serverless.server.sampled import SampledAnswers

KEY = "a key of the tests"
SPOKEN = {"refusal": None, "annotations": None, "audio": None, "function_call": None}


class Recording(EchoBackend):
    """Keeps the groups that it was to train on."""

    def __init__(self):
        super().__init__(gpu_cost_per_hour_usd=0.0)
        self.trained = []

    async def train(self, model, groups, **options):
        self.trained.append(groups)
        return await super().train(model, groups, **options)


class Client:
    """A client that knows the protocol and OpenAI's chat API, and nothing of art-core."""

    def __init__(self, server):
        self.server = server
        self.http = httpx2.Client(headers={"Authorization": f"Bearer {KEY}"}, timeout=30)
        self.chat = openai.OpenAI(base_url=server.url, api_key=KEY)

    def post(self, path, body, **headers):
        answer = self.http.post(self.server.url + path, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def register(self, name="guest"):
        about = {"entity": None, "project": "riddles", "name": name, "base_model": "base"}
        model = self.post(MODELS, about | {"return_existing": True})
        self.model_id, self.name = model["id"], f"wandb-artifact:///local/riddles/{name}"

    def asked(self, messages, **options):
        return self.chat.chat.completions.create(model=self.name, messages=messages, **options)

    def job(self, *conversations, **headers):
        group = {
            "trajectories": [trajectory(c, n) for n, c in enumerate(conversations)],
            "exceptions": [],
            "metadata": {},
            "metrics": {},
            "logs": [],
        }
        config = {"learning_rate": 5e-6, "epsilon": None, "ppo": False, "scale_rewards": True}
        body = {"model_id": self.model_id, "trajectory_groups": [group]}
        return self.post(JOBS, body | {"experimental_config": config}, **headers)["id"]

    def last_event(self, job):
        for _ in range(300):
            url = f"{self.server.url}{JOBS}/{job}/events?wait=5"
            events = self.http.get(url).json()["data"]
            if events and events[-1]["type"] in ("training_ended", "training_failed"):
                return events[-1]
            time.sleep(0.01)
        raise AssertionError("the job did not end")

    @property
    def trained(self):
        groups = self.server.backend.trained[-1]
        return [t.messages_and_choices for group in groups for t in group.trajectories]


@pytest.fixture
def client(serving):
    one = Client(serving(Recording()))
    one.register()
    yield one
    one.http.close()
    one.chat.close()


def trajectory(conversation, reward):
    """A trajectory as the published client of the preview API writes it."""
    return {
        "messages_and_choices": conversation,
        "tools": None,
        "additional_histories": [],
        "reward": float(reward),
        "initial_policy_version": None,
        "final_policy_version": None,
        "metrics": {"length": 3},
        "metadata": {},
        "logs": [],
    }


def plain(choice):
    """A choice as that client writes it: OpenAI's fields, without values where none were asked."""
    dumped = choice.model_dump(mode="json")
    dumped["message"] = SPOKEN | {"tool_calls": None} | dumped["message"]
    assert not {"token_ids", "prompt_token_ids"} & dumped.keys()
    return {"finish_reason": "stop", "index": 0, "logprobs": None} | dumped


def conversation(client, question, **options):
    """Ask twice, and return the messages and plain choices."""
    first = [{"role": "user", "content": question}]
    one = client.asked(first, **options).choices[0]
    more = {"role": "user", "content": "go on"}
    second = [*first, {"role": "assistant", "content": one.message.content}, more]
    two = client.asked(second, **options).choices[0]
    return [*first, plain(one), more, plain(two)]


def test_choices_that_are_plain_are_trained_with_the_tokens_that_were_sampled(client):
    conversations = [conversation(client, "what is wet?") for _ in range(2)]
    for step in (0, 1):
        assert client.last_event(client.job(*conversations))["type"] == "training_ended"
        for items in client.trained:
            first, second = (tokens_of(item) for item in items[1::2])
            assert bytes(first.completion_ids[:-1]).decode() == items[1]["message"]["content"]
            assert first.logprobs == (-0.5,) * len(first.completion_ids)
            assert second.prompt_ids != first.prompt_ids
            assert (first.policy_version, second.policy_version) == (0, 0)
        assert len(client.server.backend.trained) == step + 1


def test_fields_about_tokens_come_only_to_those_who_ask(client):
    messages = [{"role": "user", "content": "hi"}]
    neither = client.asked(messages)
    assert "prompt_token_ids" not in neither.to_dict()
    assert neither.choices[0].logprobs is None
    only_logprobs = client.asked(messages, logprobs=True)
    assert "token_ids" not in only_logprobs.choices[0].to_dict()
    assert only_logprobs.choices[0].logprobs.content
    both = client.asked(messages, logprobs=True, extra_body={"return_token_ids": True})
    assert both.to_dict()["prompt_token_ids"]
    assert len(both.choices[0].to_dict()["token_ids"]) == len(both.choices[0].logprobs.content)


def test_a_streamed_answer_is_known_too(client):
    messages = [{"role": "user", "content": "hi"}]
    chunks = list(client.asked(messages, stream=True))
    assert all("prompt_token_ids" not in chunk.to_dict() for chunk in chunks)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    assert client.last_event(client.job(*[[*messages, choice]] * 2))["type"] == "training_ended"
    assert tokens_of(client.trained[0][1]).completion_ids[:-1] == tuple(text.encode())


def test_log_probs_find_an_answer_whose_messages_are_others(client):
    asked = [{"role": "user", "content": "hi"}]
    choice = client.asked(asked, logprobs=True).choices[0].model_dump(mode="json")
    shortened = [[{"role": "user", "content": "something else"}, choice]] * 2
    assert client.last_event(client.job(*shortened))["type"] == "training_ended"
    assert tokens_of(client.trained[0][1]).completion_ids


@pytest.mark.parametrize("change", ["text", "messages"])
def test_a_text_that_was_not_sampled_here_fails_with_what_a_choice_must_hold(client, change):
    items = conversation(client, "what is cold?")
    if change == "text":
        items[3]["message"]["content"] += "!"
    else:
        items[0] = {"role": "user", "content": "something else"}
    place = {"text": 3, "messages": 1}[change]
    event = client.last_event(client.job(items, items))
    assert event["type"] == "training_failed"
    said = event["data"]["error_message"]
    assert f"trajectory_groups[0].trajectories[0].messages_and_choices[{place}]" in said
    assert "prompt_token_ids, token_ids and logprobs.content" in said
    assert client.server.backend.trained == []


def test_answers_belong_to_their_model_and_go_with_it(client):
    items = conversation(client, "what is cold?")
    first = client.model_id
    client.register("other")
    assert client.last_event(client.job(items, items))["type"] == "training_failed"
    client.register()
    assert client.model_id == first
    assert client.http.delete(f"{client.server.url}{MODELS}/{first}").status_code == 204
    client.register()
    assert client.last_event(client.job(items, items))["type"] == "training_failed"


def test_a_request_of_one_key_is_one_job_also_when_the_answers_are_forgotten(client):
    items = conversation(client, "what is cold?")
    job = client.job(items, items, **{"Idempotency-Key": "k"})
    assert client.last_event(job)["type"] == "training_ended"
    client.asked([{"role": "user", "content": "hi"}])
    assert client.job(items, items, **{"Idempotency-Key": "k"}) == job


def completion(text="ab", ids=(1, 2), logprobs=(-0.5, -0.25), prompt=(7, 8, 9), **more):
    entries = [{"logprob": value} for value in logprobs]
    message = {"role": "assistant", "content": text}
    choice = {"message": message, "token_ids": list(ids), "logprobs": {"content": entries}}
    return {"prompt_token_ids": list(prompt), "choices": [choice], **more}


ASKED = [{"role": "user", "content": "q"}]


def found(answers, message, before=ASKED, model="m", **choice):
    """Fill one conversation, and return its last choice, or None if it stays without tokens."""
    given = {"message": message, "finish_reason": "stop", **choice}
    items = [*before, given]
    filled = answers.filled(model, [{"trajectories": [{"messages_and_choices": items}]}])
    return (
        None if filled.unknown else filled.groups[0]["trajectories"][0]["messages_and_choices"][-1]
    )


def test_the_oldest_answers_are_forgotten_first():
    answers = SampledAnswers(max_numbers=14)  # two answers of seven numbers
    for text in ("a", "b", "c"):
        answers.remember("m", ASKED, completion(text))
    known = [t for t in "abc" if found(answers, {"role": "assistant", "content": t})]
    assert known == ["b", "c"]


def test_of_equal_texts_the_newest_counts_unless_log_probs_say_which():
    answers = SampledAnswers()
    answers.remember("m", ASKED, completion(ids=(1, 2), policy_version=3))
    answers.remember("m", ASKED, completion(ids=(5,), logprobs=(-0.125,), sampling={"top_p": 0.5},
                                         grammar="start: /b/"))  # fmt: skip
    message = {"role": "assistant", "content": "ab"}
    newest = found(answers, message)
    assert (newest["token_ids"], newest["sampling"]) == ([5], {"top_p": 0.5})
    assert newest["grammar"] == "start: /b/"
    entries = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -0.25}]
    older = found(answers, message, logprobs={"content": entries})
    assert (older["token_ids"], older["policy_version"]) == ([1, 2], 3)
    assert "grammar" not in older
    assert older["logprobs"] == {"content": entries}


def test_an_answer_to_images_keeps_their_digests():
    answers = SampledAnswers()
    answers.remember("m", ASKED, completion() | {"prompt_images": ["one", "two"]})
    whole = found(answers, {"role": "assistant", "content": "ab"})
    assert tokens_of(whole).images == ("one", "two")


def test_an_answer_without_its_tokens_is_not_remembered():
    answers = SampledAnswers()
    answers.remember("m", ASKED, completion(logprobs=(-0.5,)))
    answers.remember("m", ASKED, completion(prompt=()))
    assert found(answers, {"role": "assistant", "content": "ab"}) is None


@pytest.mark.parametrize(
    ("sent", "given"),
    [
        ({"role": "user", "content": "q", "name": None}, {"role": "user", "content": "q"}),
        (
            {"role": "user", "content": "q"},
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": []},
            {"role": "assistant", "content": ""},
        ),
    ],
)
def test_messages_are_the_same_however_a_client_writes_them(sent, given):
    answers = SampledAnswers()
    answers.remember("m", [sent], completion())
    assert found(answers, {"role": "assistant", "content": "ab"}, [given])


def test_tool_calls_are_part_of_an_answer_and_histories_are_filled():
    answers = SampledAnswers()
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    answer = completion(None)
    answer["choices"][0]["message"]["tool_calls"] = [call]
    answers.remember("m", ASKED, answer)
    message = {"role": "assistant", "content": None, "tool_calls": [call], **SPOKEN}
    history = {"messages_and_choices": [*ASKED, {"message": message, "finish_reason": "stop"}]}
    whole = {"messages_and_choices": [], "additional_histories": [history]}
    filled = answers.filled("m", [{"trajectories": [whole]}])
    assert filled.problem() is None
    inside = filled.groups[0]["trajectories"][0]["additional_histories"][0]
    assert inside["messages_and_choices"][1]["token_ids"] == [1, 2]
    other = {**message, "tool_calls": [{**call, "id": "c2"}]}
    assert found(answers, other) is None
    for odd in ([5], "x", [{"function": 3}]):
        assert found(answers, {**message, "tool_calls": odd}) is None


def test_a_client_that_sends_tokens_may_leave_some_choices_without():
    answers = SampledAnswers()
    whole = {**completion()["choices"][0], "prompt_token_ids": [7]}
    unknown = {"message": {"role": "assistant", "content": "?"}, "logprobs": "odd"}
    items = [{"messages_and_choices": [whole]}, {"messages_and_choices": [unknown]}]
    filled = answers.filled("m", [{"trajectories": items}])
    assert filled.unknown == ["trajectory_groups[0].trajectories[1].messages_and_choices[0]"]
    assert filled.problem() is None
