import pytest
from score_server import ScoreServer

import art_core as art
from art_core.base.errors import BackendError, ConfigError
from art_core.client.openai_client import openai_client
from art_core.client.scorer import Scorer

IDS = [65, 66, 67]


@pytest.fixture
def server():
    made = ScoreServer()
    yield made
    made.close()


@pytest.fixture
async def scorer(server):
    endpoint = art.Endpoint(base_url=server.url, api_key="secret", model_name="teacher")
    async with openai_client(endpoint, trainable=False) as client:
        yield Scorer(client=client, model="teacher")


@pytest.mark.parametrize(
    ("way", "form", "first"),
    [
        ("echo", "echo", "A"),
        ("one token", "echo and one token", "A"),
        ("prompt_logprobs", "prompt_logprobs", ""),
    ],
)
async def test_each_way_of_servers_is_found_and_used_from_then_on(server, scorer, way, form, first):
    server.way = way
    found, text = await scorer.tried(IDS)
    assert found.form == form
    assert text.logprobs == (0.0, -0.66, -0.67)
    assert text.texts == (first, "B", "C")
    before = len(server.asked)
    assert await found.score(IDS) == text
    assert len(server.asked) == before + 1
    assert server.asked[-1]["prompt"] == IDS
    assert server.keys[-1] == "Bearer secret"


async def test_each_answer_is_shown_for_its_cost(server, scorer):
    seen = []
    await Scorer(client=scorer.client, model="teacher", seen=seen.append).score(IDS)
    assert [answer["usage"]["prompt_tokens"] for answer in seen] == [3]


@pytest.mark.parametrize("way", ["nothing", "no route"])
async def test_an_endpoint_without_log_probs_is_refused_with_its_reasons(server, scorer, way):
    server.way = way
    reason = "an answer without them" if way == "nothing" else "404, no such path"
    with pytest.raises(ConfigError, match=f"gives no log-probs of the tokens.*{reason}.*vLLM"):
        await scorer.tried(IDS)


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [(401, ConfigError, "does not accept the API key"), (429, BackendError, "is not ready: 429")],
)
async def test_a_key_or_a_limit_is_no_lack_of_log_probs(server, scorer, status, kind, reason):
    server.way = status
    with pytest.raises(kind, match=reason):
        await scorer.tried(IDS)
    assert len(server.asked) == 1


async def test_a_name_that_is_not_served_is_no_lack_of_log_probs(server, scorer):
    answer = {"error": {"message": "The model `teacher` does not exist."}}
    server.completion = lambda body: (404, answer)
    with pytest.raises(ConfigError, match="no model 'teacher' is served there: 404, The model"):
        await scorer.tried(IDS)
    assert len(server.asked) == 1


async def test_an_endpoint_that_is_gone_is_an_error(server, scorer):
    server.close()
    with pytest.raises(BackendError, match="can't be reached"):
        await scorer.tried(IDS)


async def test_a_failure_and_an_incomplete_answer_are_errors(server, scorer):
    server.way = 400
    with pytest.raises(BackendError, match="'teacher' did not score a text: 400, out of order"):
        await scorer.score(IDS)
    server.way = "nothing"
    with pytest.raises(BackendError, match="scored a text of 3 tokens incompletely"):
        await scorer.score(IDS)


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {"choices": [{"prompt_logprobs": [None, {"66": {"logprob": -1.0}}]}]},
        {"choices": [{"prompt_logprobs": [None, {"1": {}}, {"2": {}}]}]},
        {"choices": [{"logprobs": {"tokens": ["A"], "token_logprobs": [None]}}]},
        {"choices": [{"logprobs": {"tokens": ["A"] * 3, "token_logprobs": [None, None, -1]}}]},
    ],
)
async def test_an_answer_with_too_little_in_it_counts_as_none(server, scorer, answer):
    server.completion = lambda body: (200, answer)
    with pytest.raises(BackendError, match="incompletely"):
        await scorer.score(IDS)
