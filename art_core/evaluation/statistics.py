"""Clustered standard errors, pass@k, and comparisons that may stop early; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs

from art_core.base.errors import ConfigError
from art_core.forecast.interval import t_quantile

LEVEL = 0.95
MIN_PAIRS = 20
"""Pairs before a comparison may stop: the interval holds for many, by the central limit theorem."""


@attrs.frozen(kw_only=True)
class Estimate:
    """A mean with its standard error and interval; `count` values from `clusters` scenarios.

    With one scenario the error is not known: `std_err` is NaN and the interval infinite.
    """

    mean: float
    std_err: float
    low: float
    high: float
    count: int
    clusters: int


def clustered(values: Mapping[str, Sequence[float]], level: float = LEVEL) -> Estimate:
    """Estimate the mean of values that come in clusters: attempts at the same scenario.

    The standard error is cluster-robust: with N values, C clusters and the clusters' sums of
    residuals u, its square is C / (C - 1) * sum(u**2) / N**2 (Miller 2024, "Adding Error Bars to
    Evals", section 2.2, with the small-sample factor). The interval is Student's t with C - 1
    degrees of freedom. Raises ConfigError without any value.
    """
    check_level(level)
    filled = [list(cluster) for cluster in values.values() if cluster]
    count = sum(map(len, filled))
    if not count:
        raise ConfigError("an estimate needs at least one value")
    mean = math.fsum(map(math.fsum, filled)) / count
    clusters = len(filled)
    if clusters == 1:
        return Estimate(
            mean=mean, std_err=math.nan, low=-math.inf, high=math.inf, count=count, clusters=1
        )
    residuals = [math.fsum(value - mean for value in cluster) for cluster in filled]
    square = clusters / (clusters - 1) * math.fsum(u * u for u in residuals) / count**2
    error = math.sqrt(square)
    reach = t_quantile(0.5 + level / 2, clusters - 1) * error
    return Estimate(
        mean=mean,
        std_err=error,
        low=mean - reach,
        high=mean + reach,
        count=count,
        clusters=clusters,
    )


def pass_at_k(attempts: int, passed: int, k: int) -> float:
    """Return the unbiased estimate of the chance that one of k attempts passes.

    1 - C(n - c, k) / C(n, k) with n attempts of which c passed (Chen et al. 2021, "Evaluating
    Large Language Models Trained on Code", equation 1). Raises ConfigError unless 1 <= k <= n.
    """
    if not 1 <= k <= attempts or not 0 <= passed <= attempts:
        raise ConfigError(
            f"pass@k needs 1 <= k <= attempts, got k={k} of {attempts}, {passed} passed"
        )
    return 1.0 - math.comb(attempts - passed, k) / math.comb(attempts, k)


@attrs.frozen(kw_only=True)
class Difference:
    """The mean difference of pairs, with an interval that holds at every number of pairs at once.

    `decided` is "a" or "b" when the interval leaves 0 out, "" while it does not.
    """

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def decided(self) -> str:
        """Which side is better, "a" or "b", or "" as long as that is open."""
        if self.pairs < MIN_PAIRS:
            return ""
        return "a" if self.low > 0 else "b" if self.high < 0 else ""


def difference(pairs: Sequence[float], planned: int, level: float = LEVEL) -> Difference:
    """Estimate the mean of paired differences `a - b`, valid however often one looks.

    The interval is an asymptotic confidence sequence: with t pairs of standard deviation s, the
    mean +- s * sqrt(2 (t r + 1) / (t**2 r) * log(sqrt(t r + 1) / (1 - level))), where r makes it
    tightest at half of the `planned` pairs (Waudby-Smith et al. 2024, "Time-uniform central limit
    theory and asymptotic confidence sequences", theorem 2.2 and appendix B.2). So looking after
    each pair and stopping at the first decision errs with probability 1 - `level`, for t of at
    least `MIN_PAIRS`.
    """
    check_level(level)
    count = len(pairs)
    if not count:
        raise ConfigError("a comparison needs at least one pair")
    mean = math.fsum(pairs) / count
    if count == 1:
        return Difference(mean=mean, low=-math.inf, high=math.inf, pairs=1)
    alpha = 1 - level
    deviation = math.sqrt(math.fsum((d - mean) ** 2 for d in pairs) / (count - 1))
    target = max(MIN_PAIRS, planned / 2)
    rho = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / target
    spread = count * rho + 1
    bound = math.sqrt(2 * spread / (count**2 * rho) * math.log(math.sqrt(spread) / alpha))
    reach = deviation * bound
    return Difference(mean=mean, low=mean - reach, high=mean + reach, pairs=count)


def check_level(level: float) -> None:
    """Raise ConfigError for a level that is not between 0 and 1."""
    if not 0 < level < 1:
        raise ConfigError(f"level must be between 0 and 1, got {level!r}")
