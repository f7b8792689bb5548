"""Ollama's Modelfile: the chat template in Go's language, derived from the tokenizer's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_core.base.files import read_json

SETTINGS = ("temperature", "top_p", "top_k", "repetition_penalty")
"""Values of a generation config that have a parameter in Ollama."""
RENAMED = {"repetition_penalty": "repeat_penalty"}
WHITE = frozenset("\t\r\n")
SYSTEM, ANSWER, QUESTION = "@@system@@", "@@answer@@", "@@question@@"


@attrs.frozen
class TurnTexts:
    """The texts before and after each role's message, the one that asks for an answer, and the one
    that stands for a system message where there is none.
    """

    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    ask: str
    default: str

    def render(self, messages: list[dict[str, str]]) -> str:
        """Return the prompt of a conversation."""
        parts = ["" if messages[0]["role"] == "system" else self.default]
        for message in messages:
            before, after = getattr(self, message["role"])
            parts += [before, message["content"], after]
        return "".join([*parts, self.ask])

    def texts(self) -> list[str]:
        """Return all of them."""
        return [*self.system, *self.user, *self.assistant, self.ask, self.default]

    def go(self) -> str:
        """Return the template in Go's language, in which `{{-` would remove line ends."""
        turns = "{{ else ".join(
            f'if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
            for role, (before, after) in (
                ("system", self.system), ("user", self.user), ("assistant", self.assistant)
            )
        )  # fmt: skip
        default = f"{{{{ if not .System }}}}{self.default}{{{{ end }}}}" if self.default else ""
        return f"{default}{{{{ range .Messages }}}}{{{{ {turns}{{{{ end }}}}{{{{ end }}}}{self.ask}"


def modelfile(weights: str, tokenizer: Any, base: Path) -> str:
    """Return the Modelfile for a GGUF file.

    Raises ConfigError for a chat template that is not one text before and after each message, since
    Ollama would then send other prompts than the model was trained with.
    """
    texts = turn_texts(tokenizer)
    stops = {tokenizer.eos_token, texts.assistant[1].strip()} - {"", None}
    generation = read_json(base / "generation_config.json")
    settings = [
        f"PARAMETER {RENAMED.get(name, name)} {generation[name]}"
        for name in SETTINGS
        if isinstance(generation.get(name), int | float)
    ]
    lines = [
        f"FROM ./{weights}",
        f'TEMPLATE """{texts.go()}"""',
        *(f"PARAMETER stop {_quoted(stop)}" for stop in sorted(stops)),
        *settings,
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    # Ollama removes the quotes and knows no escapes
    quotes = '"""' if '"' in text else '"'
    return f"{quotes}{text}{quotes}"


def turn_texts(tokenizer: Any) -> TurnTexts:
    """Return the texts around messages in a tokenizer's chat template, checked on conversations."""
    user, answer = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}
    system = {"role": "system", "content": SYSTEM}
    # Ollama adds what the tokenizer adds before a text
    ids = tokenizer("a").input_ids
    added = str(tokenizer.bos_token) if ids[:1] == [tokenizer.bos_token_id] else ""

    def render(*messages: dict[str, str], ask: bool = False) -> str:
        options = {"tokenize": False, "add_generation_prompt": ask}
        text: str = tokenizer.apply_chat_template(list(messages), **options)
        return text.removeprefix(added)

    checked = ([user], [system, user], [user, answer, user], [system, user, answer, user])
    try:
        found = _derived(render, system, user, answer)
        wrong = [m for m in checked if found.render(m) != render(*m, ask=True)]
    except Exception as error:
        raise _refused(f"{type(error).__name__}: {error}") from error
    if wrong or '"""' in found.go() or any("{{" in t or "}}" in t for t in found.texts()):
        raise _refused("its messages do not all have the same text around them")
    if lost := {c for text in found.texts() for c in text if not c.isprintable()} - WHITE:
        raise _refused(f"Ollama drops {', '.join(map(repr, sorted(lost)))} from a Modelfile")
    return found


def _derived(render: Any, system: Any, user: Any, answer: Any) -> TurnTexts:
    asked = render(system, user)
    answered = render(system, user, answer)
    again = render(system, user, answer, user).removeprefix(answered)
    before_user, after_user = again.split(QUESTION)
    before_system, between = asked.split(QUESTION)[0].split(SYSTEM)
    before_answer, after_answer = answered.removeprefix(asked).split(ANSWER)
    return TurnTexts(
        system=(before_system, between.removesuffix(before_user)),
        user=(before_user, after_user),
        assistant=(before_answer, after_answer),
        ask=render(system, user, ask=True).removeprefix(asked),
        default=render(user).split(QUESTION)[0].removesuffix(before_user),
    )


def _refused(reason: str) -> ConfigError:
    return ConfigError(
        f"this model's chat template can't be written for Ollama: {reason}",
        "Export as gguf, which contains the template; llama.cpp's server reads it with --jinja.",
    )
