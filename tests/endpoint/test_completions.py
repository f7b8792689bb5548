"""The fields of a chat completion, whole and streamed, as the openai client reads it."""

from __future__ import annotations

import math

from art_core.endpoint.prompt import choice_seed
from art_core.endpoint.request import finite

HI = [{"role": "user", "content": "hi"}]
PROMPT = [256, *b"user\nhi", 257]
TOKENS = {"logprobs": True, "extra_body": {"return_token_ids": True}}


async def test_an_answer_has_text_usage_and_the_name_of_the_weights(engine, ask) -> None:
    engine.lines = ["hello"]
    answer = await ask()
    assert answer.object == "chat.completion"
    assert answer.model == "agent@7" and answer.policy_version == 7
    assert answer.choices[0].message.content == "hello"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(PROMPT), 6)
    assert engine.asked[0][0] == PROMPT and engine.asked[0][2] == "agent-7"


async def test_usage_tells_what_the_engine_had_of_the_prompt(engine, ask) -> None:
    assert (await ask()).usage.prompt_tokens_details is None
    engine.cached = [0, 4, 3]
    assert (await ask(n=2)).usage.prompt_tokens_details.cached_tokens == 3


async def test_a_streams_usage_tells_it_too(engine, ask) -> None:
    engine.cached = [6]
    stream = await ask(stream=True, stream_options={"include_usage": True})
    *_, last = [chunk async for chunk in stream]
    assert last.usage.prompt_tokens_details.cached_tokens == 6


async def test_a_model_without_steps_has_no_policy_version(models, ask) -> None:
    models.policy_version = None
    assert not hasattr(await ask(), "policy_version")


async def test_an_answer_says_when_it_was_not_drawn_by_its_log_probs(ask) -> None:
    assert not hasattr(await ask(temperature=1.0, top_p=1.0), "sampling")
    assert (await ask(temperature=0.5, top_p=0.9)).sampling == {"temperature": 0.5, "top_p": 0.9}
    assert (await ask(top_p=0.9)).sampling == {"top_p": 0.9}


async def test_token_ids_and_logprobs_are_aligned_and_the_end_token_is_among_them(
    engine, ask
) -> None:
    engine.lines = ["hey"]
    answer = await ask(**TOKENS)
    choice = answer.choices[0]
    assert answer.prompt_token_ids == PROMPT
    assert choice.token_ids == [*b"hey", 257]
    assert [entry.logprob for entry in choice.logprobs.content] == [-0.5] * 4
    assert [entry.token for entry in choice.logprobs.content] == ["h", "e", "y", "<|end|>"]
    assert choice.message.content == "hey"


async def test_without_being_asked_for_neither_ids_nor_logprobs_are_sent(ask) -> None:
    answer = await ask()
    assert answer.choices[0].logprobs is None
    assert not hasattr(answer, "prompt_token_ids") and not hasattr(answer.choices[0], "token_ids")


async def test_alternatives_come_with_each_token(engine, ask) -> None:
    engine.lines = ["a"]
    answer = await ask(logprobs=True, top_logprobs=2)
    assert engine.asked[0][1].top_logprobs == 2
    first = answer.choices[0].logprobs.content[0]
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [("a", -0.5), ("b", -1.5)]


async def test_bytes_of_a_part_of_a_character_are_its_own(engine, ask) -> None:
    engine.lines = ["é\u0080\u009f"]
    content = (await ask(logprobs=True)).choices[0].logprobs.content
    assert content[0].bytes == [0xC3]
    assert content[0].token == "\ufffd"
    assert content[5].bytes == [0x9F]
    # Letters outside the byte alphabet are lost; the replacement character's bytes stand in.
    assert content[3].bytes == list("\ufffd".encode())


def test_a_token_of_probability_zero_has_a_finite_logprob() -> None:
    assert finite(-math.inf) == -9999.0 and finite(-1.5) == -1.5


async def test_n_choices_are_sampled_each_with_a_seed_of_its_own(engine, ask) -> None:
    engine.lines = ["one", "two", "three"]
    answer = await ask(n=3, seed=11)
    assert sorted(choice.message.content for choice in answer.choices) == ["one", "three", "two"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    seeds = {sampling.seed for _, sampling, _ in engine.asked}
    assert len(seeds) == 3 and 11 in seeds
    assert answer.usage.completion_tokens == 4 + 4 + 6


def test_derived_seeds_repeat_and_fit_into_64_bits() -> None:
    assert choice_seed(5, 0) == 5 and choice_seed(None, 3) is None
    assert choice_seed(5, 1) == choice_seed(5, 1) != choice_seed(5, 2)
    assert 0 <= choice_seed(5, 1) < 2**63


async def test_sampling_options_reach_the_engine(engine, ask) -> None:
    await ask(temperature=0, top_p=0.5, max_tokens=3)
    sampling = engine.asked[0][1]
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.0, 0.5, 3)
    assert sampling.stop_token_ids == (257,)


async def test_a_tokenizer_without_an_end_token_asks_for_none(engine, tokenizer, ask) -> None:
    tokenizer.eos_token_id = None
    await ask()
    assert engine.asked[0][1].stop_token_ids == ()


async def test_by_default_the_answer_may_fill_the_context(engine, ask) -> None:
    await ask()
    await ask(max_completion_tokens=100_000)
    assert [s.max_tokens for _, s, _ in engine.asked] == [400 - len(PROMPT)] * 2


async def test_an_answer_that_is_cut_off_says_so(engine, ask) -> None:
    engine.lines = ["a long answer"]
    choice = (await ask(max_completion_tokens=6)).choices[0]
    assert choice.message.content == "a long" and choice.finish_reason == "length"


async def test_text_is_cut_before_a_stop_string_and_the_tokens_are_kept(engine, ask) -> None:
    engine.lines = ["one STOP two"]
    choice = (await ask(stop=["ST", "never"], **TOKENS)).choices[0]
    assert choice.message.content == "one " and choice.finish_reason == "stop"
    assert choice.token_ids == list(b"one ST")
    assert len(choice.logprobs.content) == 6


async def test_what_only_looked_like_a_stop_string_is_said(engine, ask) -> None:
    engine.lines = ["one ST"]
    assert (await ask(stop="STOP")).choices[0].message.content == "one ST"


async def test_list_content_and_missing_content_become_text(engine, tokenizer, ask) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    odd = {"id": "d", "type": "function", "function": {"name": "f", "arguments": "[1"}}
    listed = {"id": "e", "type": "function", "function": {"name": "f", "arguments": "[1]"}}
    done = {"id": "g", "type": "function", "function": {"name": "f", "arguments": {}}}
    await ask(
        messages=[
            {"role": "developer", "content": parts},
            {"role": "assistant", "content": None, "tool_calls": [call, odd, listed, done]},
            {"role": "assistant", "content": "x", "tool_calls": []},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"role": "tool", "content": "1", "tool_call_id": "c"},
        ]
    )
    system, calls, plain, refusal, result = tokenizer.seen[0][0]
    assert system == {"role": "system", "content": "ab"}
    arguments = [item["function"]["arguments"] for item in calls["tool_calls"]]
    assert calls["content"] == "" and arguments == [{"x": 1}, "[1", "[1]", {}]
    assert plain == {"role": "assistant", "content": "x"}
    assert refusal == {"role": "assistant", "content": "no"}
    assert result["tool_call_id"] == "c"


async def test_template_options_pass_through(tokenizer, ask) -> None:
    options = {"enable_thinking": False, "as_mapping": True}
    await ask(extra_body={"chat_template_kwargs": options})
    assert tokenizer.seen[0][1]["enable_thinking"] is False


async def test_parameters_without_effect_are_taken_and_change_nothing(engine, ask) -> None:
    nothing = {
        "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "modalities": ["text"],
        "parallel_tool_calls": True, "response_format": {"type": "text"}, "verbosity": "medium",
    }  # fmt: skip
    ignored = {
        "metadata": {"a": "b"}, "prediction": {"type": "content", "content": "x"},
        "safety_identifier": "me", "service_tier": "flex", "store": True, "user": "me",
    }  # fmt: skip
    empty = {"stop": None, "seed": None, "max_completion_tokens": None, "reasoning_effort": None}
    await ask()
    await ask(**nothing, **ignored, **empty)
    assert engine.asked[0] == engine.asked[1]


async def test_a_stream_opens_with_roles_and_prompt_ids_and_ends_with_usage(engine, ask) -> None:
    engine.lines = ["hé", "yo"]
    chunks = [
        chunk
        async for chunk in await ask(
            stream=True, n=2, stream_options={"include_usage": True}, **TOKENS
        )
    ]
    opening, *body, usage = chunks
    assert opening.prompt_token_ids == PROMPT
    assert [choice.delta.role for choice in opening.choices] == ["assistant", "assistant"]
    assert usage.choices == [] and usage.usage.completion_tokens == 4 + 3
    assert all(chunk.usage is None and chunk.model == "agent@7" for chunk in [opening, *body])
    said = {0: "", 1: ""}
    ids: dict[int, list[int]] = {0: [], 1: []}
    for chunk in body:
        (choice,) = chunk.choices
        said[choice.index] += choice.delta.content or ""
        ids[choice.index] += choice.token_ids
        assert len(choice.logprobs.content) == len(choice.token_ids) == 1
        assert "\ufffd" not in (choice.delta.content or "")
    assert said == {0: "hé", 1: "yo"}
    assert ids[0] == [*"hé".encode(), 257]


async def test_a_stream_stops_at_a_stop_string_without_showing_its_beginning(engine, ask) -> None:
    engine.lines = ["one STOP two"]
    texts, finish = [], None
    async for chunk in await ask(stream=True, stop="STOP"):
        texts.append(chunk.choices[0].delta.content or "")
        finish = chunk.choices[0].finish_reason or finish
        assert chunk.choices[0].logprobs is None and chunk.usage is None
    assert "".join(texts) == "one " and finish == "stop"


async def test_bytes_that_never_become_a_character_are_shown_broken_at_last(engine, ask) -> None:
    engine.lines = [[0xFF] * 40]
    choice = (await ask(max_tokens=40)).choices[0]
    assert choice.message.content == "\ufffd" * 40
    engine.lines = [[*b"a", 0xC3]]
    assert (await ask(max_tokens=2)).choices[0].message.content == "a\ufffd"
