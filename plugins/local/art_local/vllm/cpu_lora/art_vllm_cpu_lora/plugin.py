"""The entry point: vLLM calls `register` in each of its processes before a model is loaded."""

from __future__ import annotations

import inspect
import logging

# Children of vLLM's own logger, so that its handler shows them.
log = logging.getLogger("vllm.art_cpu_lora")

STOCK = "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU"
OURS = "art_vllm_cpu_lora.wrapper.GroupedPunicaWrapper"
# Parameters of what the wrapper overrides, as vLLM 0.32 has them.
LINEAR = "y, x, lora_a_stacked, lora_b_stacked, scale"
EXPECTED = {
    "__init__": "self, max_num_batched_tokens, max_batches, device, kwargs",
    "update_metadata": "self, mapping, lora_index_to_id, max_loras, vocab_size, kwargs",
    "add_shrink": "self, y, x, lora_a_stacked, scale, kwargs",
    "add_expand": ("self, y, x, lora_b_stacked, output_slices, offset_start, add_inputs, kwargs"),
    "add_lora_embedding": "self, y, x, lora_b_stacked, add_inputs, kwargs",
    "add_lora_linear": f"self, {LINEAR}, output_slices, buffer, kwargs",
    "add_lora_logits": f"self, {LINEAR}, buffer, kwargs",
    "apply_lora_full_linear": ("self, y, x, weight_stacked, bias_stacked, module_enabled"),
    "_select_full_linear_output": "self, y, adapter_y, bias_stacked, module_enabled",
}
PROPERTIES = ("token_lora_indices", "sampler_indices")


def register() -> None:
    """Have vLLM's CPU platform use the grouped wrapper; leave every other platform as it is.

    May be called several times. Where vLLM is not what this was written for, the stock operations
    stay, and a warning says why.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    platform = type(current_platform)
    chosen = platform.get_punica_wrapper()
    if chosen == OURS:
        return
    if problem := mismatch(chosen):
        log.warning(
            "art-vllm-cpu-lora leaves vLLM's LoRA operations as they are: %s. Do not send requests "
            "for the base model and for an adapter to this server at the same time: stock vLLM "
            "0.32 mixes them up on CPU. A release of art-local for this vLLM mends it.",
            problem,
        )
        return
    platform.get_punica_wrapper = classmethod(lambda _: OURS)
    log.info("LoRA on CPU: one matrix product an adapter, tokens without one are skipped")


def mismatch(chosen: str) -> str | None:
    """Return what differs between this vLLM and the one that was expected; None when nothing."""
    if chosen != STOCK:
        return f"this platform computes LoRA with {chosen}, expected {STOCK}"
    try:
        from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU as Stock
    except ImportError as error:
        return f"{STOCK} cannot be imported ({error})"
    for name, parameters in EXPECTED.items():
        method = getattr(Stock, name, None)
        if method is None:
            return f"PunicaWrapperCPU has no {name}"
        found = ", ".join(inspect.signature(method).parameters)
        if found != parameters:
            return f"PunicaWrapperCPU.{name} takes ({found}), expected ({parameters})"
    for name in PROPERTIES:
        if not isinstance(inspect.getattr_static(Stock, name, None), property):
            return f"PunicaWrapperCPU has no property {name}"
    return None
