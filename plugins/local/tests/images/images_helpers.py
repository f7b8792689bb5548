"""Images for tests."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO

import numpy as np
from PIL import Image


def noise(seed: int, width: int = 40, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(seed: int, width: int = 40, height: int = 40) -> bytes:
    return encoded(noise(seed, width, height), "PNG")


def jpeg(seed: int) -> bytes:
    return encoded(noise(seed), "JPEG")


def black(width: int, height: int) -> bytes:
    """A large image in a small file."""
    return encoded(Image.new("1", (width, height)), "PNG")


def gif() -> bytes:
    """An animated image."""
    return encoded(noise(1), "GIF", save_all=True, append_images=[noise(2)])


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{b64encode(data).decode()}"


def shows(*seeds: int, text: str = "What is it?", **size: int) -> dict[str, object]:
    """A message of the user with images."""
    images = [{"type": "image_url", "image_url": {"url": url(png(s, **size))}} for s in seeds]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}
