"""The public name of `art_core.base.errors`, for plugins."""

from art_core.base.errors import *  # noqa: F403
