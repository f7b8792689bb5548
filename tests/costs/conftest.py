from collections.abc import Iterator

import pytest

from art_core.costs import builder, payer, track
from art_core.data.account import UNOWNED


@pytest.fixture
def no_open_models() -> Iterator[None]:
    """Begin without open models and without paid calls that belong to none."""
    others = builder.open_builders()
    builder.default_builders.clear()
    for said in (payer._warn_unowned, payer._warn_elsewhere, payer._warn_guessed):
        said.cache_clear()
    UNOWNED.take()
    track._unchecked.clear()
    yield
    UNOWNED.take()
    builder.default_builders.clear()
    builder.default_builders.update(others)
