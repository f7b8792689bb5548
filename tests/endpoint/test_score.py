"""Log-probs of a given text: `/v1/completions` with echo."""

from __future__ import annotations

import asyncio
import math

import pytest

from art_core.base.errors import ConfigError, EngineError

ASKED = {"model": "agent", "prompt": [104, 105, 257], "echo": True, "max_tokens": 0, "logprobs": 1}


class Scores:
    """An engine that scores: the log-prob of a token is -token / 1000."""

    context_length = 400

    def __init__(self):
        self.asked, self.failure, self.pause_s = [], None, 0.0

    async def score(self, ids, adapter):
        self.asked.append((tuple(ids), adapter))
        if self.failure is not None:
            raise self.failure
        await asyncio.sleep(self.pause_s)
        return [-token / 1000 if token else -math.inf for token in ids[1:]]


@pytest.fixture
def scores(models):
    models.engine = Scores()
    return models.engine


async def test_a_text_is_scored_token_by_token(http, scores):
    answer = (await http.post("/completions", json=ASKED)).json()
    assert answer["object"] == "text_completion"
    assert (answer["model"], answer["policy_version"]) == ("agent@7", 7)
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}
    (choice,) = answer["choices"]
    assert choice["text"] == "hi<|end|>"
    assert choice["logprobs"]["tokens"] == ["h", "i", "<|end|>"]
    assert choice["logprobs"]["token_logprobs"] == [None, -0.105, -0.257]
    assert scores.asked == [((104, 105, 257), "agent-7")]


async def test_openais_client_reads_it(client, scores):
    found = await client.completions.create(
        model="agent", prompt="hi", max_tokens=0, echo=True, logprobs=1
    )
    assert found.choices[0].logprobs.token_logprobs == [None, -0.105]


async def test_a_probability_of_0_is_a_number_that_json_holds(http, scores):
    answer = (await http.post("/completions", json={**ASKED, "prompt": [1, 0]})).json()
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [None, -9999.0]


async def test_weights_without_a_step_have_no_version(http, models, scores):
    models.policy_version = None
    assert "policy_version" not in (await http.post("/completions", json=ASKED)).json()


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"echo": False}, "max_tokens"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"logprobs": 5}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"model": 3}, "model"),
        ({"model": ""}, "model"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["hi"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": [1] * 401}, "prompt"),
        ({"stop": "x"}, "stop"),
        ({"n": 2}, "n"),
    ],
)
async def test_a_request_that_is_not_for_scoring_is_refused(http, scores, changed, param):
    answer = await http.post("/completions", json={**ASKED, **changed})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert not scores.asked


async def test_neutral_parameters_are_taken(http, scores):
    more = {"n": 1, "stream": False, "temperature": 0.0, "user": "me"}
    assert (await http.post("/completions", json=ASKED | more)).status_code == 200


async def test_an_unknown_model_and_a_missing_key_are_refused(http, scores):
    assert (await http.post("/completions", json={**ASKED, "model": "other"})).status_code == 404
    http.headers["Authorization"] = "Bearer wrong"
    assert (await http.post("/completions", json=ASKED)).status_code == 401


async def test_an_engine_that_cannot_score_is_named(http):
    answer = await http.post("/completions", json=ASKED)
    assert answer.status_code == 501
    assert "gives no log-probs of prompts" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("failure", "status"),
    [(ConfigError("token 999 is outside the vocabulary"), 400), (EngineError("it died"), 503)],
)
async def test_an_engines_reason_is_in_the_answer(http, scores, failure, status):
    scores.failure = failure
    answer = await http.post("/completions", json=ASKED)
    assert answer.status_code == status
    assert str(failure.args[0]) in answer.json()["error"]["message"]


async def test_a_text_that_takes_too_long_is_given_up(http, scores):
    scores.pause_s = 60.0
    answer = await http.post("/completions", json=ASKED, timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_timeout")
