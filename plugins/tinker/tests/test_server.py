"""The real SDK against a real server on this machine's CPU: SkyRL's, which speaks the protocol.

It needs an environment of its own, whose Python `ART_TINKER_SERVER_PYTHON` names:

    python3.11 -m venv ENV
    ENV/bin/pip install torch==2.13.0
    ENV/bin/pip install 'skyrl[tinker,jax]==0.3.0' tinker==0.20.0 uv
    ENV/bin/pip install -e '.[openai,endpoint]' && ENV/bin/pip install --no-deps -e plugins/tinker

That pair speaks the whole protocol: with a newer SDK, training fails at this server.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

PYTHON = os.environ.get("ART_TINKER_SERVER_PYTHON", "")
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
CONFIG = {
    "max_lora_adapters": 4,
    "max_lora_rank": 8,
    "train_micro_batch_size": 4,
    "sample_max_num_sequences": 8,
}
# The server's types are those of Python 3.12: pydantic wants another TypedDict before it.
OLDER_PYTHON = "import typing, typing_extensions; typing.TypedDict = typing_extensions.TypedDict\n"
pytestmark = [
    pytest.mark.tinker_server,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not PYTHON, reason="ART_TINKER_SERVER_PYTHON names no environment"),
]


@pytest.fixture(scope="module")
def base_model():
    from art_local.models import resolve_base_model

    return str(resolve_base_model(MODEL, progress=False))


def answers(url):
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except (urllib.error.URLError, OSError):
        return False
    return True


@pytest.fixture(scope="module")
def server(base_model, tmp_path_factory):
    """Start the server, yield its URL, end it."""
    place = tmp_path_factory.mktemp("server")
    (place / "sitecustomize.py").write_text(OLDER_PYTHON)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = Path(PYTHON).parent
    command = [
        *(environment / "uv", "run", "--no-project", "--active", "-m", "skyrl.tinker.api"),
        *("--host", "127.0.0.1", "--port", port, "--base-model", base_model, "--backend", "jax"),
        *("--backend-config", json.dumps(CONFIG), "--checkpoints-base", place / "checkpoints"),
        *("--database-url", f"sqlite:///{place}/tinker.db"),
    ]
    variables = {
        **os.environ,
        "VIRTUAL_ENV": str(environment.parent),
        "PATH": f"{environment}:{os.environ['PATH']}",
        "PYTHONPATH": str(place),
        "JAX_PLATFORMS": "cpu",
        "UV_OFFLINE": "1",
    }
    url = f"http://127.0.0.1:{port}"
    with (
        (place / "log").open("wb") as log,
        subprocess.Popen(
            [str(word) for word in command],
            cwd=place,
            env=variables,
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        try:
            deadline = time.monotonic() + 300
            while not answers(f"{url}/api/v1/healthz"):
                said = (place / "log").read_text()[-2000:]
                assert process.poll() is None and time.monotonic() < deadline, said
                time.sleep(0.5)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


@pytest.fixture(scope="module")
def told(server, base_model, tmp_path_factory):
    """The values that the client in the other environment printed."""
    client = Path(__file__).with_name("server_client.py")
    place = tmp_path_factory.mktemp("runs")
    command = [PYTHON, str(client), server, base_model, str(place)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=1500)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads(ran.stdout.splitlines()[-1])


def test_trainer_and_sampler_agree_on_what_was_sampled(told):
    first = told["rows"][0]
    assert first["loss/importance_ratio_mean"] == pytest.approx(1.0, abs=0.1)
    assert first["loss/kl_k3"] < 0.05


def test_a_step_lowers_the_loss_of_what_it_was_trained_on(told):
    """-r * A, averaged: 0 at first; what is favoured grows likelier, so it falls."""
    losses = [told["rows"][n]["loss/train"] for n in (0, 3)]
    assert abs(losses[0]) < 0.05
    assert losses[1] < losses[0] - 0.02


def test_the_run_goes_on_from_the_state_that_the_service_kept(told):
    assert told["resumed"] == 3
    assert told["versions"] == [3, 0, 1]
    # from the untrained weights the fourth step would find the first one's log-probs again
    assert told["rows"][3]["loss/kl_k3"] > 2 * told["rows"][0]["loss/kl_k3"]


def test_costs_are_the_tokens_times_their_prices(told):
    prompt, sampled, attempts = told["tokens"]
    first, second = told["rows"][:2]
    assert first["costs/train/tinker_prefill"] == pytest.approx(prompt * 1e-6)
    assert first["costs/train/tinker_sample"] == pytest.approx(sampled * 3e-6)
    trained = (prompt + sampled - attempts) * 5e-6
    assert first["costs/train/tinker_train"] == pytest.approx(trained)
    # the second step is trained on the same attempts, and samples nothing
    assert second["costs/all"] == pytest.approx(trained)


def test_older_states_are_deleted(told):
    assert told["deleted"] == [1, 2]
