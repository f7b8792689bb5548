"""Dollars of signal: what each dollar of a row bought, a lesson or one of several kinds of waste.

The parts are metrics under `signal/`, beside the tree of costs and not in it. They sum to the row's
`costs/all` exactly; `signal/cum/...` are their sums over the run.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterable, Mapping, Sequence

import attrs

from art_core.base.errors import ConfigError
from art_core.base.numbers import has_spread
from art_core.data.account import Account
from art_core.data.trajectory import ChoiceTokens, Trajectory, TrajectoryGroup
from art_core.metrics.rollup import Draft
from art_core.metrics.summarize import GroupsOfRow
from art_core.rl.config import TrainConfig
from art_core.rl.credit import step_credit
from art_core.rl.sequences import turns_of

log = logging.getLogger("art_core")

LEARNED = "learned"
EVALUATION = "evaluation"
OTHER = "other"
NO_SPREAD, TRUNCATED, FAILED, STALE, MASKED, PREFIX_BREAKS = WASTES = (
    "wasted/no_spread",
    "wasted/truncated",
    "wasted/failed",
    "wasted/stale",
    "wasted/masked",
    "wasted/prefix_breaks",
)
PARTS = (LEARNED, *WASTES, EVALUATION, OTHER)
_KEYS = {part: (f"signal/{part}", f"signal/cum/{part}") for part in PARTS}

Parts = dict[str, float]
"""US dollars, or tokens, of each part."""


@attrs.frozen
class _Attempt:
    """The tokens of an attempt: sampled and read in the rollout, and trained, by what they bought.

    `sampled` is empty where the endpoint sent no tokens, and where the attempt failed (`failed`).
    """

    group: int
    account: Account | None
    sampled: Parts
    trained: Parts
    failed: bool = False


def with_signal(
    draft: Draft,
    split: str,
    groups: GroupsOfRow,
    config: TrainConfig | None = None,
    eval_seconds: float = 0.0,
) -> Draft:
    """Add the parts of a row's dollars to its draft. A row without costs gets none.

    `config` are the options of the step that trained the groups, `eval_seconds` those of
    evaluations since the last train row. A part stands in the row if it has dollars, and in the row
    of a step that trained also if it had some earlier in the run.
    """
    usd = draft.metrics.get("costs/all", 0.0)
    if not usd:
        return draft
    try:
        parts = _exact(_divided(draft, split, groups, config, eval_seconds), usd)
    except ConfigError as error:  # the step is trained, so its row is written
        log.warning("the row's dollars are not divided: %s", error)
        parts = {OTHER: usd}
    metrics, totals = draft.metrics, draft.totals
    if groups.trained:
        parts |= {p: 0.0 for p, (_, total) in _KEYS.items() if p not in parts and total in totals}
    for part, own in parts.items():
        key, total = _KEYS[part]
        metrics[key] = own
        metrics[total] = totals[total] = min(totals.get(total, 0.0) + own, sys.float_info.max)
    return draft


def _exact(parts: Mapping[str, float], usd: float) -> Parts:
    """Return the parts that are not 0, as multiples of the last digit of `usd` that sum to it, in
    any order: the largest one has what rounding leaves.
    """
    digit = math.ulp(usd)
    counts = {part: round(value / digit) for part, value in parts.items() if value > 0} or {
        OTHER: 0
    }
    counts[max(counts, key=counts.__getitem__)] += round(usd / digit) - sum(counts.values())
    return {part: count * digit for part, count in counts.items() if count}


def _divided(
    draft: Draft,
    split: str,
    groups: GroupsOfRow,
    config: TrainConfig | None,
    eval_seconds: float,
) -> Parts:
    metrics = draft.metrics
    evaluation, device = metrics.get("costs/eval", 0.0), metrics.get("costs/gpu", 0.0)
    rest = metrics["costs/all"] - evaluation - device
    if split != "train":
        return {EVALUATION: evaluation + device, OTHER: rest}
    if not groups.trained or not groups.all:
        return {EVALUATION: evaluation, LEARNED if groups.trained else OTHER: rest + device}
    training = sum(
        metrics[leaf] for leaf in draft.plan.costs if leaf.endswith(("/train", "_train"))
    )
    rollouts = rest - training
    seconds = (
        metrics.get("time/step_trainer_s", 0.0),
        metrics.get("time/step_actor_s", 0.0),
        eval_seconds,
    )
    if any(seconds):
        shares = [device * each / sum(seconds) for each in seconds]
        training, rollouts, evaluation = (
            training + shares[0],
            rollouts + shares[1],
            evaluation + shares[2],
        )
    else:
        rollouts += device
    attempts = _attempts(groups.all, config or TrainConfig(), metrics)
    weighed = _weighed(attempts, len(groups.all))
    trained = _sum(attempt.trained for attempt in attempts) or _sum(weighed)
    paid = _paid_parts(rollouts, attempts, weighed, groups)
    sampled = _sum(weighed)
    stale = metrics.get("pipeline/step_num_groups_stale", 0.0)
    sampled[STALE] = stale * _total(sampled) / len(groups.all)
    unpaid = _scaled(sampled, rollouts - _total(paid))
    return _sum([paid, unpaid, _scaled(trained, training), {EVALUATION: evaluation}])


def _paid_parts(
    usd: float, attempts: Sequence[_Attempt], weighed: Sequence[Parts], groups: GroupsOfRow
) -> Parts:
    """Divide the dollars of paid calls, at most `usd`, among the attempts of their account."""
    accounts = {account for group in groups.new for account in group.accounts()}
    paid = math.fsum(account.usd for account in accounts)
    scale = min(1.0, usd / paid) if paid else 0.0
    return _sum(
        _scaled(
            _sum(w for a, w in zip(attempts, weighed, strict=True) if a.account is account),
            account.usd * scale,
        )
        for account in accounts
    )


def _weighed(attempts: Sequence[_Attempt], groups: int) -> list[Parts]:
    """Return the tokens of each attempt; one without tokens has as many as the mean of its group,
    else of the step, else 1.
    """
    of_group: list[list[float]] = [[] for _ in range(groups)]
    for attempt in attempts:
        if _total(attempt.sampled):
            of_group[attempt.group].append(_total(attempt.sampled))
    everything = [tokens for each in of_group for tokens in each] or [1.0]
    means = [math.fsum(own) / len(own) for own in (own or everything for own in of_group)]
    return [
        attempt.sampled
        if _total(attempt.sampled)
        else {FAILED if attempt.failed else next(iter(attempt.sampled)): means[attempt.group]}
        for attempt in attempts
    ]


def _attempts(
    groups: Sequence[TrajectoryGroup], config: TrainConfig, metrics: Mapping[str, float]
) -> list[_Attempt]:
    """Return what became of each attempt, the failed ones included."""
    masked = _masked_share(config, metrics)
    found = []
    for place, (group, teaches) in enumerate(zip(groups, teaching(groups, config), strict=True)):
        for trajectory in group:
            sampled, trained = _tokens_by_part(trajectory, config, teaches=teaches)
            account = trajectory.account or group.account
            found.append(_Attempt(place, account, _mask(sampled, masked), _mask(trained, masked)))
        found += [_Attempt(place, group.account, {}, {}, failed=True) for _ in group.failures]
    return found


def teaching(groups: Sequence[TrajectoryGroup], config: TrainConfig) -> list[bool]:
    """Return which groups teach with the options of a step: those with an advantage other than 0,
    and all where a teacher or a critic gives the advantages. With an advantage function, those
    whose rewards differ.
    """
    if config.critic or config.loss.distill_coef > 0:
        return [True] * len(groups)
    if config.advantage_fn is not None:
        return [has_spread(group.rewards) for group in groups]
    if not config.loss.uses_rewards:
        return [False] * len(groups)
    return [any(any(c.values) for c in found) for found in step_credit(groups, config)]


def _masked_share(config: TrainConfig, metrics: Mapping[str, float]) -> float:
    """Return the share of trained tokens that the loss dropped for their importance ratio."""
    loss = config.loss
    drops = loss.surrogate == "ratio" or loss.mask_prob_ratio or loss.mask_sequence_ratio < math.inf
    share = metrics.get("loss/clipped_token_fraction", 0.0) if drops else 0.0
    return min(1.0, max(0.0, share))


def _mask(tokens: Parts, share: float) -> Parts:
    learned = tokens.get(LEARNED, 0.0)
    if not learned or not share:
        return tokens
    masked = tokens.get(MASKED, 0.0) + learned * share
    return {**tokens, LEARNED: learned * (1 - share), MASKED: masked}


def _tokens_by_part(
    trajectory: Trajectory, config: TrainConfig, *, teaches: bool
) -> tuple[Parts, Parts]:
    """Return the tokens of an attempt, and those that were trained, by what they bought.

    A conversation has the first reason that holds: cut off, no engine tokens, no spread.
    """
    sampled: Parts = {}
    trained: Parts = {}
    for history in trajectory.histories():
        turns, missing = turns_of(history)
        tokens, repeated = _lengths(turns)
        if config.mask_truncated and any(turn.truncated for turn in turns):
            part = TRUNCATED
        elif missing or not turns:
            part = MASKED
        else:
            part = LEARNED if teaches else NO_SPREAD
        sampled[part] = sampled.get(part, 0.0) + tokens
        if part == LEARNED:
            trained = _sum([trained, {LEARNED: tokens - repeated, PREFIX_BREAKS: repeated}])
    return sampled, trained


def _lengths(turns: Iterable[ChoiceTokens]) -> tuple[float, float]:
    """Return the tokens of a conversation's training sequences, and how many of them repeat what a
    sequence before had read, because a turn did not continue it.
    """
    tokens = repeated = 0
    before: tuple[int, ...] = ()
    for turn in turns:
        continues = turn.prompt_ids[: len(before)] == before
        again = 0 if continues else min(len(turn.prompt_ids), len(before))
        known = len(before) if continues else 0
        tokens += len(turn.prompt_ids) - known + len(turn.completion_ids)
        repeated += again
        before = turn.prompt_ids + turn.completion_ids
    return float(tokens), float(repeated)


def _total(parts: Mapping[str, float]) -> float:
    return math.fsum(parts.values())


def _scaled(parts: Mapping[str, float], usd: float) -> Parts:
    """Divide dollars in the proportions of the parts."""
    whole = _total(parts)
    return {part: usd * value / whole for part, value in parts.items()} if whole else {OTHER: usd}


def _sum(several: Iterable[Mapping[str, float]]) -> Parts:
    summed: Parts = {}
    for parts in several:
        for part, value in parts.items():
            summed[part] = summed.get(part, 0.0) + value
    return summed
