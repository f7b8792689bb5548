"""Four families of chat models: their published templates, and small tokenizers of their kinds.

The tokenizers are byte-pair encodings trained here on a page of text: byte-level ones, as Qwen
(which normalises to NFC) and Llama 3 have them, and one of Mistral's kind that marks spaces and
falls back to bytes.
"""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import attrs
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

TEMPLATES = Path(__file__).parent / "templates"
WORDS = (
    "the weather in the river town is cold and the lamp is lit",
    "look at the garden, then answer yes, no or maybe; 12 345 times",
    "l'hiver est très froid, naïve façade, Zürich, Ångström",
    "Привет, как дела? 你好世界，今天天气很好 こんにちは",
    "שלום עולם مرحبا بالعالم नमस्ते 👩‍👩‍👧‍👦 👍🏽 e\u0301a\u0308o\u0302",
    '{"name": "look", "arguments": {"where": "here"}} <think>\n\n</think> parameters',
)
GPT4 = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s+"


@attrs.frozen(kw_only=True, eq=False)
class Family:
    """A template with a tokenizer of its kind, and how the model of this kind calls a tool."""

    name: str
    tokenizer: Any
    speaker: Tokenizer
    call: str

    def encode(self, text: str) -> list[int]:
        """The tokens that the tokenizer would make of a text after a prompt, not normalised: models
        do not normalise their text.
        """
        start = self.tokenizer.all_special_tokens[0]
        return list(self.speaker.encode(start + text, add_special_tokens=False).ids)[1:]

    def text(self, token_ids: list[int]) -> str:
        """The text of tokens after a prompt."""
        start = self.tokenizer.all_special_ids[0]
        whole = self.tokenizer.decode([start, *token_ids], skip_special_tokens=False)
        return str(whole.removeprefix(self.tokenizer.all_special_tokens[0]))

    def sampled(self, text: str, seed: int) -> list[int]:
        """Other tokens of the same text, as a model might sample them: every second one that is
        made of two is decoded as these two.
        """
        draw = random.Random(seed)
        ids: list[int] = []
        for token in self.encode(text):
            ids += draw.choice([[token], self._halves(token)])
        return ids

    def _halves(self, token: int) -> list[int]:
        spelled = self.tokenizer.convert_ids_to_tokens(token)
        vocabulary = _vocabulary(self.name)
        if token in self.tokenizer.added_tokens_decoder or spelled.startswith("<0x"):
            return [token]
        for cut in range(1, len(spelled)):
            if spelled[:cut] in vocabulary and spelled[cut:] in vocabulary:
                return [vocabulary[spelled[:cut]], vocabulary[spelled[cut:]]]
        return [token]


@cache
def _vocabulary(name: str) -> dict[str, int]:
    return dict(family(name).tokenizer.get_vocab())


def _byte_level(split: str | None, *, nfc: bool) -> tuple[Tokenizer, BpeTrainer]:
    tokenizer = Tokenizer(models.BPE())
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre.Split(Regex(split), "isolated")] if split else []
    levels = pre.ByteLevel(add_prefix_space=False, use_regex=split is None)
    tokenizer.pre_tokenizer = pre.Sequence([*splits, levels])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre.ByteLevel.alphabet()
    return tokenizer, BpeTrainer(
        vocab_size=700, min_frequency=1, initial_alphabet=alphabet, show_progress=False
    )


def _marked_spaces() -> tuple[Tokenizer, BpeTrainer]:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    fallback = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return tokenizer, BpeTrainer(
        vocab_size=700,
        min_frequency=1,
        special_tokens=fallback,
        limit_alphabet=90,
        show_progress=False,
    )


HERMES = "<tool_call>\n{}\n</tool_call>"
QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THOUGHTS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
LLAMA = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
MISTRAL = (
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
)
KINDS: dict[str, dict[str, Any]] = {
    "chatml": {"special": QWEN, "eos": "<|im_end|>", "call": HERMES},
    "qwen3": {"special": QWEN, "plain": THOUGHTS, "eos": "<|im_end|>", "call": HERMES},
    "llama3": {"special": LLAMA, "bos": "<|begin_of_text|>", "eos": "<|eot_id|>", "call": "{}"},
    "mistral": {"special": MISTRAL, "bos": "<s>", "eos": "</s>", "call": "[TOOL_CALLS] [{}]"},
}


@cache
def family(name: str) -> Family:
    """Make a family: train its tokenizer, load its template."""
    kind = KINDS[name]
    if name == "mistral":
        tokenizer, trainer = _marked_spaces()
    else:
        tokenizer, trainer = _byte_level(GPT4 if name == "llama3" else None, nfc=name != "llama3")
    tokenizer.train_from_iterator(WORDS, trainer)
    special = [AddedToken(t, special=True, normalized=False) for t in kind["special"]]
    plain = [AddedToken(t, special=False, normalized=False) for t in kind.get("plain", ())]
    tokenizer.add_tokens(special + plain)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=kind.get("bos"),
        eos_token=kind["eos"],
        extra_special_tokens=[
            t for t in kind["special"] if t not in (kind["eos"], kind.get("bos"))
        ],
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
    speaker = Tokenizer.from_str(tokenizer.to_str())
    speaker.normalizer = None
    return Family(name=name, tokenizer=wrapped, speaker=speaker, call=kind["call"])


def call_text(kind: Family, where: str, *, compact: bool = False) -> str:
    """What a model of this family writes to call `look(where)`, in the form in which its template
    writes calls, or with no spaces in the JSON.
    """
    key = "parameters" if kind.name == "llama3" else "arguments"
    call: dict[str, Any] = {"name": "look", key: {"where": where}}
    if kind.name == "mistral":
        call["id"] = "a1b2c3d4e"
    separators = (",", ":") if compact else (", ", ": ")
    return kind.call.format(json.dumps(call, ensure_ascii=False, separators=separators))
