import gc
from types import SimpleNamespace

import pytest

from art_core.costs.stream import CUT, TrackedStream, later
from art_core.costs.track import is_stream
from art_core.metrics.providers import read_delta
from art_core.metrics.receipt import TokenUsage

OPENAI_CHAT = [
    {"choices": [{"delta": {"content": "y"}}], "usage": None},
    {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 3}},
]
OPENAI_RESPONSES = [
    {"type": "response.created", "response": {"usage": None}},
    {"type": "response.output_text.delta", "delta": "y"},
    {"type": "response.completed", "response": {"usage": {"input_tokens": 10, "output_tokens": 3}}},
]
ANTHROPIC = [
    {"type": "message_start", "message": {"usage": {"input_tokens": 10, "output_tokens": 1}}},
    {"type": "content_block_delta"},
    {"type": "message_delta", "usage": {"output_tokens": 3}},
]
GEMINI = [
    {"usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 1}},
    {"usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 3}},
]
OPENAI_HELPER = [{"type": "chunk", "chunk": chunk, "snapshot": {}} for chunk in OPENAI_CHAT]
MISTRAL = [{"data": chunk} for chunk in OPENAI_CHAT]
GROQ = [OPENAI_CHAT[0], {"choices": [], "x_groq": {"id": "x", "usage": OPENAI_CHAT[1]["usage"]}}]
LANGCHAIN = [
    {"usage_metadata": {"input_tokens": 10, "output_tokens": 0}},
    {"content": "y", "usage_metadata": None},
    {"usage_metadata": {"input_tokens": 0, "output_tokens": 2}},
    {"usage_metadata": {"input_tokens": 0, "output_tokens": 1}},
]
TEN_AND_THREE = TokenUsage(input_tokens=10, output_tokens=3)


HOUSES = [OPENAI_CHAT, OPENAI_HELPER, OPENAI_RESPONSES, ANTHROPIC, GEMINI, MISTRAL, GROQ, LANGCHAIN]


@pytest.mark.parametrize("chunks", HOUSES)
def test_the_usage_of_every_providers_stream_is_read_while_it_passes(chunks):
    seen = []
    assert list(TrackedStream(iter(chunks), seen.append)) == chunks
    assert seen == [TEN_AND_THREE]


async def test_an_async_stream_passes_too():
    async def stream():
        for chunk in ANTHROPIC:
            yield chunk

    seen = []
    assert [c async for c in TrackedStream(stream(), seen.append)] == ANTHROPIC
    assert seen == [TEN_AND_THREE]


def test_a_stream_that_breaks_off_is_counted_with_what_it_said():
    def stream():
        yield ANTHROPIC[0]
        raise ConnectionError

    seen = []
    tracked = TrackedStream(stream(), seen.append)
    next(tracked)
    with pytest.raises(ConnectionError):
        next(tracked)
    assert seen == [TokenUsage(input_tokens=10, output_tokens=1, unread=(CUT,))]


def test_a_chunk_whose_usage_makes_no_sense_does_not_break_the_stream(caplog):
    odd = {"usage": {"prompt_tokens": -5, "completion_tokens": 3}}
    seen = []
    assert list(TrackedStream(iter([odd]), seen.append)) == [odd]
    assert seen == [TokenUsage()]
    assert "no chunk of a stream could be read" in caplog.text


@pytest.mark.parametrize("odd", [None, "three", -1, 0.5])
def test_an_answers_tokens_are_a_count_or_nothing(odd):
    assert read_delta({"usage": {"output_tokens": 3}}) == TokenUsage(output_tokens=3)
    assert read_delta({"usage": {"output_tokens": odd}}) is None


def test_a_chunk_is_read_by_what_reads_a_whole_response(caplog):
    """A bill is in the last chunk, or in the response inside it; other chunks have none."""

    def words(response):
        return TokenUsage(output_tokens=response["words"])

    def dollars(response):
        return response["cents"] / 100

    chunks = [{"words": 2}, {"text": "y"}, {"words": 5, "response": {"cents": 50}}]
    seen = []
    list(TrackedStream(iter(chunks), seen.append, tokens=words, cost=dollars))
    assert seen == [TokenUsage(output_tokens=5, cost_usd=0.5)]
    assert not caplog.text


def test_what_can_read_no_chunk_at_all_is_said_once(caplog):
    seen = []
    cost = lambda response: response["cents"]  # noqa: E731
    list(TrackedStream(iter(OPENAI_CHAT), seen.append, cost=cost))
    assert seen == [TEN_AND_THREE]
    assert caplog.text.count("no chunk of a stream could be read") == 1
    assert "KeyError: 'cents'" in caplog.text


def test_a_chunk_that_cannot_be_looked_into_does_not_break_the_stream(caplog):
    class Odd:
        def __getattr__(self, name):
            raise KeyError(name)

    seen, odd = [], Odd()
    assert list(TrackedStream(iter([odd, *OPENAI_CHAT]), seen.append)) == [odd, *OPENAI_CHAT]
    assert seen == [TEN_AND_THREE]
    assert "the stream goes on" in caplog.text


def test_the_newest_cost_of_a_stream_counts():
    seen = []
    list(TrackedStream(iter([0.25, 0.5, None]), seen.append, cost=lambda said: said))
    assert seen == [TokenUsage(cost_usd=0.5)]


async def test_a_stream_that_is_closed_or_dropped_early_is_counted_once():
    class Stream:
        closed = 0
        response = "the response"

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.closed += 1

        async def __aenter__(self):
            return self

        async def __aexit__(self, *error):
            self.closed += 1

    seen = []
    with TrackedStream(Stream(), seen.append) as tracked:
        assert tracked.response == "the response"
    async with TrackedStream(Stream(), seen.append):
        pass
    del tracked
    gc.collect()
    assert seen == [TokenUsage(), TokenUsage()]
    TrackedStream(Stream(), seen.append)
    gc.collect()
    assert len(seen) == 3


def test_iterators_are_streams_and_responses_are_not():
    assert is_stream(iter([]))
    assert not is_stream([])
    assert not is_stream(SimpleNamespace(usage=None))


def test_a_later_chunk_never_takes_back_what_an_earlier_one_said():
    first = TokenUsage(input_tokens=10, service_tier="flex", cost_usd=0.5)
    assert later(first, TokenUsage(output_tokens=3)) == TokenUsage(
        input_tokens=10, output_tokens=3, service_tier="flex", cost_usd=0.5
    )
    assert later(first, TokenUsage(cost_usd=0.75)).cost_usd == 0.75
