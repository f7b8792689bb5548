"""The chat template: a given one, the one of the run's checkpoint, or the base model's own."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from art_core.base.errors import ConfigError

log = logging.getLogger("art_local")
FILE = "chat_template.jinja"
_MESSAGE = "The quick brown fox."


def read_template(given: str | os.PathLike[str] | None) -> str | None:
    """Return the text of a template given as text or as the path of a file.

    Raises ConfigError for a file that can't be read.
    """
    if given is None or (isinstance(given, str) and "{" in given):
        return given
    try:
        return Path(given).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"chat_template={os.fspath(given)!r:.200} is neither a jinja template nor a file with "
            f"one: {error}",
            "Give the template's text, or the path of a file with it.",
        ) from error


def template_for(given: str | None, checkpoint: Path | None) -> str | None:
    """Return the template to use instead of the base model's own: the given one, else the one in
    the run's checkpoint, else None.
    """
    file = checkpoint / FILE if checkpoint else None
    trained = file.read_text(encoding="utf-8") if file and file.is_file() else None
    if given is not None and trained is not None and given != trained:
        log.warning(
            "chat_template is not the one that checkpoint %s was trained with; prompts change from "
            "this step on",
            checkpoint,
        )
    return trained if given is None else given


def load_tokenizer(directory: Path, template: str | None) -> Any:
    """Load a base model's tokenizer, with another chat template if one is given.

    Raises ConfigError if there is no chat template, or it can't render a message.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    if template is not None:
        tokenizer.chat_template = template
    _check(tokenizer, directory)
    return tokenizer


def _check(tokenizer: Any, directory: Path) -> None:
    from jinja2 import TemplateError

    remedy = (
        "Give the backend chat_template=, its text or the path of a jinja file, or train an "
        "instruct model, which comes with one."
    )
    try:
        tokenizer.get_chat_template()
    except ValueError as error:
        raise ConfigError(
            f"base model {directory} has no chat template, so no message can become a prompt",
            remedy,
        ) from error
    try:
        messages = [{"role": "user", "content": _MESSAGE}]
        options = {"tokenize": False, "add_generation_prompt": True}
        prompt = tokenizer.apply_chat_template(messages, **options)
    except (TemplateError, ValueError, TypeError) as error:
        raise ConfigError(
            f"the chat template of base model {directory} can't render a user message: "
            f"{type(error).__name__}: {error}",
            remedy,
        ) from error
    if _MESSAGE not in prompt:
        raise ConfigError(
            f"the chat template of base model {directory} leaves a user message out: its prompt is "
            f"{prompt!r:.200}",
            remedy,
        )
