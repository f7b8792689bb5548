"""Judges: what they are asked, what is read, what it costs, and what goes wrong."""

import asyncio
import sys
from types import SimpleNamespace

import pytest
from judge_server import USAGE, in_turn, judging

import art_core as art
from art_core import rewards
from art_core.rewards.answers import json_in, score_of, to_unit
from art_core.rewards.judge import judge_of
from art_core.testing.echo import EchoBackend

ASK = [{"role": "user", "content": "Judge."}]
PRICES = {"prompt_per_million": 2.0, "completion_per_million": 8.0}
DOLLARS = (USAGE["prompt_tokens"] * 2 + USAGE["completion_tokens"] * 8) / 1e6


def number(value):
    return score_of(value["score"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ('```\n{"a": 1}\n```\nThat is all.', {"a": 1}),
        ('Sure! {"a": [1, 2]} is it, not {}.', {"a": [1, 2]}),
        ('<think>{"a": 0}</think>{"a": 1}', {"a": 1}),
        ("{not json} [1]", [1]),
    ],
)
def test_json_is_found_in_an_answer(text, value):
    assert json_in(text) == value


@pytest.mark.parametrize("text", ["", "I can't say.", "{", "{" * 100_000])
def test_an_answer_without_json_is_an_error(text):
    with pytest.raises(art.RewardError, match="holds no JSON"):
        json_in(text)


def test_scores_are_finite_numbers():
    assert score_of("0.5") == 0.5
    for bad in (True, None, "high", float("inf"), [1]):
        with pytest.raises(art.RewardError, match="a score must be"):
            score_of(bad)


@pytest.mark.parametrize(
    ("scores", "units"),
    [
        ([0.2, 1.0], [0.2, 1.0]),
        ([1.2, -0.5], [1.0, 0.0]),
        ([7, 3, 10], [0.7, 0.3, 1.0]),
        ([70, 5], [0.7, 0.05]),
        ([700.0], [1.0]),
        ([], []),
    ],
)
def test_scores_of_other_scales_become_shares(scores, units):
    assert to_unit(scores) == pytest.approx(units)


async def test_a_judge_is_asked_for_structured_output():
    with judging(lambda _: '{"score": 0.5}') as server:
        judge = art.Judge(model="m", base_url=server.url, options={"temperature": 0})
        assert await judge.ask(ASK, number, schema={"type": "object"}) == 0.5
        assert await judge.ask(ASK, number) == 0.5
    first, second = server.requests
    assert first["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert (first["temperature"], first["messages"]) == (0, ASK)
    assert "response_format" not in second


async def test_a_service_without_structured_output_is_asked_without_from_then_on():
    def answer(request):
        refused = "response_format" in request
        return (400, {"error": {"message": "no"}}) if refused else '{"score": 1}'

    with judging(answer) as server:
        judge = art.Judge(model="m", base_url=server.url)
        for _ in range(2):
            assert await judge.ask(ASK, number, schema={}) == 1
    assert [("response_format" in r) for r in server.requests] == [True, False, False]


async def test_an_answer_that_does_not_fit_is_asked_for_once_more_with_the_reason():
    with judging(in_turn("Good!", '{"score": 0.5}')) as server:
        judge = art.Judge(model="m", base_url=server.url)
        assert await judge.ask(ASK, number) == 0.5
    *_, answer, reason = server.requests[1]["messages"]
    assert answer == {"role": "assistant", "content": "Good!"}
    assert reason["content"].startswith("the answer holds no JSON: 'Good!'")


async def test_a_judge_that_stays_with_prose_is_an_error():
    with judging(lambda _: "Good!") as server:
        judge = art.Judge(model="m", base_url=server.url)
        with pytest.raises(art.RewardError, match="the judge m gave no usable answer"):
            await judge.ask(ASK, number)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"role": "assistant", "content": None, "refusal": "I won't."}, 'refused: "I won\'t."'),
        ((200, {"id": "x", "object": "chat.completion", "choices": []}), "returned no answer"),
        ((403, {"error": {"message": "no"}}), "could not be asked: PermissionDeniedError"),
        ((500, {}), "could not be asked: InternalServerError"),
    ],
)
async def test_a_judge_that_refuses_or_fails_is_an_error(answer, problem):
    with judging(lambda _: answer) as server:
        judge = art.Judge(model="m", base_url=server.url, max_retries=0)
        with pytest.raises(art.RewardError, match=problem):
            await judge.ask(ASK, number, schema={})


async def test_a_busy_service_is_asked_again():
    with judging(in_turn((429, {}), '{"score": 1}')) as server:
        judge = art.Judge(model="m", base_url=server.url)
        assert await judge.ask(ASK, number) == 1


async def test_a_call_has_a_time_limit():
    import threading

    released = threading.Event()
    with judging(lambda _: released.wait(30) and "{}") as server:
        judge = art.Judge(model="m", base_url=server.url, timeout=0.05, max_retries=0)
        with pytest.raises(art.RewardError, match="APITimeoutError"):
            await judge.ask(ASK, number)
        released.set()


async def test_few_calls_run_together():
    with judging(lambda _: '{"score": 1}') as server:
        judge = art.Judge(model="m", base_url=server.url, max_concurrent=2)
        await asyncio.gather(*(judge.ask(ASK, number) for _ in range(12)))
    assert len(server.requests) == 12
    assert server.most_together <= 2


async def test_the_cost_is_booked_and_capped(tmp_path):
    model = art.Model(name="m", project="p", base_path=tmp_path, sinks=[])
    builder = model.metrics_builder("train")
    builder.register_model_pricing("judge-1", **PRICES)
    with judging(lambda _: '{"score": 1}') as server:
        judge = art.Judge(model="judge-1", base_url=server.url, source="judge/x", max_usd=DOLLARS)
        with builder.activate_context():
            await judge.ask(ASK, number)
            with pytest.raises(art.RewardError, match=r"has spent 0.0028 US dollars of max_usd="):
                await judge.ask(ASK, number)
    row = await model.log(split="train", step=1)
    assert row.metrics["costs/train/judge/x"] == pytest.approx(DOLLARS)
    assert judge.spent_usd == pytest.approx(DOLLARS)
    await model.close()


async def test_a_cap_can_not_be_kept_without_a_price(tmp_path):
    with judging(lambda _: '{"score": 1}') as server:
        judge = art.Judge(model="no-such-judge", base_url=server.url, max_usd=1.0)
        with pytest.raises(art.RewardError, match="has no known price, so max_usd=1 can't be kept"):
            await judge.ask(ASK, number)
    assert len(server.requests) == 1


async def test_a_prompted_model_judges_and_is_paid_once(tmp_path):
    with judging(lambda _: '{"score": 1}') as server:
        model = art.Model(
            name="m",
            project="p",
            base_path=tmp_path,
            sinks=[],
            inference_base_url=server.url,
            inference_model_name="paid",
        )
        builder = model.metrics_builder("eval")
        builder.register_model_pricing("paid", **PRICES)
        with builder.activate_context():
            assert await art.Judge(model=model).ask(ASK, number) == 1
        row = await model.log(split="val", step=1)
    assert server.requests[0]["model"] == "paid"
    assert row.metrics["costs/all"] == pytest.approx(DOLLARS)
    assert row.metrics["costs/eval/judge"] == pytest.approx(DOLLARS)
    await model.close()


async def test_a_trained_model_judges_on_its_backends_account(tmp_path):
    backend = EchoBackend()
    model = art.TrainableModel(
        name="m", project="p", base_model="echo-base", base_path=tmp_path, sinks=[]
    )
    await model.register(backend)
    echoed = [{"role": "user", "content": '{"score": 0.25}'}]
    judge = art.Judge(model=model)
    assert judge.name == "m"
    assert await judge.ask(echoed, number, schema={"type": "object"}) == 0.25
    row = await model.log(split="val", step=1)
    assert "costs/all" not in row.metrics
    await model.close()
    await backend.close()


async def test_openai_is_asked_with_its_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(art.ConfigError, match="needs a key"):
        await art.Judge(model="openai/gpt-4.1-mini").ask(ASK, number)
    with judging(lambda _: '{"score": 1}') as server:
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        for name in ("openai/gpt-4.1-mini", "gpt-4.1-mini"):
            assert await art.Judge(model=name).ask(ASK, number) == 1
    assert {r["model"] for r in server.requests} == {"gpt-4.1-mini"}


async def test_another_provider_is_asked_through_litellm(monkeypatch):
    asked = {}

    async def acompletion(**request):
        asked.update(request)
        message = SimpleNamespace(content='{"score": 1}', refusal=None)
        return SimpleNamespace(choices=[SimpleNamespace(message=message)], usage=None)

    monkeypatch.setitem(sys.modules, "litellm", SimpleNamespace(acompletion=acompletion))
    judge = art.Judge(model="anthropic/claude-x", api_key="k", timeout=5, max_retries=1)
    assert await judge.ask(ASK, number) == 1
    assert asked["model"] == "anthropic/claude-x"
    assert (asked["api_key"], asked["timeout"]) == ("k", 5)
    assert (asked["num_retries"], asked["max_retries"]) == (0, 0), "the judge itself retries"


class OfLitellmError(Exception):
    def __init__(self, status):
        super().__init__("no")
        if status is not None:
            self.status_code = status


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (OfLitellmError(429), 3),
        (OfLitellmError(503), 3),
        (ConnectionError("no"), 3),
        (OfLitellmError(401), 1),
        (OfLitellmError(None), 1),
    ],
)
async def test_litellms_calls_are_retried_where_it_may_help(error, calls, monkeypatch):
    made = []

    async def acompletion(**request):
        made.append(request)
        raise error

    monkeypatch.setattr("art_core.rewards.service.FIRST_WAIT_S", 0.0)
    monkeypatch.setitem(sys.modules, "litellm", SimpleNamespace(acompletion=acompletion))
    with pytest.raises(art.RewardError, match="could not be asked"):
        await art.Judge(model="anthropic/claude-x", max_retries=2).ask(ASK, number)
    assert len(made) == calls


async def test_without_litellm_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "litellm", None)
    with pytest.raises(art.ConfigError, match=r"pip install 'art-core\[judges\]'"):
        await art.Judge(model="anthropic/claude-x").ask(ASK, number)


@pytest.mark.parametrize("model", [None, "", 3])
def test_a_judge_needs_a_model(model):
    with pytest.raises(art.ConfigError, match="a judge is a model's name or an art.Model"):
        art.Judge(model=model)
    with pytest.raises(art.ConfigError):
        judge_of(model)


@pytest.mark.parametrize(
    ("limit", "problem"),
    [
        ({"max_concurrent": 0}, "max_concurrent of a judge must be a number above 0, got 0"),
        ({"timeout": 0}, "timeout of a judge must be a number above 0, got 0"),
        ({"timeout": None}, "timeout of a judge must be a number above 0, got None"),
        ({"max_retries": -1}, "max_retries of a judge must be a number of at least 0, got -1"),
        ({"max_usd": "5"}, "max_usd of a judge must be a number of at least 0, got '5'"),
    ],
)
def test_the_limits_of_a_judge_are_checked(limit, problem):
    with pytest.raises(art.ConfigError, match=problem):
        art.Judge(model="x", **limit)


def test_the_same_name_is_the_same_judge(tmp_path):
    assert judge_of("openai/x", "judge/a") is judge_of("openai/x", "judge/a")
    assert judge_of("openai/x", "judge/a") is not judge_of("openai/x", "judge/b")
    model = art.Model(name="m", project="p", base_path=tmp_path)
    assert judge_of(model) is judge_of(model)
    own = art.Judge(model="x")
    assert judge_of(own) is own


def met(*values):
    entries = [{"id": str(i), "reason": "r", "met": v} for i, v in enumerate(values, 1)]
    return {"criteria": entries}


async def test_a_rubric_is_the_weighted_share_of_what_is_met():
    import json

    criteria = {"names a date": 2.0, "is polite": 1.0, "makes something up": -1.0}
    with judging(lambda _: json.dumps(met(True, False, True))) as server:
        judge = art.Judge(model="m", base_url=server.url)
        value = await rewards.rubric_score("On Monday.", criteria, judge, question="When?")
    assert value == pytest.approx((2 - 1) / 3)
    prompt = server.requests[0]["messages"][1]["content"]
    assert "1. names a date" in prompt
    assert "<question>\nWhen?" in prompt


async def test_a_rubric_is_checked():
    import json

    with pytest.raises(art.ConfigError, match="a positive weight"):
        await rewards.rubric_score("x", {"bad": -1.0}, "m")
    for wrong in (met(True, True), met("yes"), {"criteria": 3}, []):
        with judging(lambda _, wrong=wrong: json.dumps(wrong)) as server:
            judge = art.Judge(model="m", base_url=server.url)
            with pytest.raises(art.RewardError, match="gave no usable answer"):
                await rewards.rubric_score("x", {"good": 1.0}, judge)


async def test_a_preference_is_judged_in_both_orders():
    def always_first(_):
        return '{"reason": "", "score": 1.0}'

    def longer(request):
        first, _, second = request["messages"][1]["content"].partition("</a>")
        return '{"score": 1}' if first.count("long") > second.count("long") else '{"score": 0}'

    with judging(always_first) as server:
        judge = art.Judge(model="m", base_url=server.url)
        assert await rewards.preference("one", "two", judge, question="?", criteria="c") == 0.5
        server.answer = longer
        assert await rewards.preference("long long", "x", judge) == 1
        assert await rewards.preference("x", "long long", judge) == 0
        count = len(server.requests)
        assert await rewards.preference("same", "same", judge) == 0.5
        assert len(server.requests) == count
        server.answer = lambda _: "[1]"
        with pytest.raises(art.RewardError, match="must be an object"):
            await rewards.preference("a", "b", judge)
