"""The built-in sink `doctor`: findings on the console and to a webhook, and the end of training."""

from __future__ import annotations

import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import attrs
import orjson

from art_core.base.errors import ConfigError, SinkError, unknown
from art_core.base.progress import print_line
from art_core.checks.finding import CheckSpec, Finding
from art_core.checks.watch import Watch, as_json
from art_core.log.history import MetricsRow
from art_core.sinks.protocol import RunInfo, Sink, SinkSpec

log = logging.getLogger("art_core")

WEBHOOK = "ART_DOCTOR_WEBHOOK"
TIMEOUT_S = 10


def doctor_sink(
    *,
    stop_on: Sequence[str] = (),
    webhook: str | None = None,
    rules: Sequence[CheckSpec] | None = None,
) -> SinkSpec:
    """Return the sink that examines a run while it trains, for a model's `sinks`.

    Each new finding is printed once and posted as JSON to `webhook`, an address that is kept secret
    (default: `ART_DOCTOR_WEBHOOK`). A finding of a rule in `stop_on` ends the training before its
    next step, with `StoppedError`. `rules` are by default those of all plugins.

    Raises ConfigError for an address that is not of http or https, and for an unknown rule.
    """
    address = webhook or os.environ.get(WEBHOOK)
    if address and not address.startswith(("http://", "https://")):
        raise ConfigError("the webhook of the doctor is no address", "Give one of http or https.")

    known = {rule.name for rule in (_installed() if rules is None else rules)} if stop_on else ()
    for name in stop_on:
        if name not in known:
            raise ConfigError(unknown("rule", name, known))

    def create() -> Sink:
        return DoctorSink(_installed() if rules is None else rules, frozenset(stop_on), address)

    return SinkSpec(
        name="doctor",
        create=create,
        summary="what goes wrong in a run, while it trains",
        default=False,
        options=None if rules else {"stop_on": list(stop_on)} if stop_on else {},
        factory=doctor_sink,
    )


def _installed() -> Sequence[CheckSpec]:
    from art_core.hooks.host import installed_plugins

    return tuple(installed_plugins().checks().values())


@attrs.define(eq=False)
class DoctorSink:
    """Prints each new finding, posts it, and requests the end of the training on some."""

    rules: Sequence[CheckSpec]
    stop_on: frozenset[str] = frozenset()
    webhook: str | None = attrs.field(default=None, repr=False)
    print_line: Callable[[str], None] = print_line
    _watch: Watch | None = None

    def open(self, run: RunInfo) -> None:
        """Read what was reported before."""
        self._watch = Watch(run, self.rules)

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """Examine the run if that is due. SinkError if the webhook does not take a finding."""
        watch = self._opened()
        watch.add(rows)
        if watch.is_due:
            self._examine(watch)
        self._post(watch)

    def close(self, run: RunInfo) -> None:  # noqa: ARG002
        """Examine the last steps."""
        watch = self._opened()
        self._examine(watch)
        self._post(watch)

    def _opened(self) -> Watch:
        assert self._watch is not None
        return self._watch

    def _examine(self, watch: Watch) -> None:
        new = watch.new_findings()
        for finding in new:
            for line in lines_of(finding):
                self.print_line(line)
            if finding.rule in self.stop_on and finding.until is None:
                watch.run.stop.request("the doctor", f"{finding.heading}. {finding.problem}")
        if new and self.webhook:
            watch.unsent += new
        watch.keep()

    def _post(self, watch: Watch) -> None:
        while self.webhook and watch.unsent:
            post(self.webhook, orjson.dumps(as_json(watch.run, watch.unsent[0])))
            del watch.unsent[0]
            watch.keep()


def lines_of(finding: Finding) -> list[str]:
    """Return a finding as lines of a console."""
    return [
        f"doctor: {finding.heading}",
        f"  {finding.problem}. {finding.change} See {finding.metric}.",
    ]


def post(address: str, body: bytes) -> None:
    """Post JSON. SinkError, with the host and no more of the address, if it is not taken."""
    request = urllib.request.Request(  # noqa: S310 - http and https only
        address, body, {"Content-Type": "application/json", "User-Agent": "art-core"}
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):  # noqa: S310
            return
    except urllib.error.HTTPError as error:
        error.close()
        problem = f"answered {error.code}"
    except OSError as error:
        reason = getattr(error, "reason", error)
        problem = f"was not reached ({type(reason).__name__})"
    raise SinkError(f"the webhook at {urlsplit(address).hostname} {problem}")
