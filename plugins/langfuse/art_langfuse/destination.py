"""Langfuse as a destination of traces: its server takes OpenTelemetry's spans, which get the
attributes that it reads, and scores by its own API.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs
import requests

from art_core import ConfigError, MetricsRow, RunInfo, SinkError
from art_otel.messages import as_json
from art_otel.otlp import Otlp
from art_otel.spans import SpanDraft, Value

log = logging.getLogger("art_core")

CLOUD = "https://cloud.langfuse.com"
SCORES, INGESTION = "api/public/scores", "api/public/ingestion"
_AT_ONCE = 100
_TYPES = {"row": "span", "attempt": "agent", "call": "generation", "tool": "tool"}
_OBSERVATION = "langfuse.observation"


@attrs.define(eq=False)
class Langfuse:
    """A project on a Langfuse server: spans by OTLP, and then the scores of their rewards."""

    base_url: str
    keys: tuple[str, str] = attrs.field(repr=False)
    environment: str | None = None
    timeout_s: float = 10.0
    _otlp: Otlp = attrs.field(init=False, repr=False)
    _session: requests.Session = attrs.field(factory=requests.Session, init=False, repr=False)
    _run: RunInfo | None = attrs.field(default=None, init=False)
    _takes_lists: bool = attrs.field(default=True, init=False)

    def __attrs_post_init__(self) -> None:
        self._otlp = Otlp(
            endpoint=f"{self.base_url}/api/public/otel",
            headers=self._headers(),
            timeout_s=self.timeout_s,
        )

    @classmethod
    def at(
        cls,
        *,
        base_url: str | None,
        public_key: str | None,
        secret_key: str | None,
        environment: str | None,
        timeout_s: float,
    ) -> Langfuse:
        """Return a project by options, else by the variables of Langfuse's SDK."""
        env = os.environ.get
        url = base_url or env("LANGFUSE_BASE_URL") or env("LANGFUSE_HOST") or CLOUD
        keys = (public_key or env("LANGFUSE_PUBLIC_KEY"), secret_key or env("LANGFUSE_SECRET_KEY"))
        return cls(
            url.rstrip("/"),
            (keys[0] or "", keys[1] or ""),
            environment or env("LANGFUSE_TRACING_ENVIRONMENT"),
            timeout_s,
        )

    def _headers(self) -> dict[str, str]:
        prepared = requests.Request("GET", self.base_url, auth=self.keys).prepare()
        basic = prepared.headers["Authorization"]
        # Spans are then shown at once by servers that keep them by observation, and else ignored.
        return {"Authorization": basic, "x-langfuse-ingestion-version": "4"}

    def open(self, run: RunInfo) -> None:
        """Get ready for a run; raises ConfigError without keys."""
        if not all(self.keys):
            raise ConfigError(
                "the sink langfuse needs the keys of a project",
                "Set LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY, and LANGFUSE_BASE_URL for a "
                "server of your own.",
            )
        self._run = run
        self._otlp.open(run)

    def send(self, spans: Sequence[SpanDraft], *, content: bool) -> None:
        """Send spans, then the scores of their rewards; raises SinkError if they were not taken."""
        assert self._run is not None
        general = general_attributes(self._run, self.environment)
        shown = [attrs.evolve(s, attributes=_with(s, general, content=content)) for s in spans]
        self._otlp.send(shown, content=False)
        scores = [score for span in spans for score in scores_of(span, self.environment)]
        for start in range(0, len(scores), _AT_ONCE):
            self._score(scores[start : start + _AT_ONCE])

    def send_rows(self, rows: Sequence[MetricsRow]) -> None:
        """Langfuse has no metrics of its own; the rows are there as spans."""

    def close(self) -> None:
        """Close the connections."""
        self._otlp.close()
        self._session.close()

    def _score(self, scores: Sequence[Mapping[str, Any]]) -> None:
        """Send scores: as a list, which servers before 5 refuse, else as events of the older API.
        A score that comes again has its own id, and takes its own place.
        """
        if self._takes_lists:
            answer = self._post(SCORES, list(scores))
            if answer.status_code != requests.codes.bad_request:
                self._check(answer)
                return
        events = [
            {"id": s["id"], "type": "score-create", "timestamp": s["timestamp"], "body": s}
            for s in scores
        ]
        self._check(self._post(INGESTION, {"batch": events}))
        self._takes_lists = False

    def _post(self, path: str, body: Any) -> requests.Response:
        try:
            return self._session.post(
                f"{self.base_url}/{path}", json=body, auth=self.keys, timeout=self.timeout_s
            )
        except requests.RequestException as error:
            raise SinkError(f"Langfuse at {self.base_url} can't be reached: {error}") from error

    def _check(self, answer: requests.Response) -> None:
        if not answer.ok:
            raise SinkError(
                f"Langfuse did not take the scores: HTTP {answer.status_code} {answer.reason}: "
                f"{answer.text[:300]}",
                "They wait in the run's log.",
            )
        if answer.status_code == requests.codes.multi_status:
            refused = [str(error.get("message")) for error in answer.json().get("errors") or ()]
            if refused:
                shown = "; ".join(refused)
                log.warning("Langfuse refused %d scores for good: %.300s", len(refused), shown)


def general_attributes(run: RunInfo, environment: str | None) -> dict[str, Value]:
    """Return the attributes of each span of a run: the run is a session."""
    given: dict[str, Value] = {"session.id": f"{run.project}/{run.name}"}
    return given if environment is None else {**given, "langfuse.environment": environment}


def _with(span: SpanDraft, general: Mapping[str, Value], *, content: bool) -> dict[str, Value]:
    """Return the attributes of a span, with those that Langfuse reads."""
    about = span.attributes
    step, split = about.get("art.step"), about.get("art.split")
    own: dict[str, Value] = {f"{_OBSERVATION}.type": _TYPES[span.kind]}
    if span.parent is None:
        own["langfuse.trace.name"] = span.name
        own["langfuse.trace.tags"] = [str(split), span.kind]
        own["langfuse.trace.metadata.step"] = str(step)
    if span.error is not None:
        own |= {f"{_OBSERVATION}.level": "ERROR", f"{_OBSERVATION}.status_message": span.error}
    if span.kind == "call":
        own[f"{_OBSERVATION}.model.name"] = about["gen_ai.request.model"]
    usage = {
        name: about[f"gen_ai.usage.{name}_tokens"]
        for name in ("input", "output")
        if f"gen_ai.usage.{name}_tokens" in about
    }
    details = {"usage_details": usage, "cost_details": costs_of(span)}
    own |= {f"{_OBSERVATION}.{name}": as_json(value) for name, value in details.items() if value}
    if content:
        texts = {"input": span.input, "output": span.output}
        own |= {f"{_OBSERVATION}.{name}": as_json(v) for name, v in texts.items() if v is not None}
    return {**about, **general, **own}


def costs_of(span: SpanDraft) -> dict[str, float]:
    """Return what a row cost in dollars, by the leaf of the tree of costs, and in sum."""
    prefix = "art.metric.costs/"
    found = {
        key.removeprefix(prefix): float(value)
        for key, value in span.attributes.items()
        if key.startswith(prefix) and isinstance(value, float)
    }
    paid = {key: usd for key, usd in found.items() if not key.startswith("cum/")}
    total = paid.pop("all", None)
    leaves = {
        key: usd for key, usd in paid.items() if not any(k.startswith(f"{key}/") for k in paid)
    }
    return leaves if total is None else {**leaves, "total": total}


def scores_of(span: SpanDraft, environment: str | None) -> Iterator[dict[str, Any]]:
    """Yield the scores of a span's rewards: an attempt's are its trace's, a turn's are the call's.

    Ids depend only on the span and the name, so that a score that comes again replaces itself.
    """
    trace, place = f"{span.trace:032x}", f"{span.id:016x}"
    moment = datetime.fromtimestamp(span.end / 1e9, UTC).isoformat()
    for name, value in span.scores.items():
        yield {
            "id": f"{trace}-{place}-{name}",
            "traceId": trace,
            **({} if span.parent is None else {"observationId": place}),
            "name": name,
            "value": float(value),
            "dataType": "NUMERIC",
            "timestamp": moment,
            **({} if environment is None else {"environment": environment}),
        }
