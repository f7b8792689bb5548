"""Silence for transformers' own bars and warnings where ours say what happens."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Show no transformers progress bars and nothing below an error inside the block."""
    import transformers.modeling_gguf_pytorch_utils as gguf
    from tqdm.auto import tqdm
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # The reader of GGUF files has a bar of its own, which transformers' switch does not reach.
    gguf.tqdm = partial(tqdm, disable=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        gguf.tqdm = tqdm
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
