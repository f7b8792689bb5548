"""The version of a rollout is a digest of its file."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from art_core.queue.version import version_of


async def rollout(model, scenario): ...


class Rollout:
    async def __call__(self, model, scenario): ...


def wrapped(function):
    @functools.wraps(function)
    async def inner(*given):
        return await function(*given)

    return inner


def test_it_is_that_of_the_file_that_defines_the_rollout():
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    forms = (
        rollout,
        wrapped(rollout),
        functools.partial(rollout, None),
        Rollout(),
        Rollout().__call__,
    )
    assert {version_of(form) for form in forms} == {digest}


def test_a_rollout_without_a_file_has_none():
    space = {}
    exec("async def made(model, scenario): ...", space)
    assert version_of(space["made"]) == ""
    assert version_of(print) == ""
