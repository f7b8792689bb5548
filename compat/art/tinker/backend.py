"""Models trained and sampled at Tinker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from art._options import tinker_options
from art.backend import Backend

if TYPE_CHECKING:
    from art.model import TrainableModel


class TinkerBackend(Backend):
    """Trains and samples at Tinker. Any other option is one of `art backends tinker`.

    The renderer of `_internal_config` is not read: the tokenizer's chat template renders.
    """

    ours = "tinker"

    def __init__(
        self,
        *,
        tinker_api_key: str | None = None,
        in_process: bool = False,
        path: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(path=path, api_key=tinker_api_key, **options)

    def options_of(self, model: TrainableModel) -> dict[str, Any]:
        """Return the rank and the seed of a model's adapter."""
        return tinker_options(model.internal_config)
