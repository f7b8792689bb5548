"""Run by test_vllm_lora.py with the interpreter of the vLLM environment, where no pytest is.

Computes LoRA with the plugin's wrapper, with vLLM's own, and token by token; prints as JSON how far
they are from each other, and what `register` does on platforms that it knows and does not know.
"""

from __future__ import annotations

import json
import logging

import torch
from art_vllm_cpu import plugin
from art_vllm_cpu.lora import GroupedPunicaWrapper
from vllm import platforms
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

SLOTS, RANK, INPUTS, SLICES = 3, 4, 32, (24, 8, 8)  # as q, k and v of grouped-query attention
VOCABULARY, PADDED = 50, 56
IDS = [11, 12, None]  # adapter 11 is in slot 0, adapter 12 in slot 1, slot 2 is free
BATCHES = {
    "no adapter": [0] * 6,
    "one adapter": [12] * 6,
    "neighbours": [0, 0, 11, 11, 11, 12, 12, 0],
    "interleaved": [11, 0, 12, 11, 0, 12, 12, 0, 11],
    "one token": [11],
}


def weights(generator, *shape):
    return torch.randn(shape, generator=generator)


def reference(y, x, slots, pairs, scale):
    """Add, in fp32 and one token at a time, scale · B · A · x of the token's own slot."""
    y = y.float().clone()
    for token, slot in enumerate(slots):
        at = 0
        for a, b in pairs if slot >= 0 else ():
            delta = b[slot, 0].float() @ (a[slot, 0].float() @ x[token].float()) * scale
            y[token, at : at + len(delta)] += delta
            at += len(delta)
    return y


def case(kind, batch, dtype, operation, seed=0):
    """Return the largest difference between an operation of a wrapper and the reference."""
    generator = torch.Generator().manual_seed(seed)
    wrapper = kind(64, 16, torch.device("cpu"))
    wrapper.update_metadata(LoRAMapping(tuple(batch), tuple(batch), is_prefill=True), IDS, 4, 1000)
    slots = [IDS.index(adapter) if adapter else -1 for adapter in batch]
    outputs = (VOCABULARY,) if operation == "logits" else SLICES
    inputs = RANK if operation == "embedding" else INPUTS
    width = PADDED if operation == "logits" else sum(outputs)
    if operation == "embedding":
        outputs = (width,)
    a = [weights(generator, SLOTS, 1, RANK, inputs).to(dtype) for _ in outputs]
    b = [weights(generator, SLOTS, 1, size, RANK).to(dtype) for size in outputs]
    x = weights(generator, len(batch), inputs).to(dtype)
    y = weights(generator, len(batch), width).to(dtype)
    identity = torch.eye(RANK).expand(SLOTS, 1, RANK, RANK)
    pairs = [(identity, b[0])] if operation == "embedding" else list(zip(a, b, strict=True))
    scale = 1.0 if operation == "embedding" else 0.5
    expected = reference(y, x, slots, pairs, scale)
    if operation == "linear":
        wrapper.add_lora_linear(y, x, tuple(a), tuple(b), scale, outputs)
    elif operation == "shrink and expand":
        buffers = torch.zeros(len(outputs), len(batch), RANK)
        wrapper.add_shrink(buffers, x, tuple(a), scale)
        wrapper.add_expand(y, buffers, tuple(b), outputs, add_inputs=True)
    elif operation == "logits":
        wrapper.add_lora_logits(y, x, a[0], b[0], scale)
    else:
        wrapper.add_lora_embedding(y, x, b[0])
    return float((y.float() - expected).abs().max() / expected.abs().max())


def head(kind):
    """Return how far a classification head of an adapter is from the reference."""
    generator = torch.Generator().manual_seed(0)
    batch = BATCHES["interleaved"]
    wrapper = kind(64, 16, torch.device("cpu"))
    wrapper.update_metadata(LoRAMapping(tuple(batch), tuple(batch), is_prefill=True), IDS, 4, 1000)
    weight, bias = weights(generator, SLOTS, 1, 5, INPUTS), weights(generator, SLOTS, 5)
    x, y = weights(generator, len(batch), INPUTS), weights(generator, len(batch), 5)
    expected = y.clone()
    for token, adapter in enumerate(batch):
        if adapter:
            slot = IDS.index(adapter)
            expected[token] = weight[slot, 0] @ x[token] + bias[slot]
    wrapper.apply_lora_full_linear(y, x, weight, bias, torch.ones(SLOTS, dtype=torch.bool))
    return float((y - expected).abs().max())


def other_rows():
    """Return what the output layer does with rows of a prompt: adapters that leave it alone, and
    one that trains it.
    """
    wrapper = GroupedPunicaWrapper(64, 16, torch.device("cpu"))
    wrapper.update_metadata(LoRAMapping((11, 0), (11, 0), is_prefill=True), IDS, 4, 1000)
    a, b = torch.zeros(SLOTS, 1, RANK, INPUTS), torch.ones(SLOTS, 1, VOCABULARY, RANK)
    x, y = torch.ones(7, INPUTS), torch.zeros(7, VOCABULARY)
    wrapper.add_lora_logits(y, x, a, b, 1.0)
    try:
        wrapper.add_lora_logits(y, x, a + 1, b, 1.0)
    except NotImplementedError as error:
        return float(y.abs().max()), str(error)
    return float(y.abs().max()), ""


def differences(kind, dtype):
    operations = ("linear", "shrink and expand", "logits", "embedding")
    return {o: {n: case(kind, b, dtype, o) for n, b in BATCHES.items()} for o in operations}


class Gpu:
    """A platform other than a CPU, for the check of the platform."""

    def is_cpu(self):
        return False


def registrations():
    """Return what `register` chose in turn: elsewhere, with a changed vLLM, as expected, again."""
    cpu, said = platforms.current_platform, []
    stock = type(cpu).get_punica_wrapper
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    plugin.log.addHandler(handler)
    plugin.log.setLevel(logging.INFO)
    platforms.current_platform = Gpu()
    plugin.register()
    elsewhere = len(said)
    platforms.current_platform = cpu
    known = PunicaWrapperCPU.add_expand
    PunicaWrapperCPU.add_expand = lambda self, y, x, weights, slices, bias: None
    plugin.register()
    refused = cpu.get_punica_wrapper()
    PunicaWrapperCPU.add_expand = known
    type(cpu).get_punica_wrapper = stock
    plugin.register()
    plugin.register()
    return {
        "said_elsewhere": elsewhere,
        "after_a_change": refused,
        "chosen": cpu.get_punica_wrapper(),
        "said": said,
    }


if __name__ == "__main__":
    kinds = {"plugin": GroupedPunicaWrapper, "stock": PunicaWrapperCPU}
    found = {name: differences(kind, torch.float32) for name, kind in kinds.items()}
    found["bf16"] = differences(GroupedPunicaWrapper, torch.bfloat16)
    found["other rows"] = other_rows()
    found["head"] = head(GroupedPunicaWrapper)
    print(json.dumps({**found, "register": registrations()}))
