"""Conditions on trajectories, such as `reward > 0.8 and metadata.model == "a"`.

A condition is parsed as Python's syntax, and only comparisons of fields with constants, `and`, `or`
and `not` are accepted. Nothing is evaluated by Python.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from art_core.base.errors import ConfigError
from art_core.data.trajectory import Trajectory

MAX_LENGTH = 2000
FIELDS: Mapping[str, Callable[[Trajectory], Any]] = {
    "reward": lambda t: t.reward,
    "known": lambda t: not math.isnan(t.reward),
    "turns": lambda t: sum(m["role"] == "assistant" for m in t.messages()),
    "messages": lambda t: len(t.messages()),
    "metrics": lambda t: t.metrics,
    "metadata": lambda t: t.metadata,
}
"""The fields of a condition; metrics and metadata have parts, `metrics.name` or `metrics["name"]`.
"""
_OPERATORS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
Value = Callable[[Trajectory], Any]


def condition(text: str) -> Callable[[Trajectory], bool]:
    """Return the condition as a function. A comparison is false for a part that is missing and for
    an unknown reward. ConfigError for anything but the syntax above.
    """
    if len(text) > MAX_LENGTH:
        raise ConfigError(f"a condition has at most {MAX_LENGTH} characters, got {len(text)}")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        value = _compiled(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{text!r:.200} is not a condition: {error}", _remedy()) from error
    return lambda trajectory: bool(value(trajectory))


def _compiled(node: ast.expr) -> Value:
    compile_ = _COMPILERS.get(type(node))
    value = compile_(node) if compile_ else None
    if value is None:
        raise ConfigError(f"a condition can't have {ast.unparse(node)!r:.100}", _remedy())
    return value


def _joined(node: ast.BoolOp) -> Value:
    parts = [_compiled(part) for part in node.values]
    holds = all if isinstance(node.op, ast.And) else any
    return lambda t: holds(part(t) for part in parts)


def _unary(node: ast.UnaryOp) -> Value | None:
    inner = _compiled(node.operand)
    if isinstance(node.op, ast.Not):
        return lambda t: not inner(t)
    number = node.operand.value if isinstance(node.operand, ast.Constant) else None
    if not isinstance(node.op, ast.USub) or not isinstance(number, int | float):
        return None
    return lambda _: -number


def _constant(node: ast.Constant) -> Value | None:
    value = node.value
    return (lambda _: value) if isinstance(value, int | float | str | None) else None


def _listed(node: ast.List | ast.Tuple) -> Value:
    items = [_compiled(item) for item in node.elts]
    return lambda t: [item(t) for item in items]


def _named(node: ast.Name) -> Value | None:
    return FIELDS.get(node.id)


def _part(node: ast.Attribute | ast.Subscript) -> Value | None:
    part: Any = node.attr if isinstance(node, ast.Attribute) else None
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        part = node.slice.value
    whole = node.value.id if isinstance(node.value, ast.Name) else None
    if whole not in ("metrics", "metadata") or not isinstance(part, str):
        return None
    return lambda t: FIELDS[whole](t).get(part)


def _remedy() -> str:
    return (
        f"Compare {', '.join(FIELDS)} (of the last two a part, as metrics.name) with constants, "
        'and join comparisons by and, or, not: reward > 0.8 and metadata.split == "train".'
    )


def _comparison(node: ast.Compare) -> Value | None:
    values = [_compiled(each) for each in (node.left, *node.comparators)]
    if not all(type(op) in _OPERATORS for op in node.ops):
        return None
    compare = [_OPERATORS[type(op)] for op in node.ops]

    def compared(trajectory: Trajectory) -> bool:
        found = [value(trajectory) for value in values]
        if any(isinstance(each, float) and math.isnan(each) for each in found):
            return False
        try:
            pairs = zip(compare, found, found[1:], strict=False)
            return all(op(left, right) for op, left, right in pairs)
        except TypeError:
            return False

    return compared


_COMPILERS: Mapping[type[ast.expr], Callable[[Any], Value | None]] = {
    ast.BoolOp: _joined,
    ast.UnaryOp: _unary,
    ast.Compare: _comparison,
    ast.Constant: _constant,
    ast.List: _listed,
    ast.Tuple: _listed,
    ast.Name: _named,
    ast.Attribute: _part,
    ast.Subscript: _part,
}
