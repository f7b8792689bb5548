"""The entry point: vLLM calls `register` in each of its processes before a model is loaded."""

from __future__ import annotations

import inspect
import logging

from art_vllm_cpu.differences import difference

# Children of vLLM's own logger, so that its handler shows them.
log = logging.getLogger("vllm.art_cpu_lora")

STOCK = "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU"
OURS = "art_vllm_cpu.lora.GroupedPunicaWrapper"
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
    """Have vLLM's CPU platform use the grouped wrapper, and its model runner take back the draws
    that it drops; leave every other platform as it is.

    May be called several times. Where vLLM is not what a part was written for, that part leaves it
    as it is, with a warning.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    platform = type(current_platform)
    if platform.get_punica_wrapper.__module__ == __name__:
        return
    stock = platform.get_punica_wrapper()
    problem = mismatch(stock)
    if problem:
        log.warning(
            "art-vllm-cpu leaves vLLM's LoRA operations as they are: %s. Do not send requests for "
            "the base model and for an adapter to this server at the same time: stock vLLM 0.32 "
            "mixes them up on CPU. A release of art-local for this vLLM mends it.",
            problem,
        )
    else:
        log.info("LoRA on CPU: one matrix product an adapter, tokens without one are skipped")

    def get_punica_wrapper(_: type) -> str:
        _mend_seeds()
        return stock if problem else OURS

    platform.get_punica_wrapper = classmethod(get_punica_wrapper)


def _mend_seeds() -> None:
    # Only a worker asks for the wrapper, and only there is the runner needed: its import takes a
    # second.
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    from art_vllm_cpu.seeds import mend

    mend(CPUModelRunner)


def mismatch(chosen: str) -> str | None:
    """Return what differs between this vLLM's LoRA and the one that was expected; None when nothing
    does.
    """
    if chosen != STOCK:
        return f"this platform computes LoRA with {chosen}, expected {STOCK}"
    try:
        from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU as Stock
    except ImportError as error:
        return f"{STOCK} cannot be imported ({error})"
    if found := difference(Stock, EXPECTED):
        return found
    for name in PROPERTIES:
        if not isinstance(inspect.getattr_static(Stock, name, None), property):
            return f"PunicaWrapperCPU has no property {name}"
    return None
