"""A run's log on one page, kept beside it: brought up to date from where it ended.

It is made anew when it does not fit its log.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import attrs

from art_core.base.files import read_json, replace_json
from art_core.log.summary_columns import scan_columns
from art_core.log.summary_line import summary_of_line
from art_core.log.summary_page import Entry, OutOfOrderError, Summary, better_values
from art_core.log.summary_reader import summarize_log
from art_core.metrics.taxonomy import CATALOGUE_VERSION, Taxonomy

SUMMARY_FILE = "summary.json"
_HEAD = 256
_BUFFER = 1 << 17
_VERSION = 4
_WORTH_A_PROCESS = 100 << 20
_WORTH_A_SCAN = 1 << 20


def read_summary(
    history: Path,
    taxonomy: Taxonomy,
    *,
    anew: bool = True,
    asked: Mapping[str, bool] | None = None,
) -> Summary:
    """Return a log's summary, reading only what is new since it was last asked for, and keep it.

    Values are those of the run's current line. Where new rows change older steps, all is read anew,
    or OutOfOrderError raised if `anew` is False. `asked` names metrics that will do, and whether
    with their best: a long log of which nothing is known is then scanned for these alone. The next
    reader who asks for others reads it whole.
    """
    summary = kept_summary(history, taxonomy, asked)
    size = history.stat().st_size
    if summary.offset == size:
        return summary
    unknown = size >= _WORTH_A_SCAN and not history.with_name(SUMMARY_FILE).exists()
    with history.open("rb", buffering=_BUFFER) as file:
        scanned = scan_columns(file, asked, taxonomy) if asked is not None and unknown else None
        summary = scanned or _summarized(file, summary, taxonomy, anew=anew)
        summary.head = _head(file, summary.offset)
    _keep(summary, history)
    return summary


def _summarized(file: BinaryIO, summary: Summary, taxonomy: Taxonomy, *, anew: bool) -> Summary:
    try:
        return summarize_log(file, summary, taxonomy)
    except OutOfOrderError:
        if not anew:
            raise
    return summary_of_line(file, taxonomy)


def bring_up_to_date(history: Path, taxonomy: Taxonomy, *, at_most: int) -> None:
    """Keep a log's summary, unless more than `at_most` bytes would have to be read for it.

    A log that was deleted in the meantime is passed over.
    """
    with suppress(FileNotFoundError, OutOfOrderError):
        size = history.stat().st_size
        if size - kept_summary(history, taxonomy).offset <= at_most:
            read_summary(history, taxonomy, anew=size <= at_most)


def kept_summary(
    history: Path, taxonomy: Taxonomy, asked: Mapping[str, bool] | None = None
) -> Summary:
    """Return the summary that lies beside a log; an empty one when there is none that fits it.

    One of some metrics alone fits if these are `asked` for, and the log has not grown.
    """
    try:
        stored = read_json(history.with_name(SUMMARY_FILE))
        if stored.pop("version") != [_VERSION, CATALOGUE_VERSION]:
            return Summary()
        metrics = {k: _entry(e) for k, e in stored.pop("metrics").items()}
        summary = Summary(**stored, metrics=metrics)
        with history.open("rb") as file:
            fits = summary.head == _head(file, summary.offset)
        whole = summary.asked is None or summary.offset == history.stat().st_size
        known = all(e.better == better_values(k, taxonomy) for k, e in metrics.items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Summary()
    return summary if fits and known and whole and summary.answers(asked) else Summary()


def _entry(stored: Sequence[Any]) -> Entry:
    better, first, last, *rest = stored
    first, last = (math.nan if value is None else value for value in (first, last))
    return Entry(better, first, last, *rest)


def _keep(summary: Summary, history: Path) -> None:
    page = attrs.asdict(summary, recurse=False) | {
        "version": [_VERSION, CATALOGUE_VERSION],
        "metrics": {k: attrs.astuple(e) for k, e in summary.metrics.items()},
    }
    try:
        replace_json(history.with_name(SUMMARY_FILE), page, sync=False)
    except OSError:
        # Somebody else's run: its directory may be read-only, and the page is only for speed.
        return


def _head(file: BinaryIO, offset: int) -> int:
    """Tell logs apart by a sum over the first bytes; 0 when no line of the log ends at `offset`."""
    if not offset:
        return 0
    file.seek(offset - 1)
    if file.read(1) != b"\n":
        return 0
    file.seek(0)
    return zlib.crc32(file.read(min(_HEAD, offset))) or 1


def read_summaries(
    histories: Sequence[Path], taxonomy: Taxonomy, asked: Mapping[str, bool] | None = None
) -> list[Summary | Exception]:
    """Return the summaries of many logs; other processes help where there is much to read.

    Of a log that can't be read, the error takes the place of its summary.
    """
    unread = sum(_unread(history, taxonomy, asked) for history in histories)
    processes = min(os.cpu_count() or 1, unread // _WORTH_A_PROCESS)
    read = partial(_summary_or_error, taxonomy=taxonomy, asked=asked)
    if processes < 2:
        return [read(history) for history in histories]
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(processes - 1, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(read, history) for history in histories]
        # This process begins at the other end, with what no helper has begun.
        pending = zip(reversed(futures), reversed(histories), strict=True)
        own = {future: read(history) for future, history in pending if future.cancel()}
        return [own[future] if future in own else future.result() for future in futures]


def _unread(history: Path, taxonomy: Taxonomy, asked: Mapping[str, bool] | None) -> int:
    try:
        return history.stat().st_size - kept_summary(history, taxonomy, asked).offset
    except OSError:
        return 0


def _summary_or_error(
    history: Path, taxonomy: Taxonomy, asked: Mapping[str, bool] | None
) -> Summary | Exception:
    try:
        return read_summary(history, taxonomy, asked=asked)
    except Exception as error:
        return error
