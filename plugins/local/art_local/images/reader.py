"""Images as tokens: what a processor makes of them, and the embeddings of these tokens.

In prompts an image is a pattern of token ids, with a placeholder for each of its embeddings. Inside
the engine and the trainer each placeholder has an id of its own (`own_ids`), which stands for one
embedding of one image. So sequences share a prefix only if their images are the same.

Shapes: B rows, S tokens, H hidden size, K embeddings of an image.
"""

from __future__ import annotations

import inspect
import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import attrs
import torch
from torch import Tensor, nn

from art_core.base.errors import ConfigError
from art_core.base.images import image_digest
from art_core.rl.batch import no_images
from art_core.rl.sequences import TokenSequence
from art_local.images.files import opened
from art_local.training.layout import Layout

FIRST = 1 << 40
"""The first id of an embedding of an image; ids of tokens are less."""
STRIDE = 1 << 20
"""Ids that each image has."""
KEPT_BYTES = 512 << 20
"""What is kept of the newest images: pixels, or embeddings once they are computed."""


@attrs.define(eq=False, kw_only=True)
class Picture:
    """An image: its tokens in a prompt as `text` and as ids (`pattern`), and the places of its K
    placeholders in them. `grid` are the rows and columns of its embeddings, for rotary positions of
    three dimensions. `inputs` are the pixels for the vision tower, until `embeddings_KH` is there.
    """

    number: int
    text: str
    pattern: tuple[int, ...]
    places: tuple[int, ...]
    grid: tuple[int, int] | None
    inputs: dict[str, Tensor]
    embeddings_KH: Tensor | None = None

    @property
    def own_pattern(self) -> tuple[int, ...]:
        """The pattern, with the ids of the embeddings in place of the placeholders."""
        ids = list(self.pattern)
        for number, place in enumerate(self.places):
            ids[place] = FIRST + self.number * STRIDE + number
        return tuple(ids)

    @property
    def size(self) -> int:
        """Bytes held."""
        tensors = [*self.inputs.values(), self.embeddings_KH]
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)


@contextmanager
def shown(
    reader: ImageReader | None, sequences: Sequence[TokenSequence]
) -> Iterator[Sequence[TokenSequence]]:
    """Yield training sequences whose images have their own ids, which are valid in the block.
    ConfigError for images without a reader.
    """
    if reader is None:
        if any(sequence.images for sequence in sequences):
            raise no_images()
        yield sequences
        return
    pairs = [reader.own_ids(s.token_ids, s.images) for s in sequences]
    yield [attrs.evolve(s, token_ids=ids) for s, (ids, _) in zip(sequences, pairs, strict=True)]
    pairs.clear()


class ImageReader:
    """Reads images for one base model, whose vision tower is never trained. Safe under threads.

    `processor` makes pixels and patterns; of one that makes a grid only its image processor is
    needed. `placeholder` is the token's text and `token_id` its id.
    """

    def __init__(self, base: Any, processor: Any, tokenizer: Any, token_id: int) -> None:
        self._base, self._processor, self._tokenizer = base, processor, tokenizer
        self.token_id = token_id
        self.placeholder: str = tokenizer.decode([token_id], skip_special_tokens=False)
        self._kept: OrderedDict[str, Picture] = OrderedDict()
        self._live: WeakValueDictionary[int, Picture] = WeakValueDictionary()
        self._numbers = itertools.count()
        self._lock = threading.RLock()
        parameters = inspect.signature(base.get_image_features).parameters
        self._parameters = {n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
        rotary = getattr(base.config.get_text_config(), "rope_parameters", None) or {}
        self._has_grid = "mrope_section" in rotary

    def picture(self, url: str) -> Picture:
        """Return the picture of a data URL; ConfigError for one that cannot be read."""
        digest = image_digest(url)
        with self._lock:
            found = self._kept.pop(digest, None)
        found = found or self._new(url)
        with self._lock:
            # of two that were made at the same time, the first one stays
            found = self._kept[digest] = self._kept.pop(digest, found)
            self._live[found.number] = found
            while len(self._kept) > 1 and sum(p.size for p in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        return found

    def _new(self, url: str) -> Picture:
        image = opened(url)
        try:
            made = self.processed(self.placeholder, [image])
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            width, height = image.size
            raise ConfigError(
                f"the model's processor cannot take an image of {width} x {height} pixels: {error}"
            ) from error
        pattern = tuple(made["input_ids"][0].tolist())
        text = self._tokenizer.decode(list(pattern), skip_special_tokens=False)
        if tuple(self._tokenizer.encode(text, add_special_tokens=False)) != pattern:
            raise ConfigError("the tokens of an image are not those of their text")
        places = tuple(place for place, token in enumerate(pattern) if token == self.token_id)
        inputs = {n: v for n, v in made.items() if n in self._parameters}
        grid = made["image_grid_thw"][0].tolist() if "image_grid_thw" in made else None
        merge = getattr(self._base.config.vision_config, "spatial_merge_size", 1)
        return Picture(
            number=next(self._numbers),
            text=text,
            pattern=pattern,
            places=places,
            grid=(grid[1] // merge, grid[2] // merge) if grid and self._has_grid else None,
            inputs=inputs,
        )

    def processed(self, text: str, images: Sequence[Any]) -> Mapping[str, Any]:
        """Return the inputs of the model for a text with placeholders, and its images."""
        if hasattr(self._processor, "tokenizer"):
            made: Mapping[str, Any] = self._processor(
                text=[text], images=[list(images)], return_tensors="pt", add_special_tokens=False
            )
            return made
        pixels = self._processor(images=list(images), return_tensors="pt")
        merge = self._processor.merge_size**2
        counts = [int(grid.prod()) // merge for grid in pixels["image_grid_thw"]]
        first, *rest = text.split(self.placeholder)
        parts = [self.placeholder * n + part for n, part in zip(counts, rest, strict=True)]
        ids = self._tokenizer.encode(first + "".join(parts), add_special_tokens=False)
        return {**pixels, "input_ids": torch.tensor([ids])}

    def expanded(self, text: str, urls: Sequence[str]) -> str:
        """Return a rendered prompt in which each image has all its tokens; ConfigError if it has
        not one placeholder for each image.
        """
        first, *rest = text.split(self.placeholder)
        if len(rest) != len(urls):
            raise ConfigError(
                f"the rendered prompt has the token {self.placeholder!r} {len(rest)} times, and "
                f"the messages have {len(urls)} images",
                "The chat template may have no place for images in messages of this role (send "
                "them in the user's), or a text has that token.",
            )
        texts = [self.picture(url).text for url in urls]
        return first + "".join(text + part for text, part in zip(texts, rest, strict=True))

    def own_ids(
        self, ids: Sequence[int], urls: Sequence[str]
    ) -> tuple[tuple[int, ...], list[Picture]]:
        """Return token ids in which the images have their own ids, and their pictures, which must
        be kept as long as these ids are used. ConfigError if an image's tokens are missing.
        """
        pictures = [self.picture(url) for url in urls]
        found, at = list(ids), 0
        for number, picture in enumerate(pictures):
            length = len(picture.pattern)
            ends = len(found) - length + 1
            starts = (s for s in range(at, ends) if found[s] == picture.pattern[0])
            matches = (s for s in starts if tuple(found[s : s + length]) == picture.pattern)
            start = next(matches, None)
            if start is None:
                raise ConfigError(
                    f"the tokens of image {number + 1} of {len(pictures)} are not in the prompt",
                    "The image was processed otherwise when the prompt was made: train it with the "
                    "base model and the versions that sampled it.",
                )
            found[start : start + length] = picture.own_pattern
            at = start + length
        return tuple(found), pictures

    def inputs(
        self, table: nn.Module, ids_BS: Tensor, *, layout: Layout | None = None
    ) -> dict[str, Any]:
        """Return the inputs of a forward pass over rows: ids or, with images, embeddings by the
        model's `table` and, if the model needs them, positions [3, B, S]. With a `layout` the rows
        are one packed row.
        """
        is_image_BS = ids_BS >= FIRST
        if not bool(is_image_BS.any()):
            return {"input_ids": ids_BS}
        embeds_BSH = table(ids_BS.where(~is_image_BS, 0))
        rows_N = ids_BS[is_image_BS] - FIRST
        numbers, places_N = rows_N // STRIDE, rows_N % STRIDE
        found_NH = embeds_BSH.new_empty((len(rows_N), embeds_BSH.shape[-1]))
        for number in numbers.unique().tolist():
            here_N = numbers == number
            found_NH[here_N] = self._embeddings(self._live[number]).to(found_NH)[places_N[here_N]]
        embeds_BSH = embeds_BSH.masked_scatter(is_image_BS[..., None], found_NH)
        found: dict[str, Any] = {"inputs_embeds": embeds_BSH}
        if self._has_grid and layout is not None:
            found["position_ids"] = self._packed_positions(ids_BS[0], layout)[:, None]
        elif self._has_grid:
            rows = [self.positions(ids.tolist()) for ids in ids_BS]
            found["position_ids"] = torch.stack(rows, 1).to(ids_BS.device)
        return found

    def _packed_positions(self, ids_S: Tensor, layout: Layout) -> Tensor:
        """Return the positions [3, S] of a packed row: of each segment after its prefix."""
        found_3S = ids_S.new_empty((3, len(ids_S)))
        for number in layout.segments_S.unique().tolist():
            own_S = layout.segments_S == number
            prefix = layout.prefixes_S[own_S][0]
            whole_S = own_S | (layout.segments_S == prefix)  # a prefix comes before its segments
            positions = self.positions(ids_S[whole_S].tolist()).to(ids_S.device)
            found_3S[:, own_S] = positions[:, -int(own_S.sum()) :]
        return found_3S

    def positions(self, ids: Sequence[int]) -> Tensor:
        """Return the rotary positions [3, S] of a sequence: of time, rows and columns. An image's
        embeddings have one time, and what follows begins after its longer side.
        """
        parts, at, next_position = [], 0, 0
        while at < len(ids):
            if ids[at] >= FIRST:
                picture = self._live[(ids[at] - FIRST) // STRIDE]
                assert picture.grid is not None
                rows, columns = picture.grid
                grid = torch.cartesian_prod(
                    torch.arange(1), torch.arange(rows), torch.arange(columns)
                )
                parts.append(grid.T + next_position)
                at, next_position = at + len(grid), next_position + max(picture.grid)
            else:
                end = next((e for e in range(at, len(ids)) if ids[e] >= FIRST), len(ids))
                parts.append((torch.arange(end - at) + next_position).expand(3, -1))
                at, next_position = end, next_position + end - at
        return torch.cat(parts, 1)

    def shift(self, ids: Sequence[int]) -> int:
        """Return by how much the position after a sequence differs from its length."""
        if not self._has_grid or not any(token >= FIRST for token in ids):
            return 0
        return int(self.positions(ids).max()) + 1 - len(ids)

    def _embeddings(self, picture: Picture) -> Tensor:
        with self._lock:
            if picture.embeddings_KH is None:
                picture.embeddings_KH = self._computed(picture)
                picture.inputs = {}
            return picture.embeddings_KH

    def _computed(self, picture: Picture) -> Tensor:
        parameter = next(self._base.parameters())
        inputs = {
            name: value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)
            for name, value in picture.inputs.items()
        }
        # tensors of inference mode, in which the engine computes, could not be trained on
        with torch.inference_mode(mode=False), torch.no_grad():
            output = self._base.get_image_features(**inputs)
        found = getattr(output, "pooler_output", output)
        parts = [found] if isinstance(found, Tensor) else found
        embeddings_KH = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
        if len(embeddings_KH) != len(picture.places):
            raise ConfigError(
                f"an image has {len(picture.places)} tokens and {len(embeddings_KH)} embeddings"
            )
        return embeddings_KH
