"""The leaves of a step: averages and counts of its groups of trajectories.

Groups and scenario ids that the run has counted before are not counted again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

import attrs

from art_core.base.errors import MetricError
from art_core.base.numbers import has_spread, population_std, text_of
from art_core.data.trajectory import Trajectory, TrajectoryGroup, is_choice, tokens_of
from art_core.metrics.taxonomy import Taxonomy, combine_values, number, total

RESERVED = ("reward", "exception_rate")
_COUNTED = frozenset(
    f"data/step_{name}"
    for name in (
        "num_scenarios",
        "num_trajectories",
        "num_groups_submitted",
        "num_groups_trainable",
        "actor_tokens",
    )
)
_OWN_TRAIN = frozenset(
    {
        "train/num_groups_submitted",
        "train/num_groups_trainable",
        "train/num_trajectories",
        "time/step_actor_s",
        "time/step_wall_s",
        *_COUNTED,
    }
)


def summarize(
    groups: Sequence[TrajectoryGroup], split: str, taxonomy: Taxonomy
) -> dict[str, float]:
    """Average rewards and metrics of groups, under keys of the split; safe in several rows.

    On train `reward/mean`, `reward/<metric>`, `train/num_...`; elsewhere `<split>/reward`,
    `<split>/<metric>`. A metric that has its section keeps it (`own_key`). Raises MetricError for a
    reward, or a metric of a trajectory or group, that is not a number, and for a name that is
    reserved or in use.
    """
    trajectories = [t for group in groups for t in group.trajectories]
    rewards = [_reward(t) for t in trajectories]
    failures = sum(len(group.failures) for group in groups)
    stds = [population_std(g.rewards) for g in groups if len(g) > 1]
    names = _own_names(split)
    averages = _combined(groups, split, taxonomy, sums=False)
    if trajectories:
        averages[names[0]] = _mean(rewards)
    if stds:
        averages[names[1]] = _mean(stds)
    if trajectories or failures:
        averages[names[2]] = failures / (len(trajectories) + failures)
    if split == "train" and groups:
        averages |= _part_stds(groups)
        averages |= {
            "train/num_groups_submitted": float(len(groups)),
            "train/num_groups_trainable": float(sum(has_spread(g.rewards) for g in groups)),
            "train/num_trajectories": float(len(trajectories)),
        }
    return averages


def _part_stds(groups: Sequence[TrajectoryGroup]) -> dict[str, float]:
    """Return the weighted spread of the reward's parts in groups, as `art.reward` made them."""
    stds: dict[str, list[float]] = {}
    for group in groups:
        for name, weight in _weights(group).items():
            values = [t.metrics.get(name) for t in group.trajectories]
            known = [number(name, value) for value in values if value is not None]
            if weight and len(known) > 1:
                key = f"reward/part_std_dev/{name}"
                stds.setdefault(key, []).append(abs(weight) * population_std(known))
    return {key: _mean(values) for key, values in stds.items()}


def _weights(group: TrajectoryGroup) -> dict[str, float]:
    """Return the weights of the reward's parts that all trajectories of a group have alike."""
    found = [t.metadata.get("reward_weights") for t in group.trajectories]
    first = found[0] if found else None
    return first if isinstance(first, dict) and all(each == first for each in found) else {}


def count(groups: Sequence[TrajectoryGroup], split: str, taxonomy: Taxonomy) -> dict[str, float]:
    """Count trajectories, tokens and seconds, and add up metrics that are sums; for one row only.

    On splits other than train the counts are under `<split>/data/`, so they never join train's
    totals.
    """
    if not groups:
        return {}
    trajectories = [t for group in groups for t in group.trajectories]
    prefix = "" if split == "train" else f"{split}/"
    counts = _combined(groups, split, taxonomy, sums=True)
    counts |= {
        f"{prefix}data/step_num_scenarios": float(len(groups)),
        f"{prefix}data/step_num_trajectories": float(len(trajectories)),
    }
    if split != "train":
        counts[f"{prefix}data/step_num_groups_submitted"] = float(len(groups))
    seconds = elapsed(trajectories)
    if seconds:
        counts["time/step_actor_s" if split == "train" else "time/step_eval_s"] = seconds
    if split == "train":
        counts |= count_trained(groups)
        sampled = sum(_sampled_tokens(t) for t in trajectories)
        if sampled:
            counts["data/step_actor_tokens"] = float(sampled)
    return counts


def count_trained(groups: Sequence[TrajectoryGroup]) -> dict[str, float]:
    """Count the groups that a step trains; for a row of each such step."""
    return {
        "data/step_num_groups_submitted": float(len(groups)),
        "data/step_num_groups_trainable": float(sum(has_spread(g.rewards) for g in groups)),
    }


def elapsed(trajectories: Iterable[Trajectory]) -> float:
    """Return the seconds in which at least one trajectory was running: overlaps count once."""
    spans = sorted((t.start_time, t.end_time) for t in trajectories if t.end_time is not None)
    total = 0.0
    reached: datetime | None = None
    for start, end in spans:
        begin = start if reached is None else max(start, reached)
        if end > begin:
            total += (end - begin).total_seconds()
            reached = end
    return total


def _sampled_tokens(trajectory: Trajectory) -> int:
    items = [item for history in trajectory.histories() for item in history.messages_and_choices]
    turns = [tokens_of(item) for item in items if is_choice(item)]
    return sum(len(turn.completion_ids) for turn in turns if turn)


def scenario_ids(groups: Sequence[TrajectoryGroup]) -> frozenset[str]:
    """Return `metadata["scenario_id"]` of groups and their trajectories."""
    metadata = [group.metadata for group in groups]
    metadata += [t.metadata for group in groups for t in group.trajectories]
    ids = (each.get("scenario_id") for each in metadata)
    return frozenset(text_of(each) for each in ids if each is not None)


def own_key(name: str, split: str, taxonomy: Taxonomy, kind: str = "") -> str:
    """Return the key of a metric of a trajectory, or of a group (then `kind` is "group_").

    On train a bare name goes under `reward/`, and a name with a known section stays. On another
    split all names go under the split; `reward/x` is `<split>/x` there, as `x` is. Raises
    MetricError for names under `costs/` and for reserved ones.
    """
    section, _, rest = str(name).partition("/")
    prefix = "reward/" if split == "train" else f"{split}/"
    if name in RESERVED or section == "costs" or "cum" in rest.split("/"):
        raise _refused(name)
    if section in ("reward", split) and rest in RESERVED:
        raise _refused(name)
    if not rest:
        key = f"{prefix}{kind}{name}"
    elif section == "reward":
        key = f"{prefix}{rest}"
    elif section == split or (split == "train" and section in taxonomy.sections):
        key = name
    else:
        key = f"{prefix}{'' if section in taxonomy.sections else kind}{name}"
    return taxonomy.place(key, split)


def _own_names(split: str) -> tuple[str, str, str]:
    if split == "train":
        return "reward/mean", "reward/std_dev", "reward/exception_rate"
    return f"{split}/reward", f"{split}/reward_std_dev", f"{split}/exception_rate"


def _combined(
    groups: Sequence[TrajectoryGroup], split: str, taxonomy: Taxonomy, *, sums: bool
) -> dict[str, float]:
    """Combine the metrics of trajectories and groups: those that add up, or the others."""
    own = _OWN_TRAIN if split == "train" else {f"{split}/{key}" for key in _COUNTED}
    used = {*_own_names(split), *own}
    samples = [("", m) for g in groups for t in g.trajectories for m in t.metrics.items()]
    samples += [("group_", m) for g in groups for m in g.metrics.items()]
    collected: dict[tuple[str, str], list[float]] = {}
    for kind, (name, value) in samples:
        collected.setdefault((kind, name), []).append(number(name, value))
    combined: dict[str, float] = {}
    for (kind, name), values in collected.items():
        key = own_key(name, split, taxonomy, kind)
        if key in used:
            raise _refused(name)
        used.add(key)
        rule = _rule(name, key, taxonomy)
        if (rule == "sum") is sums:
            combined[key] = combine_values(values, rule)
    return combined


def _rule(name: str, key: str, taxonomy: Taxonomy) -> str:
    """Return the rule of the name if it has a section, else that of the key."""
    sectioned = name.partition("/")[0] in taxonomy.sections
    return taxonomy.spec(name if sectioned else key).combine


def _refused(name: str) -> MetricError:
    if str(name).startswith("costs/"):
        return MetricError(
            f"a trajectory's or group's metric may not be a cost, got {name!r}",
            "Add it with model.metrics_builder().add_cost, or @track_api_cost.",
        )
    return MetricError(
        f"a trajectory's or group's metric may not be named {name!r}",
        "It is the step's own name, or another metric has it already.",
    )


def _reward(trajectory: Trajectory) -> float:
    of_turns = [number("turn_rewards", reward) for reward in trajectory.turn_rewards]
    return total([number("reward", trajectory.reward), *of_turns])


def _mean(values: Sequence[float]) -> float:
    return total(values) / len(values)


_MAX_GROUPS = 10_000


@attrs.frozen
class GroupsOfRow:
    """The groups of a row; `trained` when the row's step trained them.

    `new` are in no earlier row. `again` are in the row of an earlier step, and trained once more.
    """

    all: Sequence[TrajectoryGroup] = ()
    new: Sequence[TrajectoryGroup] = ()
    again: Sequence[TrajectoryGroup] = ()
    trained: bool = False


NO_GROUPS = GroupsOfRow()


@attrs.define
class Dedup:
    """The newest groups and all scenario ids of a run. `read_ids` reads those in the log, when the
    first new one comes.
    """

    read_ids: Callable[[], set[str]]
    _scenarios: set[str] | None = None
    _groups: set[tuple[str, int]] = attrs.field(factory=set)
    _trained: set[tuple[str, int]] = attrs.field(factory=set)
    _order: deque[tuple[str, int]] = attrs.field(factory=deque)

    def of_row(
        self, split: str, groups: Sequence[TrajectoryGroup], *, trained: bool
    ) -> GroupsOfRow:
        """Return which groups of a row were counted before."""
        return GroupsOfRow(
            all=groups,
            new=[group for group in groups if (split, group.id) not in self._groups],
            again=[group for group in groups if trained and (split, group.id) in self._trained],
            trained=trained,
        )

    def new_scenarios(self, ids: frozenset[str]) -> list[str]:
        """Return the ids that are in no row, sorted."""
        if self._scenarios is None:
            self._scenarios = self.read_ids()
        return sorted(ids - self._scenarios)

    def commit(self, split: str, groups: GroupsOfRow, scenarios: Iterable[str]) -> None:
        """Remember the groups and new scenarios of a row that was written."""
        if self._scenarios is not None:
            self._scenarios.update(scenarios)
        for group in groups.new:
            self._groups.add((split, group.id))
            self._order.append((split, group.id))
        if groups.trained:
            self._trained.update((split, group.id) for group in groups.all)
        while len(self._order) > _MAX_GROUPS:
            oldest = self._order.popleft()
            self._groups.discard(oldest)
            self._trained.discard(oldest)
