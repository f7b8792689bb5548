"""Images of data URLs, opened with limits."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

from art_core.base.errors import ConfigError
from art_core.base.images import image_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_BYTES = 20 << 20
MAX_PIXELS = 1 << 24
FORMATS = ("PNG", "JPEG", "WEBP")
REMEDY = "Send one PNG, JPEG or WebP image."


def opened(url: str) -> Image:
    """Return the image of a data URL, as RGB; ConfigError for one that is broken or too large. The
    size is checked before anything is decompressed.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    data = image_bytes(url)
    if data is None:
        raise ConfigError(f"not an image's data URL: {url[:60]!r}", REMEDY)
    if len(data) > MAX_BYTES:
        raise ConfigError(f"an image has {len(data):,} bytes, and {MAX_BYTES:,} are read", REMEDY)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check(image)
            image.load()
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError as error:
        reason = f"{len(data):,} bytes are sent as an image, and are no image"
        raise ConfigError(reason, REMEDY) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ConfigError(f"an image is too large: {error}", _smaller()) from error
    except ConfigError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ConfigError(f"an image cannot be decoded: {error}", REMEDY) from error


def _check(image: Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ConfigError(f"an image has {width} x {height} pixels", _smaller())
    # photos of some cameras have a preview as a second frame
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise ConfigError("an image is animated", REMEDY)


def _smaller() -> str:
    return f"Send it with at most {MAX_PIXELS:,} pixels."
