"""Rewards for text, against hand-worked values."""

import os
import re
import sys
import threading

import pytest

import art_core as art
from art_core import rewards
from art_core.rewards import maths, text
from art_core.rewards.text import answer_of


def said(text):
    return art.Trajectory(
        messages_and_choices=[
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": text},
            {"role": "tool", "tool_call_id": "1", "content": "result"},
        ]
    )


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (" yes ", "yes"),
        (said("yes"), "yes"),
        (art.Trajectory(), ""),
        ({"role": "assistant", "content": None}, ""),
        ({"role": "assistant", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}, "ab"),
        ({"message": {"role": "assistant", "content": "c"}, "finish_reason": "stop"}, "c"),
        ("<think>no, 3</think> 4", "4"),
        ("<think>never ends", ""),
    ],
)
def test_the_text_of_an_answer(answer, text):
    assert answer_of(answer) == text


def test_what_is_no_answer_is_refused():
    with pytest.raises(art.RewardError, match="got int"):
        answer_of(3)


@pytest.mark.parametrize(
    ("answer", "expected", "value"),
    [("yes\n", "yes", 1), ("Yes", "yes", 0), ("b", ["a", "b "], 1), ("", "yes", 0)],
)
def test_exact_match(answer, expected, value):
    assert rewards.exact_match(answer, expected) == value


@pytest.mark.parametrize(
    ("answer", "expected", "value"),
    [
        ("The  Café!", "cafe", 1),
        ("STRASSE", "straße", 1),
        ("an apple", "apple", 1),
        ("an apple", "apples", 0),
        ("$5", "5", 1),
    ],
)
def test_normalised_match(answer, expected, value):
    assert rewards.normalised_match(answer, expected) == value


@pytest.mark.parametrize(
    ("answer", "expected", "value"),
    [
        ("so it is 1,234.50 dollars", 1234.5, 1),
        ("3/4", 0.75, 1),
        ("1/0", 1, 0),
        ("50%", 0.5, 1),
        ("50%", 50, 1),
        ("5%", 50, 0),
        ("it is −3.", -3, 1),
        ("-3", 3, 0),
        ("1e3", 1000, 1),
        ("12 345", 12345, 1),
        ("first 7, then 8", 8, 1),
        ("first 7, then 8", 7, 0),
        ("1/2 and then 3", 3, 1),
        (".5", 0.5, 1),
        ("none", 0, 0),
        ("1000000.1", 1000000, 1),
    ],
)
def test_number_match(answer, expected, value):
    assert rewards.number_match(answer, expected) == value


def test_an_expected_number_is_finite():
    with pytest.raises(art.ConfigError, match="must be finite, got nan"):
        rewards.number_match("1", float("nan"))


@pytest.mark.parametrize(
    ("answer", "expected", "value"),
    [
        (r"\boxed{\frac{1}{2}}", "0.5", 1),
        ("x + 1 + 1", "x + 2", 1),
        ("$x^2$", "x^3", 0),
        ("no idea", "2", 0),
    ],
)
def test_maths_match(answer, expected, value):
    assert rewards.maths_match(answer, expected) == value


def test_maths_match_works_in_a_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(rewards.maths_match("2/4", "0.5")))
    thread.start()
    thread.join()
    assert found == [1.0]


@pytest.mark.parametrize("answer", ["9^{9^{9^9}}", "100000!!!!"])
def test_an_answer_that_takes_too_long_is_wrong_and_the_next_is_compared(answer):
    assert rewards.maths_match(answer, "42", timeout=0.5) == 0
    assert rewards.maths_match("40 + 2", "42") == 1


def test_a_process_that_has_ended_is_started_again():
    assert rewards.maths_match("2/4", "0.5") == 1
    process = maths.comparer._process
    process._popen.kill()
    process._popen.wait()
    with pytest.raises(maths._NoReplyError):
        process.send("1", "1")
    assert rewards.maths_match("2/4", "0.5") == 1
    maths.comparer.close()
    maths.comparer.close()


READY = "print('true', flush=True)\n"


@pytest.mark.parametrize(
    ("program", "problem"),
    [("", "did not start"), (f"{READY}input()", "the expected answer '1' was not read within 9 s")],
)
def test_a_process_that_fails_is_an_error_and_not_a_wrong_answer(program, problem, monkeypatch):
    monkeypatch.setattr(maths, "_PROGRAM", program)
    comparer = maths.Comparer()
    with pytest.raises(art.RewardError, match=problem):
        comparer.equal("1", "1", 9)


def test_a_forked_program_starts_a_process_of_its_own():
    assert rewards.maths_match("2/4", "0.5") == 1
    child = os.fork()
    if not child:
        os._exit(0 if maths.comparer._process is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_expected_text_without_mathematics_is_an_error_not_a_wrong_answer():
    with pytest.raises(art.RewardError, match="is not mathematics: ''"):
        rewards.maths_match("2", "")


@pytest.mark.parametrize("name", ["math_verify", "jsonschema"])
def test_a_missing_library_names_its_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    call = {
        "math_verify": lambda: rewards.maths_match("1", "1"),
        "jsonschema": lambda: rewards.matches_schema("1", {}),
    }[name]
    with pytest.raises(art.ConfigError, match=r"pip install 'art-core\["):
        call()


def test_matches_pattern():
    assert rewards.matches_pattern("<a>\nx</a>", r"<a>.*</a>") == 1
    assert rewards.matches_pattern("so <a>x</a>", r"<a>.*</a>") == 0
    assert rewards.matches_pattern("so <a>x</a>", r"<a>.*</a>", whole=False) == 1
    assert rewards.matches_pattern("ab", re.compile("AB", re.IGNORECASE)) == 1
    with pytest.raises(art.ConfigError, match="is no regular expression"):
        rewards.matches_pattern("x", "(")
    of_regex = pytest.raises(art.ConfigError, match="no regular expression of the package regex")
    with of_regex, pytest.warns(FutureWarning):
        rewards.matches_pattern("x", "[[:foo:]]")


def test_flags_of_a_compiled_pattern_count():
    form = re.compile(r"^\w  # a letter", re.ASCII | re.MULTILINE | re.VERBOSE)
    assert rewards.matches_pattern("é\ne", form, whole=False) == 1
    assert rewards.matches_pattern("é", form, whole=False) == 0


@pytest.mark.parametrize(
    ("answer", "pattern", "value"),
    [
        ("frac{d}{e}", r"frac{d}{e}", 1),
        ("fra", r"frac{d}", 0),
        ("aaa{1}", r"a{3}\{1}", 1),
        ("aaa", r"a{,2}", 0),
        ("\\ab", r"\\a{1,}b", 1),
        ("a", r"\N{LATIN SMALL LETTER A}", 1),
        ("{", r"[{]", 1),
    ],
)
def test_braces_mean_what_they_mean_to_re(answer, pattern, value):
    assert rewards.matches_pattern(answer, pattern) == value == bool(re.fullmatch(pattern, answer))


def test_a_pattern_that_backtracks_without_end_is_stopped():
    with pytest.raises(art.RewardError, match=r"took longer than 0\.01 s .* of 60 characters"):
        rewards.matches_pattern("a" * 59 + "!", r"(a|aa)+b", timeout=0.01)


def test_without_the_package_regex_a_pattern_matches_without_a_limit(monkeypatch, caplog):
    monkeypatch.setattr("art_core.rewards.text.find_spec", lambda name: None)
    text._warn_of_unlimited_patterns.cache_clear()
    for _ in range(2):
        assert rewards.matches_pattern("aab", r"a+b") == 1
        assert rewards.matches_pattern("aab", r"ab", whole=False) == 1
    assert caplog.text.count("art-core[patterns]") == 1


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ('{"a": 1}', 1),
        ('```json\n{"a": 1}\n```', 1),
        ('Here: {"a": 1}. Good?', 1),
        ('{"a": "1"}', 0),
        ('{"a": 1', 0),
        ("[]", 0),
    ],
)
def test_matches_schema(answer, value):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert rewards.matches_schema(answer, schema) == value


def test_a_schema_is_checked():
    with pytest.raises(art.ConfigError, match="not a JSON schema"):
        rewards.matches_schema("1", {"type": "nothing"})


def test_penalties():
    assert rewards.length_penalty("x" * 10, target=10, most=20) == 0
    assert rewards.length_penalty("x" * 15, target=10, most=20) == -0.5
    assert rewards.length_penalty("x" * 99, target=10, most=20) == -1
    # seven trigrams, of which three are distinct
    assert rewards.repetition_penalty("a b c a b c a b c") == pytest.approx(-4 / 7)
    assert rewards.repetition_penalty("a b c d") == 0
    assert rewards.repetition_penalty("a") == 0
    with pytest.raises(art.ConfigError, match="0 <= target < most"):
        rewards.length_penalty("x", target=2, most=1)
    with pytest.raises(art.ConfigError, match="n must be at least 1"):
        rewards.repetition_penalty("x", n=0)


def test_names_are_found_when_they_are_used():
    assert set(rewards.__all__) <= {n for n in rewards.__all__ if getattr(rewards, n) is not None}
    with pytest.raises(AttributeError, match="no attribute 'wrong'"):
        rewards.wrong  # noqa: B018
