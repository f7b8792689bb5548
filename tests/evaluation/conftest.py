"""Begin each test without open models and without paid calls that belong to none."""

import pytest


@pytest.fixture(autouse=True)
def _alone(no_open_models: None) -> None:
    pass
