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

CONFIG, ADAPTER = ADAPTER_FILES
STATES = ("optimizer", "rng")
EQUAL = ("base_fingerprint", "full_finetune", "quantization")
ABOUT = ("model", "seed", "dtype", "versions")


@attrs.frozen(kw_only=True, eq=False)
class Factors:
    """A layer's change scale * B @ A, with A [R, I] and B [O, R] in fp64; B has the scale."""

    a_RI: Tensor
    b_OR: Tensor

    def __sub__(self, other: Factors) -> Factors:
        """Return the factors of the difference, which is 0 for equal factors."""
        if self.a_RI.shape != other.a_RI.shape:
            return stacked([self, other], [1.0, -1.0])
        b_OR = torch.cat([self.b_OR - other.b_OR, other.b_OR], 1)
        return Factors(a_RI=torch.cat([self.a_RI, self.a_RI - other.a_RI]), b_OR=b_OR)

    def norm(self) -> float:
        """Return the Frobenius norm of B @ A."""
        squared = (self.b_OR.T @ self.b_OR * (self.a_RI @ self.a_RI.T)).sum()
        return float(squared.clamp(min=0).sqrt())

    def of_rank(self, rank: int) -> Factors:
        """Return the best approximation of B @ A of a rank (a truncated SVD)."""
        left_OQ, r_QR = torch.linalg.qr(self.b_OR)
        right_IQ, s_QR = torch.linalg.qr(self.a_RI.T)
        u_QK, values_K, v_KQ = torch.linalg.svd(r_QR @ s_QR.T, full_matrices=False)
        kept = min(rank, len(values_K))
        root_K = values_K[:kept].sqrt()
        a_KI, b_OK = root_K[:, None] * (v_KQ[:kept] @ right_IQ.T), left_OQ @ u_QK[:, :kept] * root_K
        missing = rank - kept
        return Factors(
            a_RI=torch.cat([a_KI, a_KI.new_zeros(missing, a_KI.shape[1])]),
            b_OR=torch.cat([b_OK, b_OK.new_zeros(len(b_OK), missing)], 1),
        )


def stacked(factors: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Return factors whose product is the weighted sum of the products."""
    b_OR = torch.cat([f.b_OR * weight for f, weight in zip(factors, weights, strict=True)], 1)
    return Factors(a_RI=torch.cat([f.a_RI for f in factors]), b_OR=b_OR)


def adapter_factors(stored: StoredCheckpoint) -> dict[str, Factors]:
    """Return the factors of a checkpoint's adapter, by layer; ConfigError for stacked experts."""
    tensors = load_file(stored.path / ADAPTER)
    rank, alpha = stored.manifest["lora_rank"], stored.manifest["lora_alpha"]
    found = {}
    for name, a_RI in tensors.items():
        stem, a, rest = name.rpartition(".lora_A.")
        if not a:
            continue
        b_OR = tensors[f"{stem}.lora_B.{rest}"]
        if a_RI.shape[0] != rank:
            raise ConfigError(
                f"{stem} is an adapter of stacked experts, which can't be merged or compared",
                "Train all weights, or without experts.",
            )
        found[stem.removeprefix("base_model.model.")] = Factors(
            a_RI=a_RI.double(), b_OR=b_OR.double() * alpha / rank
        )
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
        tensors[f"{stem}.lora_A.weight"] = reduced.a_RI.float().contiguous()
        tensors[f"{stem}.lora_B.weight"] = (reduced.b_OR / scale).float().contiguous()
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
