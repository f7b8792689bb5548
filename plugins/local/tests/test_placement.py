"""Choosing a device and a precision."""

from __future__ import annotations

import pytest
import torch

from art_core.base.errors import ConfigError
from art_local.models.placement import multiplies_bf16, placement


def test_the_cpu_computes_in_bf16_where_it_can_multiply_it():
    chosen = placement("cpu")
    fast = multiplies_bf16(torch.device("cpu"))
    assert chosen.dtype == (torch.bfloat16 if fast else torch.float32)
    assert chosen.device_name == "cpu"


def test_a_dtype_can_be_asked_for():
    assert placement("cpu", "float32").dtype == torch.float32
    assert str(placement("cpu", "bf16")) == "cpu (cpu), bfloat16"


@pytest.mark.parametrize("device", ["tpu0", "cuda:99", "gpu"])
def test_a_device_that_is_not_here_says_which_are(device):
    with pytest.raises(ConfigError, match=f"no device '{device}'; here: cpu"):
        placement(device)


def test_an_unknown_dtype_says_which_there_are():
    with pytest.raises(ConfigError, match=r"no dtype 'float23'.*Did you mean 'float32'"):
        placement("cpu", "float23")
