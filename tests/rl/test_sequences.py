import attrs
from hypothesis import given
from hypothesis import strategies as st

import art_core as art
from art_core.data.trajectory import ChoiceTokens
from art_core.rl.sequences import MergedTurns, merge_turns, staleness, turns_of


def turn(prompt, completion, logprob=-1.0):
    return ChoiceTokens(
        prompt_ids=tuple(prompt),
        completion_ids=tuple(completion),
        logprobs=(logprob,) * len(completion),
    )


def text(*pairs):
    """Turns of a conversation written as text, one token per character."""
    return [turn([*prompt.encode()], [*answer.encode()]) for prompt, answer in pairs]


def shown(merged):
    """Sequences as text, what is trained in capitals."""
    return [
        "".join(
            chr(i).upper() if t else chr(i) for i, t in zip(s.token_ids, s.trainable, strict=True)
        )
        for s in merged.sequences
    ]


def test_no_turns_make_no_sequences():
    assert merge_turns([]) == MergedTurns(sequences=(), prefix_breaks=0)


def test_one_turn_is_one_sequence_with_the_engines_logprobs_where_it_is_trained():
    (sequence,) = merge_turns([turn([1, 2], [7, 8], -0.5)]).sequences
    assert sequence.token_ids == (1, 2, 7, 8)
    assert sequence.trainable == (False, False, True, True)
    assert sequence.logprobs == (0.0, 0.0, -0.5, -0.5)
    assert (sequence.num_trainable, sequence.advantage, sequence.weight) == (2, 0.0, 1.0)


def test_turns_that_continue_each_other_are_one_sequence():
    merged = merge_turns(text(("u:hi a:", "yo."), ("u:hi a:yo. u:and a:", "bye.")))
    assert shown(merged) == ["u:hi a:YO. u:and a:BYE."]
    assert merged.prefix_breaks == 0


def test_logprobs_stay_with_their_tokens_when_turns_merge():
    (sequence,) = merge_turns([turn([1], [2], -0.25), turn([1, 2, 3], [4], -4.0)]).sequences
    assert sequence.logprobs == (0.0, -0.25, 0.0, -4.0)


def test_a_template_that_drops_thoughts_breaks_the_prefix():
    merged = merge_turns(text(("u:hi a:", "<t>hm</t>yo."), ("u:hi a:yo. u:and a:", "bye.")))
    assert shown(merged) == ["u:hi a:<T>HM</T>YO.", "u:hi a:yo. u:and a:BYE."]
    assert merged.prefix_breaks == 1


def test_the_same_text_in_other_tokens_breaks_the_prefix():
    # "ab" sampled as two tokens, 1 and 2, and rendered again as one, 3.
    merged = merge_turns([turn([0], [1, 2]), turn([0, 3, 9], [4])])
    assert [s.token_ids for s in merged.sequences] == [(0, 1, 2), (0, 3, 9, 4)]
    assert merged.prefix_breaks == 1


def test_a_context_that_was_cut_breaks_the_prefix():
    merged = merge_turns(text(("u:hi a:", "yo."), ("u:hi", "!")))
    assert shown(merged) == ["u:hi a:YO.", "u:hi!"]
    assert merged.prefix_breaks == 1


def test_a_prompt_that_ends_inside_the_last_answer_breaks_the_prefix():
    merged = merge_turns(text(("p", "abc"), ("pab", "x")))
    assert shown(merged) == ["pABC", "pabX"]


def test_two_answers_to_one_prompt_are_two_sequences():
    merged = merge_turns(text(("p", "a"), ("p", "b")))
    assert shown(merged) == ["pA", "pB"]
    assert merged.prefix_breaks == 1


def test_turns_go_on_from_the_last_break():
    turns = text(("p", "a"), ("q", "b"), ("qb-", "c"), ("pa-", "d"))
    merged = merge_turns(turns)
    assert shown(merged) == ["pA", "qB-C", "pa-D"]
    assert merged.prefix_breaks == 2


def test_a_prompt_that_adds_nothing_continues():
    merged = merge_turns(text(("p", "a"), ("pa", "b")))
    assert shown(merged) == ["pAB"]


def choice(tokens):
    return {
        "message": {"role": "assistant", "content": ""},
        "finish_reason": "stop",
        "prompt_token_ids": [1],
        "token_ids": tokens,
        "logprobs": tokens and {"content": [{"logprob": -1.0}] * len(tokens)},
    }


def test_turns_of_a_conversation_are_its_choices_that_carry_tokens():
    history = art.History(
        messages_and_choices=[{"role": "user", "content": "hi"}, choice([7]), choice(None)]
    )
    turns, missing = turns_of(history)
    assert [t.completion_ids for t in turns] == [(7,)]
    assert missing == 1


tokens = st.integers(0, 2)


@st.composite
def conversations(draw, shortest=0):
    """Turns that continue the one before them or do not, over so few tokens that chance
    prefixes are common.
    """
    turns, context = [], []
    for goes_on in draw(st.lists(st.booleans(), max_size=6)):
        fresh = draw(st.lists(tokens, max_size=4))
        prompt = ([*context, *fresh] if goes_on else fresh) or [0]
        sampled = draw(st.lists(st.tuples(tokens, st.floats(-9, 0)), min_size=shortest, max_size=4))
        completion = tuple(token for token, _ in sampled)
        logprobs = tuple(logprob for _, logprob in sampled)
        turns.append(attrs.evolve(turn(prompt, completion), logprobs=logprobs))
        context = [*prompt, *completion]
    return turns


def trained(merged):
    return [
        (token, logprob)
        for s in merged.sequences
        for token, logprob, on in zip(s.token_ids, s.logprobs, s.trainable, strict=True)
        if on
    ]


@given(conversations())
def test_merging_never_loses_or_invents_a_sampled_token(turns):
    expected = [pair for t in turns for pair in zip(t.completion_ids, t.logprobs, strict=True)]
    assert trained(merge_turns(turns)) == expected


@given(conversations(shortest=1))
def test_every_sampled_token_stands_after_exactly_the_prompt_that_the_engine_saw(turns):
    """False merges are 0: what precedes a turn's tokens in its sequence is its prompt."""
    remaining = iter(turns)
    for sequence in merge_turns(turns).sequences:
        at = 0
        while at < len(sequence.token_ids):
            now = next(remaining)
            start, end = len(now.prompt_ids), len(now.prompt_ids) + len(now.completion_ids)
            assert sequence.token_ids[:end] == now.prompt_ids + now.completion_ids
            assert not any(sequence.trainable[at:start])
            assert all(sequence.trainable[start:end])
            at = end
    assert next(remaining, None) is None


@given(conversations())
def test_every_turn_continues_or_is_a_break(turns):
    merged = merge_turns(turns)
    assert merged.prefix_breaks == max(0, len(merged.sequences) - 1)
    assert len(merged.sequences) <= len(turns)


@given(conversations())
def test_the_fewest_sequences_are_made_that_exact_prefixes_allow(turns):
    breaks, context = 0, None
    for t in turns:
        breaks += context is not None and t.prompt_ids[: len(context)] != context
        context = t.prompt_ids + t.completion_ids
    assert merge_turns(turns).prefix_breaks == breaks


def test_a_sequence_knows_the_weights_behind_its_turns():
    turns = [attrs.evolve(turn([0], [1]), policy_version=3), turn([0, 1, 2], [4]), turn([9], [8])]
    first, second = merge_turns(turns).sequences
    assert (first.policy_versions, second.policy_versions) == ((3, None), (None,))


def test_staleness_is_how_many_steps_older_the_turns_weights_are():
    # Turns of steps 3, 5 and 5, and one of unknown weights, trained at step 5.
    versions = [(3, 5), (5, None)]
    rows = [
        attrs.evolve(merge_turns([turn([0], [1])]).sequences[0], policy_versions=v)
        for v in versions
    ]
    assert staleness(rows, 5) == {"data/staleness_mean": 2 / 3, "data/staleness_max": 2.0}
    assert staleness(rows[:0], 5) == {}


def seen(prompt, completion, *images):
    return attrs.evolve(turn(prompt, completion), images=images)


def test_a_prompt_with_another_image_in_the_same_tokens_breaks_the_prefix():
    first = seen("a", "b", "one")
    merged = merge_turns([first, seen("abc", "d", "one", "two")])
    assert [s.images for s in merged.sequences] == [("one", "two")]
    merged = merge_turns([first, seen("abc", "d", "other", "two")])
    assert [s.images for s in merged.sequences] == [("one",), ("other", "two")]
    assert merged.prefix_breaks == 1


def test_the_grammars_of_turns_keep_their_places_in_a_sequence():
    first = attrs.evolve(turn([1, 2], [7, 8]), grammar="start: a")
    second = attrs.evolve(turn([1, 2, 7, 8, 3], [9]), grammar="start: b")
    free = turn([1, 2, 7, 8, 3, 9, 4], [5])
    (sequence,) = merge_turns([first, second, free]).sequences
    assert sequence.grammars == ((2, 4, "start: a"), (5, 6, "start: b"))
