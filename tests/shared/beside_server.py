"""Run tests or a program of another environment beside `art serve --backend local` of this one.

`python beside_server.py PYTHON TESTS...` runs them with that Python. They find the address and the
key in SERVED_URL and SERVED_KEY. The base models are `tiny`, random, and `smol`,
SmolLM2-135M-Instruct, which a package has. `python beside_server.py PYTHON PROGRAM.py ARGUMENTS...`
runs a program, whose backend `serverless` finds the server by ART_BASE_URL and ART_API_KEY, and the
model by its own name too. The server costs $0.10 an hour.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

from art_local.models import resolve_base_model
from art_local.testing.tiny import save_tiny_model

SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"
OPTIONS = ("-odevice=cpu", "-odtype=float32", "-oprogress=False", "-ogpu_cost_per_hour_usd=0.1")


def main(arguments: list[str]) -> int:
    """Run the tests; return their exit status."""
    python, *tests = arguments
    with tempfile.TemporaryDirectory() as folder:
        tiny = save_tiny_model(Path(folder) / "tiny", context_length=4096)
        models = (f"tiny={tiny}", f"smol={resolve_base_model(SMOL)}", SMOL)
        named = [word for model in models for word in ("--base-model", model)]
        key = secrets.token_urlsafe(32)
        served = [sys.executable, "-m", "art_core", "serve", "--backend", "local", "--port", "0"]
        with subprocess.Popen(
            [*served, *OPTIONS, *named, "--dir", f"{folder}/served"],
            env=os.environ | {"ART_API_KEY": key},
            stdout=subprocess.PIPE,
            text=True,
        ) as server:
            try:
                assert server.stdout
                url = server.stdout.readline().split()[3].rstrip(";")
                variables = {"SERVED_URL": url, "SERVED_KEY": key}
                command = [python, "-m", "pytest", "-q", *tests]
                if tests[0].endswith(".py") and Path(tests[0]).parent.name == "examples":
                    variables = {"ART_BASE_URL": url, "ART_API_KEY": key}
                    command = [python, *tests]
                return subprocess.run(command, env=os.environ | variables, check=False).returncode
            finally:
                server.terminate()
                server.wait(60)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
