"""A tokenizer of bytes and an engine that answers the lines of a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_core.base.images import image_bytes
from art_core.endpoint.engine import Sampling, ServedModel, Token

START, END, TOOL_CALLS = 256, 257, 258
SPECIALS = {START: "<|start|>", END: "<|end|>", TOOL_CALLS: "[TOOL_CALLS]"}
LOGPROB = -0.5


class ByteTokenizer:
    """Ids 0 to 255 are bytes; a message is `<|start|>role\\ncontent<|end|>`. An image is `<image>`,
    and only PNG files can be read.
    """

    eos_token_id: int | None = END

    def __init__(self) -> None:
        self.all_special_ids = list(SPECIALS)
        self.seen: list[tuple[list[dict[str, Any]], dict[str, Any]]] = []

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        self.seen.append((conversation, options))
        if conversation[0]["role"] == "tool":
            raise ValueError("a conversation cannot begin with a tool")
        ids: list[int] = []
        for message in conversation:
            ids += [START, *self.encode(f"{message['role']}\n{_text(message['content'])}"), END]
        return {"input_ids": ids} if options.get("as_mapping") else ids

    def encode(self, text: str, **options: Any) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int], **options: Any) -> str:
        text = b"".join(SPECIALS[i].encode() if i in SPECIALS else bytes([i]) for i in token_ids)
        return text.decode(errors="replace")

    def __len__(self) -> int:
        return 256 + len(SPECIALS)

    def convert_ids_to_tokens(self, token_id: int) -> str:
        if token_id == 0x9F:
            return "<0x9F>"
        return chr(token_id) if 161 <= token_id < 173 or token_id >= 174 else " "


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or _image(part["image"]) for part in content)


def _image(url: str) -> str:
    if not (image_bytes(url) or b"").startswith(b"\x89PNG"):
        raise ConfigError("an image cannot be decoded: it is no PNG")
    return "<image>"


@attrs.define
class ScriptedEngine:
    """Answers `lines` in turn, byte by byte and then the end token; keeps the requests."""

    context_length: int = 400
    lines: list[str | list[int]] = attrs.field(factory=list)
    asked: list[tuple[list[int], Sampling, str]] = attrs.field(factory=list)
    failure: Exception | None = None
    fails_after: int = 0
    pause_s: float = 0.0
    running: int = 0
    cancelled: int = 0
    ends: bool = True
    cached: list[int] = attrs.field(factory=list)
    images: list[Sequence[str]] = attrs.field(factory=list)

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        adapter: str,
        images: Sequence[str] = (),
    ) -> AsyncGenerator[Token, None]:
        self.asked.append((list(prompt_ids), sampling, adapter))
        self.images.append(images)
        line = self.lines[(len(self.asked) - 1) % len(self.lines)] if self.lines else "ok"
        said = [*line.encode(), END] if isinstance(line, str) else line
        said = said[: sampling.max_tokens]
        cached = self.cached[len(self.asked) - 1] if self.cached else None
        self.running += 1
        try:
            for place, token_id in enumerate(said):
                if self.failure is not None and place >= self.fails_after:
                    raise self.failure
                await asyncio.sleep(self.pause_s)
                top = tuple((token_id + k, LOGPROB - k) for k in range(sampling.top_logprobs))
                last = self.ends and place == len(said) - 1
                finish = ("stop" if token_id == END else "length") if last else None
                yield Token(token_id, LOGPROB, top, finish, None if place else cached)
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def close(self) -> None:
        self.failure = RuntimeError("closed")


@attrs.define
class OneModel:
    """Serves the engine as `agent` and `agent@7`."""

    engine: ScriptedEngine
    tokenizer: ByteTokenizer
    delay_s: float = 0.0
    policy_version: int | None = 7
    images_refused: str | None = "its model reads text only"
    grammars: Any = None
    biases: bool = False

    def names(self) -> list[str]:
        return ["agent", "agent@7"]

    async def resolve(self, name: str) -> ServedModel:
        await asyncio.sleep(self.delay_s)
        if name not in self.names():
            raise KeyError(name)
        return ServedModel(
            engine=self.engine,
            tokenizer=self.tokenizer,
            adapter="agent-7",
            name="agent@7",
            policy_version=self.policy_version,
            images_refused=self.images_refused,
            grammars=self.grammars,
            biases=self.biases,
        )
