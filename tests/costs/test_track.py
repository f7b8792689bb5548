import asyncio
import contextvars
import functools
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from weakref import WeakSet

import pytest

import art_core as art
from art_core.base.errors import ConfigError, MetricError, PricingError
from art_core.costs import builder, pending

RESPONSE = {"usage": {"prompt_tokens": 1_000_000, "completion_tokens": 100_000}}


@pytest.fixture
def model(tmp_path):
    return art.Model(name="m", project="p", base_path=tmp_path, sinks=[], plugins=art.Plugins())


def tracked(function, **options):
    return art.track_api_cost(
        source="llm_judge/correctness", provider="acme", model_name="acme/judge", **options
    )(function)


PRICES = {"prompt_per_million": 1.0, "completion_per_million": 10.0}


async def test_costs_land_under_the_active_context_of_an_async_function(model):
    async def judge():
        return RESPONSE

    judge = tracked(judge, **PRICES)
    with model.metrics_builder("train").activate_context():
        assert await judge() is RESPONSE
    with model.metrics_builder("eval").activate_context():
        await judge()
        await judge()
    row = await model.log(split="train")
    assert row.metrics["costs/train/llm_judge/correctness"] == 2.0
    assert row.metrics["costs/eval/llm_judge/correctness"] == 4.0
    assert row.metrics["costs/train"] == 2.0
    assert row.metrics["costs/all"] == row.metrics["costs/cum/all"] == 6.0
    await model.close()


async def test_a_sync_function_and_a_getter_work_too(model):
    judge = tracked(lambda: ("verdict", RESPONSE), response_getter=lambda result: result[1])
    model.metrics_builder().register_model_pricing("acme/judge", **PRICES)
    with model.metrics_builder("train").activate_context():
        assert judge()[0] == "verdict"
    assert (await model.log()).metrics["costs/train/llm_judge/correctness"] == 2.0
    await model.close()


def test_a_missing_price_raises_before_the_call_is_made(model):
    calls = []
    judge = tracked(lambda: calls.append(1))
    with model.metrics_builder("train").activate_context(), pytest.raises(PricingError):
        judge()
    assert calls == []


async def test_a_paid_result_is_never_lost_when_its_cost_cannot_be_read(model, caplog):
    def broken(result):
        raise KeyError("usage")

    judge = tracked(lambda: "verdict", response_getter=broken, **PRICES)
    with model.metrics_builder("train").activate_context():
        assert judge() == "verdict"
    assert (await model.log()).metrics["data/step_unpriced_calls"] == 1.0
    assert "result is kept" in caplog.text
    await model.close()


async def test_in_a_thread_pool_the_cost_goes_to_the_only_open_model(no_open_models, tmp_path):
    with_prices = tracked(lambda: RESPONSE, **PRICES)
    model = art.Model(name="m", project="p", base_path=tmp_path, sinks=[], plugins=art.Plugins())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: with_prices(), range(8)))
    assert (await model.log()).metrics["costs/train/llm_judge/correctness"] == 16.0
    await model.close()


def chunks():
    yield {"choices": [1]}
    yield RESPONSE


async def async_chunks():
    for chunk in chunks():
        yield chunk


class Stream:
    """Like openai's AsyncStream: an async iterator with an iterator method of its own."""

    def __init__(self):
        self.chunks = async_chunks()

    async def __anext__(self):
        return await anext(self.chunks)

    def __aiter__(self):
        return self


class OnlyIterable:
    def __aiter__(self):
        return async_chunks()


async def test_streams_are_priced_when_they_end(model):
    async def give(stream):
        return stream

    with model.metrics_builder("train").activate_context():
        assert len(list(tracked(chunks, **PRICES)())) == 2
        assert len(list(tracked(functools.partial(chunks), **PRICES)())) == 2
        assert len([c async for c in tracked(async_chunks, **PRICES)()]) == 2
        assert len([c async for c in await tracked(give, **PRICES)(Stream())]) == 2
        assert len([c async for c in await tracked(give, **PRICES)(OnlyIterable())]) == 2
    assert (await model.log()).metrics["costs/train/llm_judge/correctness"] == 10.0
    await model.close()


async def test_the_method_of_a_client_that_only_returns_an_awaitable_is_priced(model):
    """As of AsyncOpenAI: a plain function checks the arguments, then calls the async one."""

    async def create():
        return RESPONSE

    with model.metrics_builder("train").activate_context():
        assert await tracked(lambda: create(), **PRICES)() is RESPONSE
        chunks = await tracked(lambda: asyncio.sleep(0, result=Stream()), **PRICES)()
        assert len([c async for c in chunks]) == 2
    assert (await model.log()).metrics["costs/train/llm_judge/correctness"] == 4.0
    await model.close()


async def test_what_can_more_than_be_awaited_is_handed_on_as_it_is(model):
    class Pages:
        def __await__(self):
            yield

        async def __aenter__(self):
            return "entered"

        async def __aexit__(self, *error):
            return None

    with model.metrics_builder("train").activate_context():
        async with tracked(Pages, **PRICES)() as entered:
            assert entered == "entered"
    await model.close()


async def test_a_call_may_be_dropped_unfinished_in_another_context(model):
    with model.metrics_builder("train").activate_context():
        call = tracked(lambda: asyncio.sleep(0), **PRICES)()
    contextvars.copy_context().run(call.send, None)
    call.close()
    assert not (await model.log(split="train")).metrics.get("data/step_unpriced_calls")
    await model.close()


class Judge:
    prices = {"source": "judge", "provider": "acme", "model_name": "judge"} | PRICES

    @art.track_api_cost(**prices)
    def answer(self):
        return RESPONSE

    @art.track_api_cost(**prices)
    async def answer_later(self):
        return RESPONSE

    @art.track_api_cost(**prices)
    def stream(self):
        yield from chunks()
        return "ended"

    @art.track_api_cost(**prices)
    async def stream_later(self):
        async for chunk in async_chunks():
            yield chunk


async def test_methods_of_all_kinds_may_be_tracked(model):
    judge = Judge()

    def in_full():
        assert (yield from judge.stream()) == "ended"

    with model.metrics_builder("train").activate_context():
        assert judge.answer() is await judge.answer_later()
        assert len(list(in_full())) == len([c async for c in judge.stream_later()]) == 2
    assert (await model.log()).metrics["costs/train/judge"] == 8.0
    await model.close()


async def test_an_async_stream_that_is_left_early_is_closed_at_once(model):
    closed = []

    async def endless():
        try:
            while True:
                yield RESPONSE
        finally:
            closed.append(True)

    with model.metrics_builder("train").activate_context():
        stream = tracked(endless, **PRICES)()
        await anext(stream)
        await stream.aclose()
    assert closed == [True]
    assert (await model.log()).metrics["costs/train/llm_judge/correctness"] == 2.0
    await model.close()


async def test_a_response_that_tracked_calls_hand_on_is_paid_once(model):
    async def call():
        return {"usage": dict(RESPONSE["usage"])}

    paid = art.track_api_cost(source="api", provider="acme", model_name="m", **PRICES)
    inner = paid(call)

    async def best_of_two():
        responses = await asyncio.gather(inner(), inner())
        return "verdict", responses[1]

    middle = tracked(best_of_two, response_getter=lambda result: result[1], **PRICES)
    outer = tracked(lambda: middle(), response_getter=lambda result: result[1], **PRICES)
    streaming = tracked(paid(lambda: iter([RESPONSE])), **PRICES)
    with model.metrics_builder("train").activate_context():
        assert (await outer())[0] == "verdict"
        assert len(list(streaming())) == 1
        await inner()  # no function returns this one
    metrics = (await model.log(split="train")).metrics
    assert metrics["costs/train/api"] == metrics["costs/all"] == 8.0
    await model.close()


class CutError(Exception):
    """As openai.LengthFinishReasonError, which `parse` raises at an answer that was cut off."""

    completion = RESPONSE


async def test_an_answer_that_a_client_paid_and_then_refused_is_paid_once(model):
    async def parse():
        raise CutError

    def fail():
        raise ValueError

    inner = tracked(parse, **PRICES)
    outer = tracked(lambda: inner(), response_getter=lambda result: result.verdict, **PRICES)
    with model.metrics_builder("train").activate_context():
        with pytest.raises(CutError):
            await outer()
        with pytest.raises(ValueError):
            tracked(fail, **PRICES)()
    metrics = (await model.log(split="train")).metrics
    assert metrics["costs/all"] == 2.0
    assert "data/step_unpriced_calls" not in metrics
    await model.close()


async def test_a_call_of_its_own_is_paid_beside_the_calls_inside_it(model):
    inner = art.track_api_cost(source="api", provider="acme", model_name="m", **PRICES)(
        lambda: dict(RESPONSE)
    )

    def asks_twice():
        inner()
        return dict(RESPONSE)

    with model.metrics_builder("train").activate_context():
        tracked(asks_twice, **PRICES)()
    metrics = (await model.log(split="train")).metrics
    assert metrics["costs/train/api"] == metrics["costs/train/llm_judge"] == 2.0
    await model.close()


class WordCount:
    """Reads the responses of a house that counts words; a chunk is one of them."""

    @art.hookimpl
    def art_usage(self, response, provider):
        words = response.get("words") if isinstance(response, dict) else None
        return None if words is None else art.TokenUsage(output_tokens=words)


async def test_a_plugin_and_an_extractor_read_a_stream_as_they_read_a_response(model):
    async def words():
        yield {"text": "y"}
        yield {"words": 100_000}

    def cents():
        yield {"text": "y"}
        yield {"cents": 50}

    model.plugins.register(WordCount(), "words")
    with model.metrics_builder("train").activate_context():
        assert len([c async for c in tracked(words, **PRICES)()]) == 2
        model.metrics_builder().register_cost_extractor("acme", lambda r: r["cents"] / 100)
        assert len(list(tracked(cents)())) == 2
    metrics = (await model.log(split="train")).metrics
    assert metrics["costs/train/llm_judge/correctness"] == 1.5
    assert "data/step_unpriced_calls" not in metrics
    await model.close()


async def test_a_stream_whose_cost_cannot_be_booked_ends_as_it_would(model, caplog):
    with model.metrics_builder("all").activate_context():  # the sum of everything is no context
        assert len(list(tracked(chunks, **PRICES)())) == 2
    row = await model.log(split="train")
    assert row.metrics["data/step_unpriced_calls"] == 1.0
    assert "result is kept" in caplog.text
    await model.close()


@pytest.mark.parametrize("missing", ["source", "provider", "model_name"])
def test_source_provider_and_model_are_required(missing):
    names = {"source": "judge", "provider": "acme", "model_name": "judge"} | {missing: ""}
    with pytest.raises(ConfigError, match=missing):
        art.track_api_cost(**names)


@pytest.mark.parametrize("source", ["a//b", " judge", "judge/", "cum/judge"])
def test_a_source_that_is_no_path_of_a_cost_is_refused_before_any_call(source):
    with pytest.raises(MetricError, match="costs/train/"):
        art.track_api_cost(source=source, provider="acme", model_name="judge")


def test_a_call_may_be_made_while_another_thread_opens_a_model(no_open_models, monkeypatch):
    first, second = (builder.MetricsBuilder(None, None) for _ in range(2))
    other = threading.Thread(target=pending.offer_default, args=[second])

    class Open(WeakSet):
        def __iter__(self):
            for each in super().__iter__():
                if other.ident is None:
                    other.start()
                    other.join(0.05)  # it waits until the models are looked through
                yield each

    monkeypatch.setattr(pending, "default_builders", Open([first]))
    assert pending.open_builders() == [first]
    other.join()
    assert set(pending.open_builders()) == {first, second}


async def test_a_task_and_the_futures_of_threads_are_priced_when_they_are_done(model):
    async def call():
        return RESPONSE

    async def fails():
        raise CutError

    create_task = asyncio.get_running_loop().create_task
    with ThreadPoolExecutor(1) as pool, model.metrics_builder("train").activate_context():
        assert await tracked(lambda: create_task(call()), **PRICES)() is RESPONSE
        submitted = tracked(tracked(lambda: pool.submit(dict, RESPONSE), **PRICES), **PRICES)()
        assert submitted.result() == RESPONSE
        in_a_loop = tracked(
            lambda: asyncio.get_running_loop().run_in_executor(pool, dict, RESPONSE), **PRICES
        )
        assert await in_a_loop() == RESPONSE
        handed_on = tracked(lambda: create_task(tracked(call, **PRICES)()), **PRICES)
        assert await handed_on() is RESPONSE
        with pytest.raises(CutError):
            await tracked(lambda: create_task(fails()), **PRICES)()
        pool.submit(int).result()  # what was done before has been counted
    metrics = (await model.log(split="train")).metrics
    assert metrics["costs/all"] == 10.0
    assert "data/step_unpriced_calls" not in metrics
    await model.close()


async def test_a_future_of_a_thread_that_fails_or_is_cancelled_costs_nothing(model, caplog):
    def fails():
        raise ValueError

    with ThreadPoolExecutor(1) as pool, model.metrics_builder("train").activate_context():
        with pytest.raises(ValueError):
            tracked(lambda: pool.submit(fails), **PRICES)().result()
        cancelled = Future()
        assert tracked(lambda: cancelled, **PRICES)() is cancelled
        assert cancelled.cancel()
    assert "costs/all" not in (await model.log(split="train")).metrics
    assert not caplog.text
    await model.close()


async def test_counts_that_are_none_are_named_once_without_a_traceback(model, caplog):
    odd = tracked(lambda: {"usage": {"prompt_tokens": "many"}}, **PRICES)
    text = tracked(lambda: {"usage": {"prompt_tokens": "1000000", "cost": True}}, **PRICES)
    with model.metrics_builder("train").activate_context():
        odd(), odd(), text()
    metrics = (await model.log(split="train")).metrics
    assert metrics["data/step_unpriced_calls"] == 2.0
    assert metrics["costs/all"] == 1.0
    assert caplog.text.count("prompt_tokens must be a whole number, got 'many'") == 1
    assert "'acme' reports a cost of True US dollars: ignored" in caplog.text
    assert "Traceback" not in caplog.text
    await model.close()
