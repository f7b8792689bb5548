"""OpenEnv's neutral training traces: turns with token ids, log-probs and masks."""

from __future__ import annotations

from typing import Any

import art_core as art
from art_core.rl.sequences import turns_of


def to_training_trace(trajectory: art.Trajectory) -> Any:
    """Return a trajectory's turns as an `openenv.core.harness.training.TrainingTrace`.

    Each turn's prompt is masked, its completion is trained. Raises ConfigError for a turn without
    token ids.
    """
    from openenv.core.harness.training import TrainingTrace, TrainingTurn

    turns = []
    for number, history in enumerate(trajectory.histories()):
        found, lacking = turns_of(history)
        if lacking:
            raise art.ConfigError(
                f"{lacking} turns of the trajectory have no token ids",
                "A trace needs those of a served model: of a backend, not of an API.",
            )
        for place, turn in enumerate(found):
            mask = [0] * len(turn.prompt_ids) + [1] * len(turn.completion_ids)
            turns.append(
                TrainingTurn(
                    node_id=f"{number}-{place}",
                    prompt_token_ids=list(turn.prompt_ids),
                    completion_token_ids=list(turn.completion_ids),
                    per_token_logps=list(turn.logprobs),
                    loss_mask=mask,
                    metadata={"policy_version": turn.policy_version},
                )
            )
    return TrainingTrace(turns=turns)


def from_training_trace(trace: Any, reward: float) -> art.Trajectory:
    """Return a trace as a trajectory to train on: the tokens of each turn whose mask is set.

    `reward` is the task's, which a trace does not hold. A turn becomes a history of its own, and
    turns that continue each other are joined when they are trained. Raises ConfigError for a mask
    that trains a part of a turn, and for a trace without a turn to train.
    """
    histories = []
    for turn in trace.turns:
        completion = turn.loss_mask[len(turn.prompt_token_ids) :]
        if not any(turn.loss_mask):
            continue
        if any(turn.loss_mask[: len(turn.prompt_token_ids)]) or not all(completion):
            raise art.ConfigError(
                f"the mask of turn {turn.node_id!r} trains a part of its tokens",
                "A turn is trained as a whole: its completion, and not its prompt.",
            )
        histories.append(art.History(messages_and_choices=[*_messages(turn), _choice(turn)]))
    if not histories:
        raise art.ConfigError("the training trace has no turn to train on")
    first, *others = histories
    return art.Trajectory(
        messages_and_choices=first.messages_and_choices,
        additional_histories=others,
        reward=reward,
    )


def _messages(turn: Any) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = turn.request.get("messages") or []
    return messages or [{"role": "user", "content": ""}]


def _choice(turn: Any) -> dict[str, Any]:
    found = turn.response.get("choices") or [{}]
    message = found[0].get("message") or {"role": "assistant", "content": ""}
    entries = [{"token": "", "logprob": value} for value in turn.per_token_logps]
    return {
        "index": 0,
        "finish_reason": found[0].get("finish_reason") or "stop",
        "message": message,
        "prompt_token_ids": list(turn.prompt_token_ids),
        "token_ids": list(turn.completion_token_ids),
        "logprobs": {"content": entries},
        "policy_version": turn.metadata.get("policy_version"),
    }
