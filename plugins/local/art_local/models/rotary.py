"""Rotary positions that depend on a sequence's length: which sequences may share a forward pass.

Two kinds of rotary positions in transformers take their factors from the longest sequence of a
forward pass: "longrope" has one set up to the original context and another beyond it, "dynamic"
has one for each length beyond the context. A sequence's log-probs depend on the sequence only if
all sequences of a forward pass have the same factors.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from torch import nn

Group = tuple[int, int]


@attrs.frozen(kw_only=True)
class RotaryLengths:
    """The lengths at which a model's rotary factors change.

    `switches`: a sequence longer than one has other factors than one up to it. `dynamic`: each
    length beyond it has factors of its own; None when there is no such length.
    """

    switches: tuple[int, ...] = ()
    dynamic: int | None = None

    def group(self, length: int) -> Group:
        """Return a key that is equal for lengths with equal factors."""
        own = 0 if self.dynamic is None or length <= self.dynamic else length
        return bisect_left(self.switches, length), own

    def groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Return the places of the sequences that may share a forward pass, group by group."""
        found: dict[Group, list[int]] = {}
        for place, length in enumerate(lengths):
            found.setdefault(self.group(length), []).append(place)
        return list(found.values())

    def longest(self, length: int) -> int | None:
        """Return the longest sequence that has the factors of this length; None: no limit."""
        place = bisect_left(self.switches, length)
        ends = list(self.switches[place : place + 1])
        if self.dynamic is not None:
            ends.append(max(self.dynamic, length))
        return min(ends, default=None)

    def shortest(self, length: int) -> int:
        """Return the shortest sequence that has the factors of this length."""
        if self.dynamic is not None and length > self.dynamic:
            return length
        place = bisect_left(self.switches, length)
        return self.switches[place - 1] + 1 if place else 1


def rotary_lengths(config: Any) -> RotaryLengths:
    """Read from a model's config at which lengths its rotary factors change."""
    text = config.get_text_config()
    switches, dynamic = set(), None
    for parameters in _rope_parameters(text):
        kind = str(parameters.get("rope_type", "default"))
        if kind == "longrope":
            original = parameters.get("original_max_position_embeddings")
            switches.add(int(original or text.max_position_embeddings))
        elif "dynamic" in kind:
            dynamic = int(text.max_position_embeddings)
    return RotaryLengths(switches=tuple(sorted(switches)), dynamic=dynamic)


def _rope_parameters(config: Any) -> Iterator[Mapping[str, Any]]:
    """Yield a config's rope parameters; some models have them for each type of layer."""
    given = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in given.values() if isinstance(value, Mapping)]
    yield from nested or [given]


def reset_dynamic_rotary(model: nn.Module) -> None:
    """Let a model's dynamic rotary factors depend on each forward pass only.

    transformers keeps those of the longest sequence so far for the next, shorter one.
    """
    for module in model.modules():
        if hasattr(module, "max_seq_len_cached") and _kind_is_dynamic(module):
            module.register_forward_pre_hook(_reset)


def _kind_is_dynamic(module: nn.Module) -> bool:
    kind = getattr(module, "rope_type", None)
    kinds = kind.values() if isinstance(kind, Mapping) else [kind]
    return any("dynamic" in str(each) for each in kinds)


def _reset(module: nn.Module, _: tuple[Any, ...]) -> None:
    suffix = "original_inv_freq"
    for name, original in list(module.named_buffers(recurse=False)):
        if name.endswith(suffix):
            prefix = name.removesuffix(suffix)
            setattr(module, f"{prefix}inv_freq", original.clone())
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
