"""Where tensors live and in which precision: chosen from what the machine has, or as the user
says.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import attrs
import torch  # noqa: TID253

from art_core.base.errors import ConfigError, unknown

DTYPES = {
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float32": torch.float32,
    "fp32": torch.float32,
}


@attrs.frozen(kw_only=True)
class Placement:
    """A device, the dtype that models compute in, and the device's name as price lists have it."""

    device: torch.device
    dtype: torch.dtype
    device_name: str

    def __str__(self) -> str:
        return f"{self.device_name} ({self.device}), {str(self.dtype).removeprefix('torch.')}"


def placement(device: str | None = None, dtype: str | None = None) -> Placement:
    """Choose: a CUDA device where there is one, else the CPU; bf16 where the hardware multiplies
    it.

    Raises ConfigError for a device or dtype that does not exist or is not here.
    """
    chosen = _device(device)
    if dtype in (None, "auto"):
        chosen_dtype = torch.bfloat16 if multiplies_bf16(chosen) else torch.float32
    elif dtype in DTYPES:
        chosen_dtype = DTYPES[dtype]
    else:
        raise ConfigError(unknown("dtype", str(dtype), ["auto", *DTYPES]))
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else chosen.type
    return Placement(device=chosen, dtype=chosen_dtype, device_name=name)


def _device(asked: str | None) -> torch.device:
    here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        here.append("mps")
    if asked is None or asked == "auto":
        return torch.device(here[1] if len(here) > 1 and here[1] != "mps" else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise ConfigError(unknown("device", asked, here, known_as="here")) from None
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda:0")
    if str(device) not in here:
        remedy = "Install a CUDA build of torch and its driver, or use device='cpu'."
        raise ConfigError(
            unknown("device", asked, here, known_as="here"), remedy if device.type == "cuda" else ""
        )
    return device


def random_state_kept(device: torch.device) -> AbstractContextManager[None]:
    """Leave torch's global random states as they were: the CPU's and this device's. Those of other
    CUDA devices are not touched, which would initialize each of them.
    """
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def multiplies_bf16(device: torch.device) -> bool:
    """Tell whether bf16 products are fast on a device: CUDA since Ampere, CPUs with AVX512-BF16 or
    AMX.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(
        torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001
        or torch.cpu._is_amx_tile_supported()  # noqa: SLF001
    )
