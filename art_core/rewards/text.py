"""Rewards for text: equality, numbers, mathematics, formats, length and repetition."""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from art_core.base.errors import ConfigError, RewardError
from art_core.data.trajectory import Trajectory, is_choice, message_of

log = logging.getLogger("art_core")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"[-+−]?(?:\d{1,3}(?:[,_ ]\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?%?")
_FRACTION = re.compile(r"([-+−]?\d+)\s*/\s*(\d+)")
_BRACES = re.compile(r"\\N\{[^}]*\}|\\.|\{(?:\d+(?:,\d*)?|,\d+)\}|\{", re.DOTALL)
_FLAGS = ("ASCII", "DOTALL", "IGNORECASE", "MULTILINE", "VERBOSE")
MATCH_SECONDS = 2.0
_THOUGHTS = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)

Answer = str | Trajectory | Mapping[str, Any] | Any
"""Text, a trajectory (its last assistant message counts), a message or a choice."""


def answer_of(answer: Answer) -> str:
    """Return the text of an answer, without reasoning between `<think>` tags.

    Of a trajectory it is the last assistant message. Raises RewardError for anything else.
    """
    if isinstance(answer, str):
        return _THOUGHTS.sub("", answer).strip()
    if isinstance(answer, Trajectory):
        said = [m for m in answer.messages() if m.get("role") == "assistant"]
        return answer_of(said[-1]) if said else ""
    if isinstance(answer, Mapping) or is_choice(answer) or hasattr(answer, "model_dump"):
        content = message_of(answer).get("content") or ""
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content)
        return answer_of(str(content))
    raise RewardError(f"an answer is text, a message or a trajectory, got {type(answer).__name__}")


def exact_match(answer: Answer, expected: str | Iterable[str]) -> float:
    """Return 1.0 if the answer equals an expected text, white space at the ends apart."""
    text = answer_of(answer)
    return float(any(text == one.strip() for one in _texts(expected)))


def normalised_match(answer: Answer, expected: str | Iterable[str]) -> float:
    """Return 1.0 if the answer equals an expected text after normalisation.

    Normalised text has no case, accents, punctuation, articles or repeated spaces: the rule of
    SQuAD's official evaluation (Rajpurkar et al. 2016), with Unicode's NFKD before it.
    """
    text = _normalised(answer_of(answer))
    return float(any(text == _normalised(one) for one in _texts(expected)))


def number_match(answer: Answer, expected: float, *, tolerance: float = 1e-6) -> float:
    """Return 1.0 if the last number of the answer is the expected one.

    `tolerance` is relative, and absolute below 1. Thousands separators, percent signs (`50%` is
    0.5 or 50) and fractions are read. An answer without a number is worth 0.
    """
    wanted = float(expected)
    if not math.isfinite(wanted):
        raise ConfigError(f"the expected number must be finite, got {expected!r}")
    found = _last_numbers(answer_of(answer))
    limit = tolerance * max(1.0, abs(wanted))
    return float(any(abs(number - wanted) <= limit for number in found))


def maths_match(answer: Answer, expected: str, *, timeout: float = 10.0) -> float:
    r"""Return 1.0 if the answer is mathematically equal to the expected expression.

    LaTeX, `\boxed{}`, fractions, sets and intervals are compared by `math-verify`, in a process of
    its own: an answer such as 9^{9^{9^9}} that takes longer than `timeout` seconds is worth 0.
    Raises ConfigError if `math-verify` is not installed, RewardError for an expected text that is
    not mathematics or takes longer.
    """
    _require("math_verify", "maths")
    from art_core.rewards.maths import comparer

    return float(comparer.equal(_as_latex(expected), _as_latex(answer_of(answer)), timeout))


def matches_pattern(
    answer: Answer,
    pattern: str | re.Pattern[str],
    *,
    whole: bool = True,
    timeout: float = MATCH_SECONDS,
) -> float:
    """Return 1.0 if a regular expression matches the whole answer, or with `whole=False` a part.

    `.` matches line ends too. Raises ConfigError for an invalid pattern, and RewardError if the
    match takes longer than `timeout` seconds. The limit needs the package `regex`; without it, a
    pattern like `(a+)+b` may run without end on an answer that it does not match.
    """
    try:
        compiled = re.compile(pattern, re.DOTALL) if isinstance(pattern, str) else pattern
    except re.error as error:
        raise ConfigError(f"{pattern!r:.80} is no regular expression: {error}") from error
    text = answer_of(answer)
    if find_spec("regex") is None:
        _warn_of_unlimited_patterns()
        return float((compiled.fullmatch if whole else compiled.search)(text) is not None)
    limited = _limited(compiled.pattern, compiled.flags)
    find = limited.fullmatch if whole else limited.search
    try:
        return float(find(text, timeout=timeout, concurrent=True) is not None)
    except TimeoutError as error:
        raise RewardError(
            f"the pattern {compiled.pattern!r:.80} took longer than {timeout:g} s on an answer of "
            f"{len(text)} characters",
            "Write it without repeats of repeats, such as (a+)+, or give a longer timeout.",
        ) from error


@cache
def _limited(pattern: str, flags: int) -> Any:
    """Return a pattern of `re`, compiled by `regex`, whose matches take a time limit."""
    library = _package("regex", "patterns")
    same = (name for name in _FLAGS if flags & getattr(re, name))
    try:
        # braces that do not repeat are text in `re`, and approximate matching in `regex`
        pattern = _BRACES.sub(lambda found: r"\{" if found[0] == "{" else found[0], pattern)
        return library.compile(pattern, sum(getattr(library, name) for name in same))
    except library.error as error:
        raise ConfigError(
            f"{pattern!r:.80} is no regular expression of the package regex: {error}"
        ) from error


@cache
def _warn_of_unlimited_patterns() -> None:
    log.warning(
        "matches_pattern has no time limit without the package regex: an answer can hold a pattern "
        "with repeats of repeats for ever; pip install 'art-core[patterns]'"
    )


def matches_schema(answer: Answer, schema: Mapping[str, Any]) -> float:
    """Return 1.0 if the answer is JSON that fits a JSON schema, also inside a code fence.

    Raises ConfigError if `jsonschema` is not installed or the schema is none.
    """
    from art_core.rewards.answers import json_in

    library = _package("jsonschema", "schema")
    kind = library.validators.validator_for(schema)
    try:
        kind.check_schema(schema)
    except library.SchemaError as error:
        raise ConfigError(f"not a JSON schema: {error.message}") from error
    try:
        value = json_in(answer_of(answer))
    except RewardError:
        return 0.0
    return float(kind(schema).is_valid(value))


def length_penalty(answer: Answer, *, target: int, most: int) -> float:
    """Return 0.0 up to `target` characters, falling linearly to -1.0 at `most` and beyond."""
    if not 0 <= target < most:
        raise ConfigError(f"a length penalty needs 0 <= target < most, got {target} and {most}")
    over = len(answer_of(answer)) - target
    return -min(1.0, max(0.0, over / (most - target)))


def repetition_penalty(answer: Answer, *, n: int = 3) -> float:
    """Return minus the share of the answer's n-grams of words that repeat an earlier one.

    0.0 is text without repetition; the formula is 1 - distinct-n (Li et al. 2016), negated.
    """
    if n < 1:
        raise ConfigError(f"n must be at least 1, got {n}")
    words = answer_of(answer).lower().split()
    grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    total = grams.total()
    return len(grams) / total - 1.0 if total else 0.0


def _texts(expected: str | Iterable[str]) -> list[str]:
    return [expected] if isinstance(expected, str) else [str(one) for one in expected]


def _normalised(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).casefold()
    kept = (" " if unicodedata.category(c)[0] in "PS" else c for c in plain)
    letters = "".join(c for c in kept if not unicodedata.combining(c))
    return " ".join(_ARTICLES.sub(" ", letters).split())


def _last_numbers(text: str) -> list[float]:
    """Return the readings of the last number: a percentage has two."""
    fractions = list(_FRACTION.finditer(text))
    numbers = [m for m in _NUMBER.finditer(text) if any(c.isdigit() for c in m.group())]
    if not numbers:
        return []
    last = numbers[-1]
    if fractions and fractions[-1].end() >= last.end():
        above, below = (float(part.replace("−", "-")) for part in fractions[-1].groups())
        return [above / below] if below else []
    digits = re.sub(r"[,_ %]", "", last.group()).replace("−", "-")
    number = float(digits)
    return [number, number / 100] if last.group().endswith("%") else [number]


def _as_latex(text: str) -> str:
    return text if "$" in text or "\\boxed" in text else f"${text}$"


def _require(name: str, extra: str) -> None:
    """Raise ConfigError for a package that is not installed, without importing it."""
    if find_spec(name) is None:
        raise _missing(name, extra)


def _package(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise _missing(name, extra) from error


def _missing(name: str, extra: str) -> ConfigError:
    return ConfigError(
        f"{name.replace('_', '-')} is not installed", f"pip install 'art-core[{extra}]'"
    )
