"""RULER with ART's arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import art_core
from art.trajectories import TrajectoryGroup
from art_core import Judge

__all__ = ["ruler", "ruler_score_group"]


def _judge(judge_model: Any, extra_litellm_params: Mapping[str, Any] | None) -> Any:
    """Return the judge, which asks with the further parameters."""
    if not extra_litellm_params:
        return judge_model
    return Judge(model=judge_model, options=dict(extra_litellm_params))


async def ruler(
    message_lists: list[list[Any]],
    judge_model: Any = "openai/o3",
    extra_litellm_params: Mapping[str, Any] | None = None,
    rubric: str | None = None,
    tools: Iterable[Any] | None = None,
    *,
    debug: bool = False,
) -> list[Any]:
    """Return a judge's scores of conversations, in their order."""
    given: Any = {} if rubric is None else {"rubric": rubric}
    scores = await art_core.ruler(
        message_lists,
        _judge(judge_model, extra_litellm_params),
        tools=None if tools is None else list(tools),
        **given,
    )
    if debug:
        print(*scores, sep="\n")  # noqa: T201  it is asked for
    return scores


async def ruler_score_group(
    group: TrajectoryGroup,
    judge_model: Any = "openai/o3",
    extra_litellm_params: Mapping[str, Any] | None = None,
    rubric: str | None = None,
    *,
    swallow_exceptions: bool = False,
    debug: bool = False,
) -> TrajectoryGroup | None:
    """Return the group with a judge's scores as rewards, also in the metric `ruler_score`.

    None for a group that could not be judged, if `swallow_exceptions`.
    """
    given: Any = {} if rubric is None else {"rubric": rubric}
    judged = await art_core.ruler_score_group(
        group,
        _judge(judge_model, extra_litellm_params),
        swallow_exceptions=swallow_exceptions,
        **given,
    )
    if judged is None:
        return None
    for trajectory in judged:
        trajectory.metrics["ruler_score"] = trajectory.reward
        if debug:
            print(trajectory.logs[-1:])  # noqa: T201  it is asked for
    return TrajectoryGroup.of(judged)
