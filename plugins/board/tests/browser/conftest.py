"""A real Chromium before the real server."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import art_core as art

sync_api = pytest.importorskip("playwright.sync_api", reason="`make board` installs playwright")
EVIL = (
    "<img src=x onerror=window.evil=1><script>window.evil=1</script><iframe srcdoc='<p>x'></iframe>"
)
NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """Return the system's Chromium; None leaves the choice to playwright."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Server:
    """`art board` in a process of its own."""

    def __init__(self, directory: Path, port: int = 0):
        self.directory, self.port = directory, port
        self.start()

    def start(self) -> None:
        code = "import sys; from art_core.cli.main import main; sys.exit(main())"
        arguments = ["board", str(self.directory), "--port", str(self.port)]
        command = [sys.executable, "-u", "-c", code, *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().split()[0]
        self.port = int(self.url.rstrip("/").rpartition(":")[2])

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="session")
def served(shelf):
    server = Server(shelf)
    yield server
    server.stop()


@pytest.fixture
def serve():
    servers = []

    def start(directory):
        servers.append(Server(directory))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def browser(shelf, hostile):  # logged before: playwright leaves no room for another loop
    with sync_api.sync_playwright() as playwright:
        try:
            found = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(
                "no Chromium: apt install chromium-headless-shell, or set CHROMIUM "
                f"({str(error).splitlines()[0]})"
            )
        yield found
        found.close()


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """Return a directory with a run that has markup in every field."""
    base = tmp_path_factory.mktemp("hostile")
    name = EVIL.replace("/", "").replace("'", "")

    async def log():
        model = art.Model(
            name=name[:100], project="<b>p", sinks=[], base_path=base, config={EVIL: [EVIL]}
        )
        function = {"name": EVIL, "arguments": EVIL}
        token = {"token": EVIL, "logprob": -1.0, "bytes": None, "top_logprobs": []}
        choice = {
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": EVIL, "reasoning_content": EVIL,
                        "tool_calls": [{"id": EVIL, "type": "function", "function": function}]},
            "logprobs": {"content": [token]}, "token_ids": [1], "prompt_token_ids": [1],
        }  # fmt: skip
        trajectory = art.Trajectory(
            messages_and_choices=[
                {"role": EVIL, "name": EVIL, "content": EVIL},
                {"role": "user", "content": [{"type": "text", "text": EVIL}, {"type": EVIL}]},
                choice,
            ],
            tools=[{"type": "function", "function": {"name": EVIL}}],
            reward=1.0, metadata={EVIL: EVIL}, logs=[EVIL],
        )  # fmt: skip
        group = art.TrajectoryGroup(
            [trajectory], exceptions=[ValueError(EVIL)], metadata={"scenario_id": EVIL, EVIL: EVIL}
        )
        await model.log(
            [group], split="train", step=1, metrics={"<img src=x onerror=alert(1)>": 1.0}
        )
        await model.log([group], split="<i>val", step=1)
        await model.close()
        (model.run_dir / "status.json").write_text(f'{{"status": "{EVIL}", "reason": "{EVIL}"}}')

    asyncio.run(log())
    return base


@pytest.fixture(scope="session")
def long_run(tmp_path_factory):
    """Return a directory with a run of 5,000 rows, in which one value stands out."""
    base = tmp_path_factory.mktemp("long")
    directory = base / "p" / "models" / "long"
    directory.mkdir(parents=True)
    with (directory / "history.jsonl").open("w") as file:
        for n in range(1, 5001):
            row = {"seq": n, "attempt": 1, "step": n, "split": "train"}
            row |= {"recorded_at": "2026-03-01T12:00:00+00:00"}
            row |= {"loss/train": 9.0 if n == 777 else 1 / n}
            file.write(json.dumps(row) + "\n")
    return base


class Page:
    """A page, the messages of its console, and its requests."""

    def __init__(self, browser, **options):
        self.context = browser.new_context(
            viewport={"width": 1280, "height": 860}, accept_downloads=True, **options
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", lambda dialog: self.messages.append(f"dialog {dialog.message}"))


@pytest.fixture
def opened(browser):
    pages = []

    def go(url, **options):
        pages.append(Page(browser, **options))
        pages[-1].page.goto(url)
        return pages[-1]

    yield go
    for each in pages:
        each.context.close()
        assert each.messages == []  # an empty console, whatever a test did
