"""Images in chat messages: their data URLs, and the files in which stored messages keep them.

A file is named by the SHA-256 digest of its bytes, so an image that many messages hold is stored
once.
"""

from __future__ import annotations

import binascii
import hashlib
import logging
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from art_core.base.files import replace_bytes

log = logging.getLogger("art_core")

KINDS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
"""The media types of images, and how the names of their files end."""
PART = "image_url"
FILE = "art-image:"
"""With the name of a file, the URL of an image in stored messages."""


def data_url(kind: str, data: bytes) -> str:
    """Return the data URL of an image of a media type."""
    return f"data:{kind};base64,{b64encode(data).decode()}"


def image_bytes(url: str) -> bytes | None:
    """Return the bytes of a data URL; None for any other URL, or a kind of image not known."""
    kind, comma, text = url.partition(";base64,")
    if not comma or kind.removeprefix("data:") not in KINDS or not kind.startswith("data:"):
        return None
    try:
        return b64decode(text, validate=True) or None
    except (binascii.Error, ValueError):
        return None


def image_digest(url: str) -> str:
    """Return the hexadecimal SHA-256 digest of an image's bytes, or of the URL of none."""
    found = image_bytes(url)
    return hashlib.sha256(url.encode() if found is None else found).hexdigest()


def url_of(part: Any) -> str | None:
    """Return the URL of a content part that is an image, in the form of OpenAI; None of others."""
    if not isinstance(part, Mapping) or part.get("type") != PART:
        return None
    given = part.get(PART)
    url = given.get("url") if isinstance(given, Mapping) else given
    return url if isinstance(url, str) else None


def image_urls(message: Mapping[str, Any]) -> Iterator[str]:
    """Yield the URLs of a message's images, in order."""
    content = message.get("content")
    for part in content if isinstance(content, list) else ():
        url = url_of(part)
        if url is not None:
            yield url


def with_images_in_files(message: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a message whose images are in files of a folder, which is made if there are some."""
    return _changed(message, partial(_filed, folder=folder))


def reader_of_images(folder: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function that puts images of a folder's files back into a message. An image whose
    file is missing keeps its name, with a warning.
    """
    return partial(_changed, change=cache(partial(_read, folder=folder)))


def _changed(message: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    if not any(image_urls(message)):
        return message
    return {**message, "content": [_part(part, change) for part in message["content"]]}


def _part(part: Any, change: Callable[[str], str]) -> Any:
    url = url_of(part)
    if url is None:
        return part
    given = part[PART]
    return {**part, PART: {**given, "url": change(url)} if isinstance(given, Mapping) else {
        "url": change(url)
    }}  # fmt: skip


def _filed(url: str, folder: Path) -> str:
    data = image_bytes(url)
    if data is None:
        return url
    kind = url[len("data:") :].partition(";")[0]
    file = folder / f"{image_digest(url)}.{KINDS[kind]}"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        replace_bytes(file, data)
    return FILE + file.name


def _read(url: str, folder: Path) -> str:
    if not url.startswith(FILE):
        return url
    file = folder / Path(url.removeprefix(FILE)).name
    kinds = {end: kind for kind, end in KINDS.items()}
    try:
        return data_url(kinds[file.suffix[1:]], file.read_bytes())
    except (OSError, KeyError):
        log.warning("%s is missing: a stored message has an image without its bytes", file)
        return url
