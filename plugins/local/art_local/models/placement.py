"""The device and dtype of the models: given, or chosen for this machine."""

from __future__ import annotations

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
    """A device, the dtype of computations, and the device's name in price lists."""

    device: torch.device
    dtype: torch.dtype
    device_name: str

    def __str__(self) -> str:
        return f"{self.device_name} ({self.device}), {str(self.dtype).removeprefix('torch.')}"


def placement(device: str | None = None, dtype: str | None = None) -> Placement:
    """Return the given device and dtype. By default a CUDA device if there is one, else the CPU,
    and bf16 if the hardware multiplies it.

    Raises ConfigError for an unknown dtype, or a device that this machine does not have.
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


def _device(name: str | None) -> torch.device:
    here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        here.append("mps")
    if name is None or name == "auto":
        return torch.device(here[1] if len(here) > 1 and here[1] != "mps" else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(unknown("device", name, here, known_as="here")) from None
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda:0")
    if str(device) not in here:
        remedy = "Install a CUDA build of torch and its driver, or use device='cpu'."
        raise ConfigError(
            unknown("device", name, here, known_as="here"), remedy if device.type == "cuda" else ""
        )
    return device


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether a device has fast bf16 products: CUDA since Ampere, CPUs with AVX512-BF16 or
    AMX.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(
        torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001
        or torch.cpu._is_amx_tile_supported()  # noqa: SLF001
    )
