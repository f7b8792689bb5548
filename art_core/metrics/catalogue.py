"""The built-in metrics, and the names that earlier releases of the ART reference gave them."""

from __future__ import annotations

from functools import cache

from art_core.metrics.taxonomy import MetricSpec, Taxonomy


def _spec(key: str, unit: str, help: str, **more: object) -> MetricSpec:
    return MetricSpec(key=key, unit=unit, help=help, **more)  # type: ignore[arg-type]


_SUM = {"combine": "sum", "cumulative": True}
_DERIVED = {"combine": "last", "derived": True}

SPECS = (
    _spec("reward/mean", "reward", "mean reward over the step's trajectories", direction="higher"),
    _spec(
        "reward/std_dev",
        "reward",
        "population std of rewards inside a group, mean over groups of two or more",
    ),
    _spec("reward/exception_rate", "share", "failed rollouts / all rollouts", direction="lower"),
    _spec("reward/*", "", "a trajectory's own metric, mean over the trajectories that have it"),
    _spec("reward/group_*", "", "a group's own metric, mean over the groups that have it"),
    _spec("loss/train", "loss", "policy loss, weighted token mean", direction="lower"),
    _spec("loss/entropy", "nats", "policy entropy, mean over trained tokens"),
    _spec("loss/kl_div", "nats", "mean log(policy / reference) of sampled tokens: KL divergence"),
    _spec("loss/grad_norm", "norm", "global gradient norm before clipping"),
    _spec("loss/learning_rate", "1", "learning rate of the step", combine="last"),
    _spec(
        "loss/importance_ratio_mean",
        "ratio",
        "importance ratio of trained tokens, at the level of the loss, mean",
    ),
    _spec("loss/importance_ratio_p95", "ratio", "the same, 95th percentile"),
    _spec("loss/importance_ratio_p99", "ratio", "the same, 99th percentile"),
    _spec(
        "loss/clipped_token_fraction", "share", "trained tokens whose ratio was clipped or masked"
    ),
    _spec(
        "loss/kl_k3",
        "nats",
        "k3 estimate of KL between engine and trainer log-probs",
        direction="lower",
    ),
    _spec(
        "loss/engine_logprob_diff",
        "nats",
        "how far engine and trainer log-probs of a trained token are apart, mean",
        direction="lower",
    ),
    _spec("loss/*", "", "a loss of a backend's own"),
    _spec(
        "throughput/avg_trainer_tok_per_s",
        "token/s",
        "cumulative trainer tokens / trainer seconds",
        direction="higher",
        **_DERIVED,
    ),
    _spec(
        "throughput/avg_actor_tok_per_s",
        "token/s",
        "cumulative actor tokens / actor seconds",
        direction="higher",
        **_DERIVED,
    ),
    _spec(
        "throughput/step_trainer_idle_s",
        "s",
        "trainer waited for rollouts",
        direction="lower",
        **_SUM,
    ),
    _spec(
        "throughput/step_actor_idle_s",
        "s",
        "rollouts waited for the trainer",
        direction="lower",
        **_SUM,
    ),
    _spec("throughput/*", "", "a speed of a backend's own"),
    _spec("costs/all", "USD", "all costs of the step", direction="lower", **_DERIVED),
    _spec("costs/gpu", "USD", "devices held, at their hourly price", direction="lower", **_SUM),
    _spec(
        "costs/*",
        "USD",
        "a cost leaf, or the sum of the leaves below it",
        direction="lower",
        **_SUM,
    ),
    _spec("costs/cum/*", "USD", "the run's total of a cost", direction="lower", **_DERIVED),
    _spec("time/wall_clock_sec", "s", "the run's clock, over all attempts", **_DERIVED),
    _spec("time/attempt_sec", "s", "this attempt's clock", **_DERIVED),
    _spec("time/step_wall_s", "s", "elapsed since the last train row", direction="lower", **_SUM),
    _spec("time/step_trainer_s", "s", "elapsed in the trainer", direction="lower", **_SUM),
    _spec("time/step_actor_s", "s", "elapsed while rollouts ran", direction="lower", **_SUM),
    _spec("time/step_eval_s", "s", "elapsed while evaluations ran", direction="lower", **_SUM),
    _spec("time/step_*", "s", "a time of the step", direction="lower", **_SUM),
    _spec("time/cum/*", "s", "the run's total of a time", **_DERIVED),
    _spec("time/*", "s", "a time that does not add up"),
    _spec("data/step_num_scenarios", "scenario", "scenarios tried", **_SUM),
    _spec("data/step_num_trajectories", "trajectory", "rollouts that gave a trajectory", **_SUM),
    _spec("data/step_num_groups_submitted", "group", "groups given to the trainer", **_SUM),
    _spec("data/step_num_groups_trainable", "group", "groups whose rewards differ", **_SUM),
    _spec("data/step_num_gradient_steps", "step", "optimizer steps", **_SUM),
    _spec("data/step_num_sequences", "sequence", "training sequences", **_SUM),
    _spec(
        "data/step_num_truncated",
        "attempt",
        "attempts with an answer that max_tokens cut off",
        **_SUM,
    ),
    _spec(
        "data/step_num_biased_choices",
        "choice",
        "trained choices sampled at another temperature or top_p than 1",
        direction="lower",
        **_SUM,
    ),
    _spec("data/step_actor_tokens", "token", "tokens sampled in rollouts", **_SUM),
    _spec("data/step_trainer_tokens", "token", "tokens that bear loss", **_SUM),
    _spec(
        "data/step_unpriced_calls",
        "call",
        "paid calls whose price is not known",
        direction="lower",
        **_SUM,
    ),
    _spec(
        "data/step_partly_priced_calls",
        "call",
        "paid calls of which a part has no known price",
        direction="lower",
        **_SUM,
    ),
    _spec("data/step_*", "count", "a count of the step", **_SUM),
    _spec(
        "data/prefix_breaks",
        "turn",
        "turns that did not continue the tokens before them",
        combine="sum",
        direction="lower",
    ),
    _spec(
        "data/staleness_mean",
        "step",
        "steps between the weights behind a turn and those that were trained, mean over turns",
        direction="lower",
    ),
    _spec("data/staleness_max", "step", "the same, the most", direction="lower"),
    _spec("data/cum/num_unique_scenarios", "scenario", "scenario ids seen in the run", **_DERIVED),
    _spec("data/cum/*", "count", "the run's total of a count", **_DERIVED),
    _spec("data/*", "", "a count that does not add up"),
    _spec("train/num_groups_submitted", "group", "groups given to the trainer", combine="last"),
    _spec("train/num_groups_trainable", "group", "groups whose rewards differ", combine="last"),
    _spec("train/num_trajectories", "trajectory", "trajectories in the step", combine="last"),
    _spec("train/*", "", "a metric logged on train under a bare name"),
    _spec(
        "val/reward", "reward", "mean reward over the evaluation's trajectories", direction="higher"
    ),
    _spec(
        "val/reward_std_dev", "reward", "population std of rewards inside a group, mean over groups"
    ),
    _spec("val/exception_rate", "share", "failed rollouts / all rollouts", direction="lower"),
    _spec("val/*", "", "an evaluation's metric"),
    _spec("test/reward", "reward", "mean reward over the test's trajectories", direction="higher"),
    _spec(
        "test/reward_std_dev",
        "reward",
        "population std of rewards inside a group, mean over groups",
    ),
    _spec("test/exception_rate", "share", "failed rollouts / all rollouts", direction="lower"),
    _spec("test/*", "", "a test's metric"),
)

ALIASES = {
    "train/reward": "reward/mean",
    "train/reward_std_dev": "reward/std_dev",
    "train/exception_rate": "reward/exception_rate",
    "train/group/*": "reward/group_*",
    "train/group_*": "reward/group_*",
    "val/group/*": "val/group_*",
    "test/group/*": "test/group_*",
    "time/step_backend_train_s": "time/step_trainer_s",
    "time/cum/backend_train_s": "time/cum/trainer_s",
    "time/step_rollout_s": "time/step_actor_s",
    "time/cum/rollout_s": "time/cum/actor_s",
    "data/step_trainable_assistant_tokens": "data/step_trainer_tokens",
    "data/cum/trainable_assistant_tokens": "data/cum/trainer_tokens",
    "data/step_rollout_tokens": "data/step_actor_tokens",
    "data/cum/rollout_tokens": "data/cum/actor_tokens",
    "throughput/avg_rollout_tok_per_s": "throughput/avg_actor_tok_per_s",
    "time/step_trainer_idle_s": "throughput/step_trainer_idle_s",
    "time/cum/trainer_idle_s": "throughput/cum/trainer_idle_s",
    "time/step_rollout_idle_s": "throughput/step_actor_idle_s",
    "time/cum/rollout_idle_s": "throughput/cum/actor_idle_s",
}
"""Read-only: names of ART 0.5.17 to 0.5.23. `train/<metric>` of those releases is `reward/<metric>`
here; a bare name logged on train has the same form, so rows tell which (`Taxonomy.names`).
"""


@cache
def builtin_taxonomy() -> Taxonomy:
    """Return the catalogue without plugins."""
    return Taxonomy({spec.key: spec for spec in SPECS}, ALIASES)
