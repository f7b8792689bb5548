"""Whether a base model reads images here: by its processor, and by a trial of its log-probs."""

from __future__ import annotations

import importlib.util
import inspect
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from art_core.base.errors import ArtError
from art_core.base.files import read_json
from art_local.engine.protocol import LocalEngine
from art_local.images.files import opened
from art_local.images.reader import ImageReader
from art_local.images.tokenizer import with_reader
from art_local.models.device_memory import is_out_of_memory
from art_local.models.load import silence_logs
from art_local.training.policy import Policy

TEXT_ONLY = "its base model reads text only"
SIZES = ((96, 64), (40, 56))
"""Width and height of the images of the trial."""
TOLERANCE, TOLERANCE_16_BIT = 1e-3, 0.25


def reading_images(
    base: Any, directory: Path, tokenizer: Any, policy: Policy, engine: LocalEngine
) -> Any:
    """Let engine and policy read images, if the model does; return the tokenizer for messages with
    images. `engine.images_refused` states the reason if they do not.
    """
    if not has_images(base):
        engine.images_refused = TEXT_ONLY
    if engine.images_refused is not None:
        return tokenizer
    reader = image_reader(base, directory, tokenizer)
    if isinstance(reader, str):
        engine.images_refused = reader
        return tokenizer
    policy.images = reader
    engine.read_images(reader)
    return with_reader(tokenizer, reader)


def has_images(base: Any) -> bool:
    """Return whether a base model has a token for images, and a part that reads them."""
    return _token_id(base) is not None and hasattr(base, "get_image_features")


def _token_id(base: Any) -> int | None:
    named = (getattr(base.config, f"image_token_{end}", None) for end in ("id", "index"))
    return next((token_id for token_id in named if token_id is not None), None)


def image_reader(base: Any, directory: Path, tokenizer: Any) -> ImageReader | str:
    """Return the reader of a base model's images, or the reason why there is none.

    A model reads images if embeddings in place of tokens give its own log-probs: its image tokens
    then are seen as other tokens are. Log-probs of a text with two images are compared.
    """
    token_id = _token_id(base)
    if token_id is None:
        return TEXT_ONLY
    if importlib.util.find_spec("PIL") is None:
        return "images need Pillow: pip install 'art-local[images]'"
    try:
        reader = ImageReader(base, _processor(directory, tokenizer), tokenizer, token_id)
        apart = _apart(base, reader)
    except Exception as error:  # of a model's own code, which may lack anything
        if is_out_of_memory(error) and not isinstance(error, ArtError):
            raise
        reason = " ".join(str(error).split())[:300]
        return f"{type(base).__name__} takes none here ({type(error).__name__}: {reason})"
    allowed = TOLERANCE if base.dtype == torch.float32 else TOLERANCE_16_BIT
    if apart <= allowed:
        return reader
    return (
        f"{type(base).__name__} uses images beyond the embeddings of their tokens (its log-probs "
        f"differ by {apart:.3g}), which is not supported"
    )


def _processor(directory: Path, tokenizer: Any) -> Any:
    """Return a processor of texts with images, or one of images if these have grids.

    Whole processors of Qwen and SmolVLM are for videos, too, and need torchvision.
    """
    from transformers import AutoImageProcessor, AutoProcessor, Idefics3Processor

    with silence_logs():
        of_images = AutoImageProcessor.from_pretrained(directory, local_files_only=True)
        if "image_grid_thw" in of_images.model_input_names:
            return of_images
        if type(of_images).__name__.startswith("SmolVLM"):  # whose images are Idefics 3's
            length = read_json(directory / "processor_config.json").get("image_seq_len", 169)
            plain = getattr(tokenizer, "plain", tokenizer)
            return Idefics3Processor(of_images, plain, image_seq_len=length)
        return AutoProcessor.from_pretrained(directory, local_files_only=True)


@torch.no_grad()
def _apart(base: Any, reader: ImageReader) -> float:
    """Return the mean distance in nats of log-probs with embeddings from the model's own."""
    urls = [_example(*size) for size in SIZES]
    text = f"One {reader.placeholder} and two {reader.placeholder} are images."
    made = dict(reader.processed(text, [opened(url) for url in urls]))
    device, ids_1S = base.device, made["input_ids"]
    if "mm_token_type_ids" not in made:
        made["mm_token_type_ids"] = (ids_1S == reader.token_id).int()
    given = {
        name: value.to(device, base.dtype if value.is_floating_point() else None)
        for name, value in made.items()
        if isinstance(value, torch.Tensor)
    }
    own, _pictures = reader.own_ids(ids_1S[0].tolist(), urls)
    own_1S = torch.tensor([own], device=device)
    theirs = base(**_accepted(base, given), use_cache=False).logits[0].float()
    inputs = reader.inputs(base.get_input_embeddings(), own_1S)
    ours = base(**inputs, use_cache=False).logits[0].float()
    return float((ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().mean())


def _accepted(base: Any, given: dict[str, Any]) -> dict[str, Any]:
    known = inspect.signature(base.forward).parameters
    return {name: value for name, value in given.items() if name in known}


def _example(width: int, height: int) -> str:
    from PIL import Image

    data = bytes((7 * n * n + n) % 256 for n in range(width * height * 3))
    file = BytesIO()
    Image.frombytes("RGB", (width, height), data).save(file, "PNG")
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"
