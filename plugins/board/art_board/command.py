"""`art board`: serves the page of runs, or writes one run as an HTML file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from art_core import CommandSpec, ConfigError, Plugins, Record, open_run

DEFAULT_PORT = 7007

_HELP = """\
DIR is a directory of runs or one run's directory; several may be given (default: $ART_DIR, else
.art). The page is for this machine only and changes nothing. Of another machine's, forward the
port: ssh -L 7007:127.0.0.1:7007 HOST.

examples:
  art board
  art board /data/.art /old/.art
  art board --port 0                       a free port
  art board --export agent-001 --out agent-001.html
"""


def _create(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dirs", metavar="DIR", nargs="*", type=Path, help="a directory of runs")
    parser.add_argument(
        "--port",
        type=int,
        metavar="N",
        help=f"the port (default: {DEFAULT_PORT}, else the next free one); 0 takes a free one",
    )
    parser.add_argument(
        "--until-eof", action="store_true", help="end when standard input ends, as `art train` does"
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument(
        "--export", metavar="RUN", help="write this run as one HTML file and serve nothing"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="the file that --export writes")


def _run(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[str | Record]:
    """Yield the page's address and serve until Ctrl-C; or write a file and yield its path."""
    if bool(arguments.export) != bool(arguments.out):
        raise ConfigError("--export RUN and --out FILE belong together", "Give both, or neither.")
    if arguments.port is not None and not 0 <= arguments.port < 1 << 16:
        raise ConfigError(f"a port is a number from 0 to 65535, got {arguments.port}")
    directories = list({path.resolve(): path for path in arguments.dirs}.values())
    directories = directories or [Path(os.environ.get("ART_DIR") or ".art")]
    if arguments.export:
        yield _written(arguments.export, directories, arguments.out)
        return
    from art_board.server import serve

    ends = sys.stdin if arguments.until_eof else None
    options = {"opens": arguments.open, "until_eof_of": ends}
    yield from serve(directories, arguments.port, plugins.taxonomy(), **options)


def _written(name: str, directories: list[Path], out: Path) -> Record:
    from art_board.export import write_page

    run = open_run(name, directories[0])
    if out.is_dir() or not out.parent.is_dir():
        raise ConfigError(f"{out} can't be written", "Give a file in a directory that exists.")
    size = write_page(run, out)
    text = f"{run.name} is in {out}, {size / 1e6:.1f} MB; any browser opens it"
    return Record({"run": run.name, "path": out, "bytes": size}, [text])


COMMAND = CommandSpec(
    name="board",
    summary="show runs in the browser: curves, costs, leaderboard, conversations",
    create=_create,
    run=_run,
    help=_HELP,
)
