"""ART's options as options of art-core: plain functions from dicts to dicts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from art_core import ConfigError

log = logging.getLogger("art_compat")

LIKE_ART = {"learning_rate": 5e-6, "scale_rewards": True, "mask_truncated": False}
"""Defaults of ART that are not those of art-core."""
OF_TRAINER = {"max_grad_norm": 0.1, "weight_decay": 0.1}
"""Those of its trainer, which `trainer_args` changes."""

WITHOUT_EFFECT = frozenset({
    "allow_training_without_logprobs", "kl_ref_adapter_path", "loss_fn_config", "adam_params",
    "num_trajectories_learning_rate_multiplier_power", "plot_tensors", "precalculate_logprobs",
    "scale_learning_rate_by_reward_std_dev", "verbose",
})  # fmt: skip
"""Options that art-core has not. The following are refused when they would change the training."""
REFUSED = {
    "adam_params": "give weight_decay=... or optimizer=...",
    "kl_ref_adapter_path": "give kl_penalty_reference_step=..., a step of this run",
    "loss_fn_config": "give the parameters of the loss by name: epsilon=..., epsilon_high=...",
    "num_trajectories_learning_rate_multiplier_power": "give learning_rate=... of the step",
    "scale_learning_rate_by_reward_std_dev": "give learning_rate=... of the step",
}


def train_options(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `art_core`'s `train` for those of ART's; ConfigError for one that
    art-core has not, and that would change the training.
    """
    for name, remedy in REFUSED.items():
        if given.get(name):
            raise ConfigError(f"art-core has no training option {name!r}", f"Instead, {remedy}.")
    options = {k: v for k, v in given.items() if k not in WITHOUT_EFFECT and v is not None}
    if options.pop("ppo", False):
        options["loss_fn"] = "ppo"
    if not options.pop("normalize_advantages", True):
        options["scale_rewards"] = False
    penalty = options.pop("beta", 0.0)
    if penalty and not options.get("kl_penalty_coef"):
        options["kl_penalty_coef"] = penalty
    return {**defaults, **options}


def trainer_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of a training step on this machine."""
    given = config.get("trainer_args") or {}
    trainer = {name: given.get(name, value) for name, value in OF_TRAINER.items()}
    rate = {"learning_rate": given["learning_rate"]} if "learning_rate" in given else {}
    return {**LIKE_ART, **trainer, **rate}


def local_options(config: Mapping[str, Any], *, vllm: bool) -> dict[str, Any]:
    """Return the options of the local backend for a model's `_internal_config`.

    `vllm` states that vLLM will serve: it gets the `engine_args`. One warning names the entries
    that are not read.
    """
    init, peft = dict(config.get("init_args") or {}), dict(config.get("peft_args") or {})
    engine = dict(config.get("engine_args") or {})
    longest = init.pop("max_seq_length", None) or (not vllm and engine.pop("max_model_len", None))
    options = {
        "lora_rank": peft.pop("r", 8),
        "lora_alpha": peft.pop("lora_alpha", 16),
        "seed": peft.pop("random_state", 3407),
        "full_finetune": bool(init.pop("full_finetuning", False)),
        "context_length": longest or None,
        "chat_template": config.get("chat_template_path") or config.get("chat_template"),
        "engine_args": engine if vllm and engine else None,
        **_devices(config.get("trainer_gpu_ids"), "device", "trainer_devices"),
        **_devices(config.get("inference_gpu_ids"), "engine_device", "engine_devices"),
    }
    ignored = {"init_args": init, "peft_args": peft, "engine_args": {} if vllm else engine}
    unread = [f"{part}.{name}" for part, values in ignored.items() for name in values]
    unread += sorted(config.keys() - READ)
    if unread:
        log.warning("options of ART that the local backend does not read: %s", ", ".join(unread))
    return {name: value for name, value in options.items() if value not in (None, False)}


READ = frozenset({
    "init_args", "peft_args", "engine_args", "trainer_args", "chat_template", "chat_template_path",
    "chat_template_kwargs", "trainer_gpu_ids", "inference_gpu_ids", "tinker_args",
    "tinker_native_args",
})  # fmt: skip


def _devices(ids: Sequence[int] | None, one: str, several: str) -> dict[str, Any]:
    if not ids:
        return {}
    return {one: f"cuda:{ids[0]}"} if len(ids) == 1 else {several: list(ids)}


def tinker_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the backend `tinker` for a model's `_internal_config`."""
    args = config.get("tinker_args") or config.get("tinker_native_args") or {}
    client = args.get("training_client_args") or {}
    names = {"rank": "lora_rank", "seed": "seed"}
    return {ours: client[theirs] for theirs, ours in names.items() if theirs in client}


def sft_options(config: Any) -> dict[str, Any]:
    """Return the options of `art_core`'s `train_sft` for a `TrainSFTConfig`: one pass in the given
    order, as one training step.
    """
    rates = config.learning_rate
    rate = rates if isinstance(rates, float) else (lambda n: rates[min(n, len(rates) - 1)])
    return {
        "learning_rate": rate,
        "batch_size": config.batch_size,
        "batches_per_step": 1_000_000,
        "epochs": 1,
        "shuffle": False,
        "resume": False,
    }


def merged(base: Mapping[str, Any], updates: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dict with the entries of two, those of nested dicts too."""
    result: dict[str, Any] = dict(base)
    for name, value in updates.items():
        inner = result.get(name)
        nested = isinstance(value, Mapping) and isinstance(inner, Mapping)
        result[name] = merged(inner or {}, value) if nested else value
    return result
