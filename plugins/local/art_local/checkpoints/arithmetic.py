"""Averages and differences of checkpoints: of the changes B @ A of adapters, or of all weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch  # noqa: TID253
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor  # noqa: TID253

from art_core.base.errors import ConfigError
from art_core.base.files import read_json, replace_json
from art_local.checkpoints.fork import Source, linked_or_copied
from art_local.session.checkpoints import ADAPTER_FILES, MANIFEST, StoredCheckpoint
from art_local.training.low_rank import closest, per_expert, side_by_side

CONFIG, ADAPTER = ADAPTER_FILES
STATES = ("optimizer", "rng")
EQUAL = ("base_fingerprint", "full_finetune", "quantization")
ABOUT = ("model", "seed", "dtype", "versions")


@attrs.frozen(kw_only=True, eq=False)
class Factors:
    """A layer's change scale * B @ A, with A [E, K, I] and B [E, O, K] in fp64; B has the scale. A
    linear layer is one expert, E = 1.
    """

    a_EKI: Tensor
    b_EOK: Tensor

    def __sub__(self, other: Factors) -> Factors:
        """Return the factors of the difference, which is 0 for equal factors."""
        if self.a_EKI.shape != other.a_EKI.shape:
            return stacked([self, other], [1.0, -1.0])
        b_EOK = torch.cat([self.b_EOK - other.b_EOK, other.b_EOK], 2)
        return Factors(a_EKI=torch.cat([self.a_EKI, self.a_EKI - other.a_EKI], 1), b_EOK=b_EOK)

    def norm(self) -> float:
        """Return the Frobenius norm of B @ A, of all experts together."""
        squared = (self.b_EOK.mT @ self.b_EOK * (self.a_EKI @ self.a_EKI.mT)).sum()
        return float(squared.clamp(min=0).sqrt())

    def of_rank(self, rank: int) -> Factors:
        """Return the best approximation of B @ A of a rank, for each expert."""
        a_EKI, b_EOK = closest(self.a_EKI, self.b_EOK, rank)
        return Factors(a_EKI=a_EKI, b_EOK=b_EOK)


def stacked(factors: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Return factors whose product is the weighted sum of the products."""
    b_EOK = torch.cat([f.b_EOK * weight for f, weight in zip(factors, weights, strict=True)], 2)
    return Factors(a_EKI=torch.cat([f.a_EKI for f in factors], 1), b_EOK=b_EOK)


def adapter_factors(stored: StoredCheckpoint) -> dict[str, Factors]:
    """Return the factors of a checkpoint's adapter, by layer."""
    tensors = load_file(stored.path / ADAPTER)
    rank, alpha = stored.manifest["lora_rank"], stored.manifest["lora_alpha"]
    found = {}
    for name, a_RI in tensors.items():
        stem, a, rest = name.rpartition(".lora_A.")
        if not a:
            continue
        b_OR = tensors[f"{stem}.lora_B.{rest}"].double() * alpha / rank
        a_EKI, b_EOK = per_expert(a_RI.double(), b_OR, len(a_RI) // rank)
        found[stem.removeprefix("base_model.model.")] = Factors(a_EKI=a_EKI, b_EOK=b_EOK)
    return found


def weight_tensors(stored: StoredCheckpoint) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of a checkpoint of all weights, one at a time."""
    for file in _weight_files(stored):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                yield name, opened.get_tensor(name)


def _weight_files(stored: StoredCheckpoint) -> list[Path]:
    files = sorted(stored.path.glob("*.safetensors"))
    return [file for file in files if not file.name.startswith(STATES)]


def check_comparable(sources: Sequence[Source]) -> None:
    """Raise ConfigError for checkpoints over other base models or of another kind."""
    first = sources[0].stored.manifest
    for other in sources[1:]:
        for key in EQUAL:
            mine, theirs = first.get(key), other.stored.manifest.get(key)
            if mine != theirs:
                raise ConfigError(
                    f"{sources[0].name} and {other.name} differ in {key}: {mine!r:.40} and "
                    f"{theirs!r:.40}",
                    "Give checkpoints over the same base model, all of LoRA or all of all weights.",
                )


def changes(first: Source, second: Source) -> list[tuple[str, float, float]]:
    """Return of each module its name, the norm of its change from the first to the second, and the
    norm of what is compared in the first: of an adapter's change of the base model, or of weights.
    """
    check_comparable([first, second])
    if first.stored.manifest["full_finetune"]:
        before = dict(weight_tensors(first.stored))
        return [
            (name, _norm(after.double() - before[name].double()), _norm(before[name].double()))
            for name, after in weight_tensors(second.stored)
        ]
    one, other = adapter_factors(first.stored), adapter_factors(second.stored)
    return [(name, (other[name] - one[name]).norm(), one[name].norm()) for name in one]


def _norm(weight: Tensor) -> float:
    return float(torch.linalg.vector_norm(weight))


def merge(
    sources: Sequence[Source], weights: Sequence[float], directory: Path, rank: int | None = None
) -> tuple[dict[str, Any], float]:
    """Write the average of checkpoints; return the entries of its manifest, and the share of the
    average's norm that a lower rank leaves out.
    """
    check_comparable(sources)
    first = sources[0].stored
    about = {key: first.manifest[key] for key in (*ABOUT, "base_model", *EQUAL)}
    shutil.copy2(first.path / "rng.safetensors", directory)
    if first.manifest["full_finetune"]:
        _merge_weights(sources, weights, directory)
        return about | {"lora_rank": None, "lora_alpha": None}, 0.0
    kept = rank or int(first.manifest["lora_rank"])
    lost = _merge_adapters(sources, weights, directory, kept)
    return about | {"lora_rank": kept, "lora_alpha": first.manifest["lora_alpha"]}, lost


def _merge_adapters(
    sources: Sequence[Source], weights: Sequence[float], directory: Path, rank: int
) -> float:
    first = sources[0].stored
    layers = [adapter_factors(source.stored) for source in sources]
    names = [set(each) for each in layers]
    if any(each != names[0] for each in names):
        raise ConfigError("the adapters change other layers", "Give adapters of equal layers.")
    scale = first.manifest["lora_alpha"] / rank
    tensors, whole, lost = {}, 0.0, 0.0
    for name in layers[0]:
        average = stacked([each[name] for each in layers], weights)
        reduced = average.of_rank(rank)
        whole += average.norm() ** 2
        lost += stacked([average, reduced], [1.0, -1.0]).norm() ** 2
        stem = f"base_model.model.{name}"
        a_RI, b_OR = side_by_side(reduced.a_EKI, reduced.b_EOK / scale)
        tensors[f"{stem}.lora_A.weight"] = a_RI.float()
        tensors[f"{stem}.lora_B.weight"] = b_OR.float()
    save_file(tensors, directory / ADAPTER, metadata={"format": "pt"})
    replace_json(directory / CONFIG, {**read_json(first.path / CONFIG), "r": rank})
    for file in _others(first):
        linked_or_copied(file, directory / file.name)
    return float((lost / whole) ** 0.5) if whole else 0.0


def _merge_weights(sources: Sequence[Source], weights: Sequence[float], directory: Path) -> None:
    first = sources[0].stored
    for file in _weight_files(first):
        total: dict[str, Tensor] = {}
        for source, weight in zip(sources, weights, strict=True):
            for name, tensor in load_file(source.stored.path / file.name).items():
                total[name] = total.get(name, 0) + tensor.double() * weight
        means = {name: tensor.float().contiguous() for name, tensor in total.items()}
        save_file(means, directory / file.name, metadata={"format": "pt"})
    for file in _others(first):
        linked_or_copied(file, directory / file.name)


def _others(stored: StoredCheckpoint) -> Iterator[Path]:
    names: Mapping[str, Any] = stored.manifest["files"]
    for name in names:
        if not name.endswith(".safetensors") and name not in (MANIFEST, CONFIG):
            yield stored.path / name
