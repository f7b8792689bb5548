"""Trajectories with images on disk, and the images of their turns."""

import pytest

import art_core as art
from art_core.base.errors import ConfigError
from art_core.base.images import data_url, image_digest
from art_core.data.images import with_images
from art_core.data.store import (
    append_groups,
    move_groups,
    read_groups,
    set_earlier_aside,
    trajectory_file,
)
from art_core.data.trajectory import tokens_of

URL, OTHER = data_url("image/png", b"one" * 1000), data_url("image/png", b"two" * 1000)


def shows(url):
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}


def choice(*urls):
    return {
        "message": {"role": "assistant", "content": "yes"},
        "finish_reason": "stop",
        "prompt_token_ids": [1],
        "prompt_images": [image_digest(url) for url in urls],
        "token_ids": [7],
        "logprobs": {"content": [{"logprob": -0.25}]},
    }


def group(*urls):
    items = [item for n, url in enumerate(urls) for item in (shows(url), choice(*urls[: n + 1]))]
    more = [art.History(messages_and_choices=[shows(urls[0]), choice(urls[0])])]
    made = art.Trajectory(messages_and_choices=items, additional_histories=more)
    return art.TrajectoryGroup([made, made])


def test_images_are_beside_the_groups_once_and_come_back(tmp_path):
    path = trajectory_file(tmp_path, "train", 1)
    for _ in range(5):
        append_groups(path, [group(URL, OTHER)])
    images = path.parent / "images"
    assert len([*images.iterdir()]) == 2
    assert path.stat().st_size < 5 * 6000  # the images are 8,000 bytes a group
    for found in read_groups(path):
        made = found.trajectories[0]
        assert made.messages() == group(URL, OTHER).trajectories[0].messages()
        assert made.additional_histories[0].messages()[0] == shows(URL)
        digests = image_digest(URL), image_digest(OTHER)
        assert tokens_of(made.messages_and_choices[3]).images == digests


def test_groups_that_move_keep_their_images(tmp_path):
    first, second = (trajectory_file(tmp_path, "train", step) for step in (1, 2))
    append_groups(first, [group(OTHER)])
    moved = [group(URL)]
    append_groups(first, moved)
    assert move_groups(moved, first, second) == 0
    append_groups(first, [group(URL)])
    set_earlier_aside(first, len(first.read_bytes().splitlines(keepends=True)[0]))
    for path, url in (
        (second, URL), (first, URL), (first.parent / "earlier" / first.name, OTHER),
    ):  # fmt: skip
        (found,) = read_groups(path)
        assert found.trajectories[0].messages()[0] == shows(url)


def test_without_tokens_the_digests_are_left_out():
    stored = group(URL).to_dict(tokens=False)["trajectories"][0]["messages_and_choices"]
    assert stored[0] == shows(URL)
    assert "prompt_images" not in stored[1]


def test_turns_get_the_images_of_their_conversation():
    history = group(URL, OTHER).trajectories[0].histories()[0]
    turns = [tokens_of(item) for item in history.messages_and_choices[1::2]]
    assert [turn.images for turn in with_images(turns, history)] == [(URL,), (URL, OTHER)]
    cut = art.History(messages_and_choices=history.messages_and_choices[1:])
    with pytest.raises(ConfigError, match="1 images of a prompt are not in the messages"):
        with_images(turns, cut)
