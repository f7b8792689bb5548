"""Serve, train, export and resume a tiny model of one architecture, and compare log-probs."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from art_core.base.errors import ConfigError, EngineError
from art_core.endpoint.engine import Sampling, Token
from art_core.rl.config import TrainConfig
from art_core.rl.sequences import TokenSequence
from art_local.engine import TransformersEngine
from art_local.engine.layer_types import check_servable
from art_local.models.load import cannot_serve, load_model, refused_unless_possible
from art_local.models.placement import placement
from art_local.training.packing import can_pack, packing_difference
from art_local.training.policy import Policy
from art_local.training.trainer import Trainer

COLUMNS = (
    "served", "LoRA", "packed", "adapter in peft", "merged export", "resumed", "all weights",
)  # fmt: skip
TOLERANCE = 1e-3
PROMPT, LENGTHS = 6, (12, 20, 30, 44)
PROMPTS = (5, 17, 40)
"""Lengths of the prompts that are sampled from."""


@attrs.define
class Findings:
    """Distances in nats by column, or the sentence of a refusal.

    `in_rows` is why nothing packs, `state` how the engine holds sequences.
    """

    nats: dict[str, float] = attrs.field(factory=dict)
    refusal: str | None = None
    in_rows: str | None = None
    state: str = "slots"

    @property
    def faults(self) -> dict[str, float]:
        """The distances that are more than rounding, of a model that is not refused."""
        if self.refusal is not None:
            return {}
        return {name: apart for name, apart in self.nats.items() if not apart <= TOLERANCE}


def survey(make: Callable[[], Any], scratch: Path) -> Findings:
    """Measure a model; `make` returns it anew, with equal weights, `scratch` is an empty folder.

    What a library raises is raised as the ConfigError that `register` would raise.
    """
    found = Findings()
    try:
        with _quiet():
            model = make()
            architecture = type(model).__name__
            check_servable(model.config)
            with refused_unless_possible(architecture, "trained"):
                _measure(make, scratch, found)
    except ConfigError as error:
        found.refusal = str(error)
    except EngineError as error:
        found.refusal = str(cannot_serve(architecture, error))
    return found


def _measure(make: Callable[[], Any], scratch: Path, found: Findings) -> None:
    rows = _rows(make)
    found.nats["served"], found.state = asyncio.run(_served(make(), {}, make))
    policy = Policy(make(), dtype=torch.float32, lora=(4, 8), seed=0)
    trainer = Trainer(policy, progress=False)
    with _warnings() as said:
        can_pack(policy, rows, chunk_size=64)
    if policy.packs:
        found.nats["packed"] = packing_difference(policy, rows, chunk_size=64)
    else:
        found.in_rows = said[-1].partition(": ")[2].partition(". Set")[0] if said else "no memory"
    metrics = trainer.step(rows, _config())
    trained = _trained_logprobs(policy, rows)
    served, _ = asyncio.run(_served(make(), policy.serving, lambda: policy.model))
    found.nats["LoRA"] = max(metrics["loss/engine_logprob_diff"], served)
    _exports(make, policy, rows, trained, scratch, found)
    found.nats["resumed"] = _resumed(make, policy, trainer, rows)
    found.nats["all weights"] = _all_weights(make, rows, scratch)


def _exports(
    make: Callable[[], Any],
    policy: Policy,
    rows: Sequence[TokenSequence],
    trained: Tensor,
    scratch: Path,
    found: Findings,
) -> None:
    from peft import PeftModel

    policy.save(scratch / "adapter", "base")
    loaded = PeftModel.from_pretrained(make(), scratch / "adapter").eval()
    found.nats["adapter in peft"] = _apart(_plain_logprobs(loaded, rows), trained)
    loaded.merge_and_unload().save_pretrained(scratch / "merged")
    merged = _loaded(scratch / "merged")
    found.nats["merged export"] = _apart(_plain_logprobs(merged, rows), trained)


def _resumed(
    make: Callable[[], Any], policy: Policy, trainer: Trainer, rows: Sequence[TokenSequence]
) -> float:
    other = Policy(make(), dtype=torch.float32, lora=(4, 8), seed=0)
    again = Trainer(other, progress=False)
    other.load({n: p.detach().clone() for n, p in policy.trained().items()}, Path("a checkpoint"))
    again.optimizer.load(
        {n: t.clone() for n, t in trainer.optimizer.state().items()}, Path("a checkpoint")
    )
    for each in (trainer, again):
        each.step(rows, _config())
    return _apart(_trained_logprobs(policy, rows), _trained_logprobs(other, rows))


def _all_weights(make: Callable[[], Any], rows: Sequence[TokenSequence], scratch: Path) -> float:
    policy = Policy(make(), dtype=torch.float32, lora=None, seed=0)
    metrics = Trainer(policy, progress=False).step(rows, _config())
    (scratch / "whole").mkdir()
    policy.save(scratch / "whole", "base")
    stored = _plain_logprobs(_loaded(scratch / "whole"), rows)
    return max(metrics["loss/engine_logprob_diff"], _apart(stored, _trained_logprobs(policy, rows)))


def _config() -> TrainConfig:
    return TrainConfig(learning_rate=3e-3)


def _loaded(directory: Path) -> Any:
    return load_model(directory, placement("cpu", "float32"), torch.float32).eval()


def _rows(make: Callable[[], Any]) -> list[TokenSequence]:
    """Sequences that share a prompt, with the log-probs of a plain forward pass over each."""
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(1, 90, (PROMPT,), generator=generator).tolist()
    rows = []
    for place, length in enumerate(LENGTHS):
        more = torch.randint(1, 90, (length - PROMPT,), generator=generator).tolist()
        trainable = tuple(at >= PROMPT for at in range(length))
        own = [0.0] * PROMPT + _logprobs(make(), prompt + more)[PROMPT - 1 :].tolist()
        rows.append(
            TokenSequence(
                token_ids=tuple(prompt + more),
                trainable=trainable,
                logprobs=tuple(own),
                advantage=1.0 if place % 2 else -1.0,
                weight=1 / (length - PROMPT),
            )
        )
    return rows


@torch.no_grad()
def _logprobs(model: Any, ids: Sequence[int]) -> Tensor:
    """Return the log-probs of all tokens but the first by the model's own forward pass."""
    logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, :-1].float()
    picked: Tensor = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return picked


def _plain_logprobs(model: Any, rows: Sequence[TokenSequence]) -> Tensor:
    return torch.cat([_logprobs(model, list(row.token_ids)) for row in rows])


@torch.no_grad()
def _trained_logprobs(policy: Policy, rows: Sequence[TokenSequence]) -> Tensor:
    found = []
    for row in rows:
        ids = torch.tensor(row.token_ids)
        places = torch.arange(len(ids) - 1)
        found.append(policy.logprobs(ids[None], places, ids[1:], chunk_size=64)[0])
    return torch.cat(found)


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


async def _served(
    model: Any, weights: dict[str, Tensor], make: Callable[[], Any]
) -> tuple[float, str]:
    """Return how far log-probs of the engine are from those of a model over the whole text, and how
    the engine holds sequences.
    """
    engine = TransformersEngine(model, cache_bytes=1 << 26)
    engine.load("adapter", weights)
    prompts = [list(range(1, 1 + n)) for n in PROMPTS]

    async def ask(prompt: list[int]) -> list[Token]:
        sampling = Sampling(max_tokens=10, seed=1)
        return [token async for token in engine.generate(prompt, sampling, "adapter")]

    try:
        answers = await asyncio.gather(*map(ask, prompts))
    finally:
        await engine.close()
    reference, apart = make(), []
    for prompt, tokens in zip(prompts, answers, strict=True):
        wanted = _logprobs(reference, prompt + [token.id for token in tokens])
        reported = torch.tensor([token.logprob for token in tokens])
        apart.append(_apart(wanted[len(prompt) - 1 :], reported))
    return max(apart), engine.state


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect the warnings of the local backend inside the block."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("art_local")
    log.addHandler(handler)
    try:
        yield said
    finally:
        log.removeHandler(handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Show no warnings and no bars of the libraries inside the block."""
    from art_local.models.load import silence_logs

    with silence_logs(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
