"""What a model has of the service: a training client, a tokenizer, a context length."""

from __future__ import annotations

from typing import Any

import attrs

from art_core.base.errors import BackendError
from art_tinker.sdk import Connection, settled
from art_tinker.store import Manifest


@attrs.frozen(kw_only=True)
class SeatOptions:
    """What the backend's options say about each of its models (see `TinkerBackend`)."""

    connection: Connection
    lora_rank: int
    seed: int | None
    context_length: int | None
    tokenizer: str | None
    cached_prefill_per_million: float | None
    register_timeout_s: float
    step_timeout_s: float
    request_timeout_s: float


async def training_client(
    service: Any, base_model: str, newest: Manifest | None, options: SeatOptions
) -> Any:
    """Return a training client at a saved state, optimizer included, or a fresh one."""

    def work() -> Any:
        if newest is not None:
            return settled(
                service.create_training_client_from_state_with_optimizer(newest.state_path)
            )
        return settled(
            service.create_lora_training_client(
                base_model=base_model, rank=options.lora_rank, seed=options.seed
            )
        )

    what = f"a training client of {base_model!r}"
    if newest is not None:
        what += f" at step {newest.step} ({newest.state_path})"
    return await options.connection.call(work, options.register_timeout_s, f"making {what}")


async def tokenizer_of(client: Any, options: SeatOptions) -> Any:
    """Return the tokenizer that the service names, or the one of the options."""
    name = options.tokenizer

    def work() -> Any:
        if name is None:
            return client.get_tokenizer()
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(name)

    try:
        return await options.connection.call(
            work, options.register_timeout_s, "loading the tokenizer"
        )
    except BackendError as error:
        raise BackendError(
            str(error), "Give tokenizer=, a directory or a hub id, where the hub is out of reach."
        ) from error


def context_length(options: SeatOptions, said: int | None, tokenizer: Any) -> int:
    """Return the context length of the options, else what the service says, else the tokenizer."""
    of_tokenizer = getattr(tokenizer, "model_max_length", None)
    known = of_tokenizer if of_tokenizer and of_tokenizer < 10**7 else 32_768
    return options.context_length or said or int(known)
