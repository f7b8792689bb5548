"""Run a policy temporarily with the weights of a reference."""

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
    """Run the policy with a reference's weights inside the block; restore its own afterwards, also
    after an error.
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
