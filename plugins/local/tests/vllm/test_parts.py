"""The parts of vLLM's engine that are plain functions, or processes of a few lines."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys

import pytest
from vllm_helpers import gone

from art_core.base.errors import ConfigError, EngineError
from art_core.endpoint.engine import Sampling, Token
from art_local.vllm import parent_watchdog
from art_local.vllm.client import completion_body, tokens_of
from art_local.vllm.command import arguments, environment
from art_local.vllm.crash_report import crash_report
from art_local.vllm.loop import LoopThread
from art_local.vllm.metrics import StepMetrics, read_page
from art_local.vllm.server import ServerProcess, free_port
from waiting import until

PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
vllm:num_requests_running{engine="0",model_name="base"} 3.0
vllm:num_requests_running{engine="1",model_name="base"} 1.0
vllm:generation_tokens_total{engine="0"} 1.2e+02
vllm:generation_tokens_created{engine="0"} 1.7e+09
process_cpu_seconds_total 7.0
"""


def test_a_request_asks_for_raw_log_probs_of_token_ids():
    sampling = Sampling(max_tokens=5, top_p=0.9, seed=4, top_logprobs=2, stop_token_ids=(9, 2))
    assert completion_body((7, 8), sampling, "m@3", (2,)) == {
        "model": "m@3", "prompt": [7, 8], "max_tokens": 5, "temperature": 1.0, "top_p": 0.9,
        "logprobs": 2, "stop_token_ids": [2, 9], "stream": True, "seed": 4,
        "return_token_ids": True, "return_tokens_as_token_ids": True,
        "add_special_tokens": False, "skip_special_tokens": False,
    }  # fmt: skip


def answer(**choice):
    whole = {
        "token_ids": [5, 2], "finish_reason": "stop",
        "logprobs": {
            "token_logprobs": [-1.0, -0.5],
            "top_logprobs": [{"token_id:5": -1.0, "token_id:6": -0.7}, {"token_id:2": -0.5}],
        },
    }  # fmt: skip
    return {"choices": [whole | choice]}


def test_alternatives_are_the_most_likely_tokens_whatever_was_sampled():
    assert tokens_of(answer(), 1) == [
        Token(5, -1.0, ((6, -0.7),)),
        Token(2, -0.5, ((2, -0.5),), "stop"),
    ]
    assert tokens_of(answer(), 0) == [Token(5, -1.0), Token(2, -0.5, (), "stop")]
    usage = {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}
    assert [t.cached_tokens for t in tokens_of(answer() | {"usage": usage}, 0)] == [None, 4]
    assert tokens_of(answer(token_ids=[], logprobs=None, finish_reason=None), 0) == []


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"error": {"message": "no such thing"}}, "vLLM refused the request: no such thing"),
        (answer(token_ids=None, logprobs=None), "ended the sequence with 'stop'"),
        (answer(token_ids=[5]), "no token ids with log-probs"),
        ({"choices": [{"text": "hi"}]}, "no token ids with log-probs"),
        (answer(finish_reason="abort"), "ended the sequence with 'abort'"),
    ],
)
def test_an_answer_that_cannot_be_read_says_why(odd, said):
    with pytest.raises(EngineError, match=said):
        tokens_of(odd, 0)


def test_a_dict_becomes_json_and_a_list_several_words(settings):
    extra = {"compilation_config": {"level": 0}, "allowed_origins": ["a", "b"], "seed": None}
    words = arguments(settings(extra=extra), 8)
    assert words[-5:] == ["--compilation-config", '{"level": 0}', "--allowed-origins", "a", "b"]


def test_the_servers_arguments_fit_the_recipe(settings):
    words = arguments(
        settings(max_rank=12, extra={"max-num-seqs": 2, "trust_remote_code": True}), 8
    )
    pairs = dict(itertools.pairwise(words))
    assert pairs["--max-lora-rank"] == "16"
    assert pairs["--logprobs-mode"] == "raw_logprobs"
    assert pairs["--generation-config"] == "vllm"
    assert (pairs["--max-num-seqs"], words.count("--max-num-seqs")) == ("2", 1)
    assert "--trust-remote-code" in words
    assert "--enforce-eager" in words
    assert "--enable-sleep-mode" not in words
    shared = arguments(settings(device="cuda:0", sleeps=True, memory_share=0.5), 8)
    assert {"--enable-sleep-mode", "0.5"} <= set(shared)
    assert "--no-enable-lora" not in shared


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"extra": {"api-key": "x"}}, "engine_args can't set 'api_key'"),
        ({"max_rank": 1024}, "LoRA up to rank 512, got lora_rank=1024"),
    ],
)
def test_arguments_that_cannot_be_say_why(settings, options, said):
    with pytest.raises(ConfigError, match=said):
        settings(**options)


def test_the_environment_keeps_what_the_user_set_and_drops_this_python(settings):
    outer = {"PYTHONPATH": "x", "VLLM_CPU_KVCACHE_SPACE": "8", "PATH": "/bin"}
    env = environment(settings(), "secret", outer)
    assert "PYTHONPATH" not in env
    assert env["VLLM_CPU_KVCACHE_SPACE"] == "8"
    assert env["VLLM_API_KEY"] == "secret"
    assert env["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "VLLM_SERVER_DEV_MODE" not in env


@pytest.mark.parametrize(
    ("device", "outer", "visible"),
    [("cuda:1", None, "1"), ("cuda:1", "4,6", "6"), ("cuda:0", "GPU-aa", "GPU-aa")],
)
def test_a_device_is_counted_as_this_process_counts(settings, device, outer, visible):
    base = {} if outer is None else {"CUDA_VISIBLE_DEVICES": outer}
    env = environment(settings(device=device, sleeps=True), "k", base)
    assert env["CUDA_VISIBLE_DEVICES"] == visible
    assert env["VLLM_SERVER_DEV_MODE"] == "1"


def test_the_page_of_figures_is_read_and_engines_are_added_up():
    assert read_page(PAGE) == {"num_requests_running": 4.0, "generation_tokens_total": 120.0}


def test_a_steps_figures_are_differences_of_counters_and_means_of_gauges():
    metrics = StepMetrics()
    metrics.sample({"num_requests_running": 2.0, "generation_tokens_total": 100.0}, 1.0)
    metrics.take()
    metrics.sample({"num_requests_running": 4.0, "generation_tokens_total": 150.0}, 1.0)
    metrics.sample({"num_requests_running": 2.0, "generation_tokens_total": 200.0}, 1.0)
    metrics.sample({"num_requests_running": 0.0, "generation_tokens_total": 200.0}, 1.0)
    assert metrics.take() == {
        "throughput/engine_running": 3.0, "throughput/engine_waiting": 0.0,
        "throughput/engine_kv_cache_use": 0.0, "throughput/engine_generation_tok_per_s": 50.0,
    }  # fmt: skip
    assert metrics.take() == {}


def test_counters_of_a_new_server_begin_at_zero():
    metrics = StepMetrics()
    metrics.sample({"generation_tokens_total": 500.0}, 1.0)
    metrics.take()
    metrics.sample({"generation_tokens_total": 0.0}, 1.0)
    metrics.sample({"generation_tokens_total": 60.0}, 2.0)
    assert metrics.take()["throughput/engine_generation_tok_per_s"] == 30.0


SERVER = (
    "import subprocess, sys, time;"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    "print('child', child.pid, flush=True); time.sleep(600)"
)


def server_and_child(log_file):
    until(lambda: log_file.exists() and log_file.read_text().endswith("\n"))
    return int(log_file.read_text().split()[-1])


@pytest.mark.parametrize("way", ["stop", "kill", "killed from outside"])
def test_a_server_takes_its_children_along(tmp_path, way):
    log_file = tmp_path / "log"
    process = ServerProcess.start([sys.executable, "-c", SERVER], os.environ, log_file)
    child = server_and_child(log_file)
    assert process.exit_reason is None
    if way == "killed from outside":
        os.kill(process.group, signal.SIGKILL)
        until(lambda: process.exit_reason is not None)
        assert process.exit_reason == "it ended with status 9"
    getattr(process, "kill" if way == "kill" else "stop")()
    assert gone(process.group)
    assert gone(child)


def test_a_server_dies_with_the_process_that_started_it(tmp_path):
    log_file = tmp_path / "log"
    code = (
        "import os, sys, time; from pathlib import Path;"
        "from art_local.vllm.server import ServerProcess;"
        f"server = [sys.executable, '-c', {SERVER!r}];"
        f"ServerProcess.start(server, os.environ, Path({str(log_file)!r})); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    child = server_and_child(log_file)
    parent.kill()
    parent.wait()
    assert gone(child)


def test_a_server_whose_watchdog_is_killed_is_ended_all_the_same(tmp_path):
    process = ServerProcess.start([sys.executable, "-c", SERVER], os.environ, tmp_path / "log")
    child = server_and_child(tmp_path / "log")
    process._watchdog.kill()
    until(lambda: process.exit_reason is not None)
    assert process.exit_reason == "its watchdog was killed"
    if sys.platform == "linux":
        assert gone(process.group)
    process.kill()
    assert gone(child)


def test_a_log_that_grows_too_long_keeps_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(parent_watchdog, "LOG_BYTES", 1000)
    monkeypatch.setattr(parent_watchdog, "KEPT_BYTES", 100)
    log = tmp_path / "log"
    with log.open("ab", buffering=0) as server:
        server.write(b"a line\n" * 142)
        parent_watchdog.shorten(str(log))
        assert log.stat().st_size == 142 * 7
        server.write(b"a line\nRuntimeError: the end\n")
        parent_watchdog.shorten(str(log))
        assert log.stat().st_size == 100
        server.write(b"ValueError: after it\n")
    assert crash_report(log, since=900).startswith("RuntimeError: the end | ValueError: after it")


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_a_group_that_ended_by_itself_is_not_killed_again(tmp_path, way, monkeypatch):
    """Its id may be that of another process by then."""
    process = ServerProcess.start([sys.executable, "-c", "pass"], os.environ, tmp_path / "log")
    process._watchdog.wait(10)
    killed = []
    monkeypatch.setattr(os, "killpg", lambda *group: killed.append(group))
    getattr(process, way)()
    assert (process.exit_reason, killed) == ("it ended with status 0", [])


def test_a_program_that_does_not_exist_says_so(tmp_path):
    with pytest.raises(EngineError, match="/no/python could not be started: .*No such file"):
        ServerProcess.start(["/no/python"], os.environ, tmp_path / "log")


def test_the_end_of_a_log_is_what_is_more_than_progress(tmp_path):
    log = tmp_path / "log"
    assert crash_report(log) == ""
    log.write_text("x INFO 1 fine\n" * 30)
    assert crash_report(log) == " | ".join(["x INFO 1 fine"] * 3)
    log.write_text("no such device\n\n" + "x INFO 1 fine\n" * 30)
    assert crash_report(log) == "no such device"


VLLM_LOG = """\
(APIServer pid=1) ERROR 11-21 19:01:02 [serving.py:1] ValueError: of an earlier request
(Worker pid=3) ERROR 11-21 19:06:59 [multiproc_executor.py:1063] Traceback (most recent call last):
(Worker pid=3) ERROR 11-21 19:06:59 [multiproc_executor.py:1063]     gen.get_offset()
(Worker pid=3) ERROR 11-21 19:06:59 [multiproc_executor.py:1063]     ^^^^^^^^^^^^^^^^
(Worker pid=3) ERROR 11-21 19:06:59 [multiproc_executor.py:1063] RuntimeError: no offset
(EngineCore pid=2) ERROR 11-21 19:06:59 [core.py:1512] RuntimeError: Worker failed
(APIServer pid=1) ERROR 11-21 19:06:59 [async_llm.py:906] vllm.v1.EngineDeadError: see above
(APIServer pid=1) INFO 11-21 19:07:00 [core_client.py:777] [shutdown] MPClient: complete
nanobind: leaked 4 instances!
 - leaked instance 0x7f101f654b28 of type "triton._C.libtriton.ir.attribute"
 - ... skipped remainder
multiprocessing/resource_tracker.py:254: UserWarning: resource_tracker: 1 leaked semaphore
  warnings.warn('resource_tracker: There appear to be %d '
"""


def test_the_end_of_a_log_begins_with_what_was_raised_last(tmp_path):
    log = tmp_path / "log"
    log.write_text(VLLM_LOG)
    told = crash_report(log)
    assert told.startswith("RuntimeError: no offset | RuntimeError: Worker failed | ")
    assert "gen.get_offset()" in told
    assert told.endswith("EngineDeadError: see above")
    assert "leaked" not in told


def test_the_end_of_a_log_says_which_context_would_fit(tmp_path):
    log = tmp_path / "log"
    log.write_text(
        "(EngineCore pid=2) ERROR 11-21 19:06:59 [core.py:1512] ValueError: To serve at least one "
        "request with the model's max seq len (40960), (5.62 GiB KV cache is needed, which is "
        "larger than the available KV cache memory (4.4 GiB). Based on the available memory, the "
        "estimated maximum model length is 32064. Try increasing `gpu_memory_utilization` (which "
        "also controls CPU memory on the CPU backend) or decreasing `max_model_len` when\n"
    )
    assert "length is 32064" in crash_report(log)
    assert "decreasing `max_model_len`" in crash_report(log)


def test_the_end_of_a_log_is_that_of_the_newest_server(tmp_path):
    log = tmp_path / "log"
    log.write_text("RuntimeError: of the server before\n")
    for said in ("one", "two"):
        process = ServerProcess.start(["/bin/echo", said], os.environ, log)
        process._watchdog.wait(10)
        assert process.crash_report == said


def test_a_port_is_nobody_elses_while_it_is_held():
    held = [free_port() for _ in range(20)]
    assert len({sock.getsockname()[1] for sock in held}) == 20
    for sock in held:
        sock.close()


async def test_a_loop_is_closed_from_inside_another_one_and_twice():
    loop = LoopThread("test")
    assert loop.run(asyncio.sleep(0, "done"), 5, "sleeping") == "done"
    waiting = loop.submit(asyncio.sleep(60))
    loop.close()
    loop.close()
    assert (loop.closed, waiting.cancelled()) == (True, True)


def test_a_loop_whose_thread_ended_is_closed():
    loop = LoopThread("test")
    loop._loop.call_soon_threadsafe(loop._loop.stop)
    loop._thread.join(5)
    with pytest.raises(EngineError, match="the engine is closed"):
        loop.submit(asyncio.sleep(0))
    loop.close()
    assert loop.closed
