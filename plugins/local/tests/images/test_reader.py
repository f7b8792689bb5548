"""Images as tokens: their ids, positions and embeddings; models that are refused."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from images_helpers import encoded, noise, png, url
from PIL import Image

import art_core as art
from art_core.rl.sequences import TokenSequence
from art_local.images import reader as reading
from art_local.images.reader import FIRST, STRIDE, shown
from art_local.images.support import has_images, image_reader, reading_images
from art_local.models.load import load_model, load_tokenizer
from art_local.models.placement import placement
from art_local.testing.tiny import save_tiny_model
from art_local.testing.tiny_vision import save_tiny_vision_model
from art_local.training.layout import Shape, layout_of

ONE, TWO = url(png(1)), url(png(2))


def loaded(directory):
    return load_model(directory, placement("cpu", "float32"), torch.float32)


@pytest.fixture(scope="session")
def qwen(tmp_path_factory):
    directory = save_tiny_vision_model(tmp_path_factory.mktemp("qwen"), "qwen2_5_vl")
    return loaded(directory), directory, load_tokenizer(directory, None)


@pytest.fixture
def reader(qwen):
    return image_reader(*qwen)


def test_each_image_has_ids_of_its_own(reader):
    (pad,) = {reader.token_id}
    count = len(reader.picture(ONE).places)
    prompt = [5, *[pad] * count, 6, *[pad] * count, 7]
    ids, pictures = reader.own_ids(prompt, [ONE, TWO])
    numbers = [picture.number for picture in pictures]
    own = [[FIRST + n * STRIDE + k for k in range(count)] for n in numbers]
    assert ids == (5, *own[0], 6, *own[1], 7)
    assert reader.own_ids(prompt, [ONE, ONE])[0] == (5, *own[0], 6, *own[0], 7)
    assert reader.own_ids([pad, 5], [])[0] == (pad, 5)  # a placeholder that the model sampled
    with pytest.raises(art.ConfigError, match="the tokens of image 2 of 2 are not in the prompt"):
        reader.own_ids(prompt[: count + 2], [ONE, TWO])


def test_positions_of_an_image_are_its_rows_and_columns(reader):
    wide = url(png(3, width=3 * 28, height=2 * 28))
    picture = reader.picture(wide)
    assert picture.grid == (2, 3)
    ids = (5, 6, *picture.own_pattern, 7)
    assert reader.positions(ids).tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5],
        [0, 1, 2, 2, 2, 3, 3, 3, 5],
        [0, 1, 2, 3, 4, 2, 3, 4, 5],
    ]
    assert reader.shift(ids) == 6 - 9
    assert reader.shift((5, 6)) == 0


def test_a_packed_row_has_the_positions_of_its_sequences(qwen, reader):
    picture = reader.picture(url(png(3, width=3 * 28, height=2 * 28)))
    sequences = [
        (5, *picture.own_pattern, *rest) for rest in ((6,), (7, 8), (9, *picture.own_pattern))
    ]
    prefix = 1 + len(picture.own_pattern)
    row = [*sequences[0][:prefix], *[i for ids in sequences for i in ids[prefix:]]]
    layout = layout_of([Shape(prefix=prefix, segments=tuple(len(s) - prefix for s in sequences))])
    table = qwen[0].get_input_embeddings()
    found = reader.inputs(table, torch.tensor([row]), layout=layout)["position_ids"]
    each = [reader.positions(ids)[:, prefix:] for ids in sequences]
    expected = torch.cat([reader.positions(sequences[0])[:, :prefix], *each], 1)
    assert torch.equal(found[:, 0], expected)


def test_embeddings_are_in_the_places_of_their_image(qwen, reader):
    picture = reader.picture(ONE)
    table = qwen[0].get_input_embeddings()
    ids = torch.tensor([[5, *picture.own_pattern, 6]])
    embeds = reader.inputs(table, ids)["inputs_embeds"][0]
    assert torch.equal(embeds[1:-1], picture.embeddings_KH)
    assert torch.equal(embeds[[0, -1]], table(torch.tensor([5, 6])))
    assert reader.inputs(table, ids[:, :1]) == {"input_ids": ids[:, :1]}


def test_images_of_all_kinds_are_read(reader):
    photo = encoded(noise(1), "MPO", save_all=True, append_images=[noise(2)])
    many = [
        png(1, 1, 1), photo, encoded(noise(1).convert("P"), "PNG"), encoded(noise(1), "WEBP"),
        encoded(noise(1).convert("CMYK"), "JPEG"), encoded(Image.new("RGBA", (30, 20)), "PNG"),
    ]  # fmt: skip
    for data in many:
        picture = reader.picture(url(data))
        assert (len(picture.places), picture.grid) == (1, (1, 1))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            png(1, 1, 3000),
            "the model's processor cannot take an image of 1 x 3000 pixels: absolute",
        ),
        (encoded(noise(1), "PNG", save_all=True, append_images=[noise(2)]), "an image is animated"),
    ],
)
def test_an_image_that_the_model_cannot_take_is_refused(reader, data, reason):
    with pytest.raises(art.ConfigError, match=reason):
        reader.picture(url(data))


def test_only_the_newest_images_are_kept(reader, monkeypatch):
    size = reader.picture(ONE).size
    monkeypatch.setattr(reading, "KEPT_BYTES", 2 * size)
    first = reader.picture(url(png(10)))
    number = first.number
    assert reader.picture(url(png(10))) is first
    del first
    for seed in (11, 12):
        reader.picture(url(png(seed)))
    assert reader.picture(url(png(10))).number > number


def test_sequences_are_shown_with_their_images(reader):
    pattern = reader.picture(ONE).pattern
    sequence = TokenSequence(
        token_ids=(5, *pattern, 6),
        trainable=(False,) * (len(pattern) + 1) + (True,),
        logprobs=(0.0,) * (len(pattern) + 2),
        images=(ONE,),
    )
    with shown(reader, [sequence]) as (found,):
        assert found.token_ids == (5, *reader.picture(ONE).own_pattern, 6)
    with pytest.raises(art.ConfigError, match="trained on text"), shown(None, [sequence]):
        pass
    with shown(None, []) as nothing:
        assert nothing == []


def test_a_model_that_uses_images_otherwise_is_refused(tmp_path):
    directory = save_tiny_vision_model(tmp_path, "qwen3_vl")
    base = loaded(directory)
    found = image_reader(base, directory, load_tokenizer(directory, None))
    assert "uses images beyond the embeddings of their tokens" in found


def test_positions_of_another_kind_are_noticed(qwen, monkeypatch):
    monkeypatch.setattr(
        reading.ImageReader, "positions", lambda _, ids: torch.arange(len(ids)).expand(3, -1)
    )
    assert "its log-probs differ by" in image_reader(*qwen)


def test_a_model_without_a_processor_names_what_is_missing(qwen, tmp_path):
    base, _, tokenizer = qwen
    engine, policy = SimpleNamespace(images_refused=None), SimpleNamespace(images=None)
    assert reading_images(base, tmp_path, tokenizer, policy, engine) is tokenizer
    assert "takes none here (OSError" in engine.images_refused
    assert policy.images is None


def test_without_pillow_the_extra_is_named(qwen, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert image_reader(*qwen) == "images need Pillow: pip install 'art-local[images]'"


def test_a_model_of_text_and_an_engine_for_text_say_so(qwen, tmp_path):
    base = loaded(save_tiny_model(tmp_path))
    assert not has_images(base)
    engine, policy = SimpleNamespace(images_refused=None), SimpleNamespace(images=None)
    reading_images(base, tmp_path, None, policy, engine)
    assert engine.images_refused == "its base model reads text only"
    engine.images_refused = "engine 'vllm' is given texts only here"
    reading_images(qwen[0], qwen[1], qwen[2], policy, engine)
    assert engine.images_refused == "engine 'vllm' is given texts only here"
