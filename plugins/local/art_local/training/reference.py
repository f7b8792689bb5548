"""A policy under other weights than its newest, for as long as a pass without gradient takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from art_local.training.policy import Policy

Reference = Callable[[], Mapping[str, Tensor] | None]
"""Returns the trained parameters of the reference, by name; None means the base model of a LoRA."""


@contextmanager
def under(policy: Policy, reference: Reference) -> Iterator[None]:
    """Run the policy under a reference's weights inside the block; its own come back after it,
    whatever happens.
    """
    tensors = reference()
    if tensors is None:
        with policy.model.disable_adapter():
            yield
        return
    own = policy.kept()
    try:
        policy.load(tensors, Path("the reference"))
        yield
    finally:
        policy.put_back(own)
