"""The images of turns: a choice has their digests, the messages of its conversation the images."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from art_core.base.errors import ConfigError
from art_core.base.images import image_digest, image_urls
from art_core.data.trajectory import ChoiceTokens, History, message_of


def with_images(turns: Sequence[ChoiceTokens], history: History) -> list[ChoiceTokens]:
    """Return turns that have the data URLs of their images in place of the digests; ConfigError if
    a prompt had an image that its conversation does not have.
    """
    wanted = {digest for turn in turns for digest in turn.images}
    if not wanted:
        return list(turns)
    messages = map(message_of, history.messages_and_choices)
    known = {image_digest(url): url for message in messages for url in image_urls(message)}
    if missing := wanted - known.keys():
        raise ConfigError(
            f"{len(missing)} images of a prompt are not in the messages of their conversation",
            "Keep the messages that were sent to the model in the trajectory, with their images.",
        )
    return [attrs.evolve(turn, images=tuple(known[d] for d in turn.images)) for turn in turns]
