"""A tokenizer whose chat template reads contents as lists of parts, with images among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from art_local.images.reader import ImageReader


def with_reader(tokenizer: Any, reader: ImageReader) -> PartsTokenizer:
    """Return a tokenizer for messages with images."""
    if isinstance(tokenizer, PartsTokenizer):
        return PartsTokenizer(tokenizer.plain, in_parts=tokenizer.in_parts, reader=reader)
    return PartsTokenizer(tokenizer, reader=reader)


class PartsTokenizer:
    """A tokenizer of transformers with other contents for its chat template. With `in_parts` the
    template cannot read texts, so a text is given as a list of one part. `reader` expands images
    into their tokens.
    """

    def __init__(
        self, tokenizer: Any, *, in_parts: bool = False, reader: ImageReader | None = None
    ) -> None:
        self.plain = tokenizer
        self.in_parts, self._reader = in_parts, reader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def __call__(self, *texts: Any, **options: Any) -> Any:
        """Tokenize texts."""
        return self.plain(*texts, **options)

    def __len__(self) -> int:
        return len(self.plain)

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Render messages; ConfigError for an image that cannot be read."""
        messages = [self._in_parts(message) for message in conversation]
        urls = [url for message in messages for url in _images(message)]
        if self._reader is None or not urls:
            return self.plain.apply_chat_template(messages, **options)
        tokenize = options.pop("tokenize", True)
        bare = [_without_images(message) for message in messages]
        text = self.plain.apply_chat_template(bare, **options, tokenize=False)
        text = self._reader.expanded(text, urls)
        return self.plain.encode(text, add_special_tokens=False) if tokenize else text

    def _in_parts(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        content = message.get("content")
        if not self.in_parts or not isinstance(content, str):
            return message
        return {**message, "content": [{"type": "text", "text": content}] if content else []}


def _images(message: Mapping[str, Any]) -> Sequence[str]:
    content = message.get("content")
    parts = content if isinstance(content, list) else ()
    return [part["image"] for part in parts if part["type"] == "image"]


def _without_images(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a message whose images have no bytes: templates need their places only."""
    if not _images(message):
        return message
    parts = [{"type": "image"} if p["type"] == "image" else p for p in message["content"]]
    return {**message, "content": parts}
