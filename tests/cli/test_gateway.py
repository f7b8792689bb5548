"""`art gateway`, with agents that know only HTTP."""

from __future__ import annotations

import itertools
import threading

import httpx2
import pytest

import art_core as art
from art_core.cli.gateway import run_gateway
from art_core.cli.main import main, parser
from art_core.log.reader import LoggedRun
from art_core.testing.echo import EchoBackend

WORDS = ["gateway", "--model", "agent", "--base-model", "echo-base", "--backend", "near"]


@pytest.fixture
def plugins(monkeypatch, shelf):
    backend = EchoBackend()

    class Offer:
        @art.hookimpl
        def art_backends(self):
            return [art.BackendSpec(name="near", create=lambda: backend, summary="")]

    plugins = art.Plugins()
    plugins.register(Offer(), "near")
    monkeypatch.setattr("art_core.model.backend.installed_plugins", lambda: plugins)
    monkeypatch.setenv("ART_SINKS", "")
    return plugins


def attempts(url, key, endings):
    """Begin and end attempts, as programs elsewhere do."""
    with httpx2.Client(headers={"Authorization": f"Bearer {key}"}) as http:
        for ending in endings:
            one = http.post(f"{url}/attempts", json={"scenario_id": "s"}).json()
            asked = [{"role": "user", "content": "hi"}]
            headers = {"Authorization": f"Bearer {one['api_key']}"}
            body = {"model": one["model_name"], "messages": asked}
            http.post(f"{one['base_url']}/chat/completions", json=body, headers=headers)
            http.post(f"{url}/attempts/{one['id']}/end", json=ending)


def test_a_step_is_trained_on_attempts_that_other_programs_end(plugins, shelf):
    given = ["--steps", "2", "--groups", "2", "--size", "2", "--set", "learning_rate=0.25"]
    parts = run_gateway(parser(plugins).parse_args([*WORDS, *given]), plugins)
    served = next(parts)
    assert served.text == [
        f"export GATEWAY_URL={served.values['url']}",
        f"export GATEWAY_KEY={served.values['key']}",
    ]
    rewards = [{"reward": reward} for reward in (0.0, 1.0, 0.5, 1.0)]
    endings = itertools.chain(rewards, [{"failure": "crashed"}] * 4)
    agents = threading.Thread(
        target=attempts, args=(served.values["url"], served.values["key"], endings)
    )
    agents.start()
    steps = list(parts)
    agents.join()
    assert steps == [
        "step 1: mean reward 0.625 of 4 attempts, 0 failures",
        "step 2: mean reward none of 0 attempts, 4 failures",
    ]
    run = LoggedRun(shelf.path / "gateway" / "models" / "agent")
    assert run.steps("train") == [1, 2]


def test_the_key_of_the_environment_is_not_printed(plugins, capsys, monkeypatch):
    monkeypatch.setenv("ART_GATEWAY_KEY", "a-key-of-some-length")
    assert main([*WORDS, "--steps", "0"], plugins) == 0
    printed = capsys.readouterr().out
    assert "a-key-of-some-length" not in printed
    assert "export GATEWAY_KEY=$ART_GATEWAY_KEY" in printed


def test_options_that_do_not_fit_are_refused_in_one_line(plugins, capsys):
    assert main([*WORDS, "--groups", "0"], plugins) == 2
    assert main([*WORDS, "--host", "0.0.0.0"], plugins) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "--groups must be at least 1, got 0" in first
    assert "can be reached from other machines" in second


def test_ctrl_c_closes_the_run_as_interrupted(plugins, shelf):
    parts = run_gateway(parser(plugins).parse_args(WORDS), plugins)
    url = next(parts).values["url"]
    with pytest.raises(KeyboardInterrupt):
        parts.throw(KeyboardInterrupt())
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{url}/health")
    run = LoggedRun(shelf.path / "gateway" / "models" / "agent")
    assert run.status() == "interrupted"
