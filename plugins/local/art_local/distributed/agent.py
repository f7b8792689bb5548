"""torchrun's elastic agent in a process of its own: it starts the ranks and ends all when one dies.

    python -m art_local.distributed.agent DIRECTORY COUNT PARENT_PID

When a rank has failed, one line of JSON on standard output states which, and how it ended.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

MONITOR_S = 0.1
SHUTDOWN_S = 5
PARENT_CHECKS_S = 0.5


def config(directory: Path, count: int) -> LaunchConfig:
    """Return the agent's settings. Files take the place of ports: nothing listens on a network."""
    options: dict[str, Any] = {
        "min_nodes": 1,
        "max_nodes": 1,
        "nproc_per_node": count,
        "run_id": "art",
        "rdzv_backend": "c10d",
        "rdzv_endpoint": str(directory / "rendezvous"),
        "rdzv_configs": {"store_type": "file"},
        "max_restarts": 0,
        "monitor_interval": MONITOR_S,
        "local_addr": "127.0.0.1",
        "logs_specs": DefaultLogsSpecs(
            str(directory / "logs"), redirects=Std.ALL, tee={0: Std.ERR}
        ),
        "log_line_prefix_template": "[rank ${rank}] ",
    }
    if any(field.name == "shutdown_timeout" for field in fields(LaunchConfig)):
        options["shutdown_timeout"] = SHUTDOWN_S
    return LaunchConfig(**options)


def end_with(parent: int) -> None:
    """End this process, and so its ranks, when its parent has ended."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECKS_S)
    os.kill(os.getpid(), signal.SIGTERM)


def main(directory: Path, count: int, parent: int) -> int:
    """Run the ranks until they end; return 1 if one has failed."""
    threading.Thread(target=end_with, args=(parent,), name="art-agent-parent", daemon=True).start()
    command = ["-P", "-m", "art_local.distributed.rank", str(directory / "socket")]
    try:
        elastic_launch(config(directory, count), sys.executable)(*command)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        sys.stdout.write(json.dumps({"rank": rank, "exit": failure.exitcode}) + "\n")
        return 1
    except SignalException:
        return 1
    return 0


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.flush()
    if os.getppid() != int(sys.argv[3]):
        shutil.rmtree(sys.argv[1], ignore_errors=True)
    # after a signal, torch's threads can keep the interpreter from ending
    os._exit(code)
