"""Thoughts: a model's text between `<think>` and `</think>` before its answer.

Answers have them in a field of their own, `reasoning_content`. If a chat template does not read
that field, they are put back into the content as the model wrote them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from art_core.endpoint.engine import ChatTokenizer

TAGS = {"<think>": "</think>", "[THINK]": "[/THINK]", "<seed:think>": "</seed:think>"}
FIELD = "reasoning_content"
MAX_SPELLINGS = 1 << 16
_PROMPT_END = 16
"""The number of ids at the end of a prompt in which a template may open the thoughts."""


def opened_by(tokenizer: ChatTokenizer, prompt_ids: Sequence[int]) -> str | None:
    """Return the closing tag of the thoughts that a prompt has opened, if any."""
    end = tokenizer.decode(prompt_ids[-_PROMPT_END:], skip_special_tokens=False).rstrip()
    return next((close for tag, close in TAGS.items() if end.endswith(tag)), None)


@attrs.frozen
class Thoughts:
    """The thoughts of an answer without spaces around them, and the tags and spaces that the model
    wrote before and after them.
    """

    text: str
    before: str
    after: str


class Spellings:
    """Remembers the tags and spaces around thoughts, for templates without `reasoning_content`.

    One thread writes, all threads may read.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, int], tuple[str, str]] = OrderedDict()

    def keep(self, thoughts: Thoughts, content: str, *, calls: bool) -> None:
        """Remember the thoughts of an answer with this content; templates render calls after it."""
        key = hash(thoughts.text), hash(content)
        after = thoughts.after.rstrip() if calls and not content else thoughts.after
        self._known[key] = thoughts.before, after
        self._known.move_to_end(key)
        if len(self._known) > MAX_SPELLINGS:
            self._known.popitem(last=False)

    def spelled(self, thoughts: str, content: str) -> str:
        """Return thoughts and content as one text."""
        usual = "<think>\n", "\n</think>\n\n" if content else "\n</think>"
        before, after = self._known.get((hash(thoughts), hash(content)), usual)
        return f"{before}{thoughts}{after}{content}"


def in_content(
    messages: Iterable[Mapping[str, Any]], tokenizer: ChatTokenizer, spellings: Spellings
) -> list[dict[str, Any]]:
    """Return messages with their thoughts in the content, unless the chat template reads them."""
    if FIELD in str(getattr(tokenizer, "chat_template", "")):
        return [dict(message) for message in messages]
    return [_with_thoughts(message, spellings) for message in messages]


def _with_thoughts(message: Mapping[str, Any], spellings: Spellings) -> dict[str, Any]:
    thoughts = message.get(FIELD)
    if not isinstance(thoughts, str):
        return dict(message)
    content = spellings.spelled(thoughts, message["content"])
    return {k: v for k, v in message.items() if k != FIELD} | {"content": content}
