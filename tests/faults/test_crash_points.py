"""A process that dies at any point of a step, between trajectories, checkpoint, row and cursor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# A fork of this process trains two steps; from the second on, what it does to the disk is counted,
# and it dies right before the n-th thing. Then another fork goes on to the end.
TRAIN = '''
import asyncio, importlib, json, os, sys
import art_core as art
import art_core.hooks.host, art_core.testing.echo, art_core.model.trainable
kind, base, points = sys.argv[1], sys.argv[2], sys.argv[3]
if kind == "local":
    import torch
    from art_local.testing.tiny import save_tiny_model
    import art_local.backend, art_local.session.model_session, art_local.training.policy
    import huggingface_hub.hf_file_system, peft, starlette.applications, torch._dynamo, uvicorn
    torch.set_num_threads(1)
    options = dict(device="cpu", dtype="float32", lora_rank=4, lora_alpha=8, progress=False)
    base_model = str(save_tiny_model(__import__("pathlib").Path(base) / "tiny"))

class Sink:
    def open(self, run): self.path = run.run_dir / "taken"
    def close(self, run): ...
    def write(self, rows):
        with self.path.open("a") as file:
            file.writelines(f"{row.seq}\\n" for row in rows)

class Doom:
    """Counts what is done below a directory, and dies before the n-th thing."""
    def __init__(self, directory, n):
        self.directory, self.n, self.done, self.armed = directory, n, 0, False
        sys.addaudithook(self.heard)
        for name in ("write", "fsync", "fdatasync"):
            setattr(os, name, self.before(getattr(os, name)))
    def heard(self, event, told):
        changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
        if event == "open":
            changes = isinstance(told[1], str) and set(told[1]) & set("wax+")
        if self.armed and changes and str(told[0]).startswith(self.directory):
            self.count()
    def before(self, real):
        def called(fd, *more):
            if self.armed and os.readlink(f"/proc/self/fd/{fd}").startswith(self.directory):
                self.count()
            return real(fd, *more)
        return called
    def count(self):
        self.done += 1
        if self.done == self.n:
            os._exit(9)

def choice(step):
    if kind == "echo":
        return {"role": "assistant", "content": "yes"}
    return {"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop",
            "prompt_token_ids": [1, 2], "token_ids": [3 + step, 4],
            "logprobs": {"content": [{"logprob": -5.0}] * 2}, "policy_version": step}

def groups(step):
    turns = [{"role": "user", "content": "go"}, choice(step)]
    return [art.TrajectoryGroup([
        art.Trajectory(messages_and_choices=turns, reward=reward) for reward in (0.0, 1.0)])]

async def life(directory, until, doom=None, tell=None):
    spec = art.SinkSpec(name="file", create=Sink, summary="")
    if kind == "local":
        backend = art.backend("local", **options)
    else:
        from art_core.testing.echo import EchoBackend
        backend = EchoBackend(); globals()["base_model"] = "echo"
    model = art.TrainableModel(name="m", project="p", base_model=base_model, base_path=directory,
                               sinks=[spec])
    await model.register(backend)
    start = await model.get_step()
    for step in range(start, until):
        if doom is not None and step == 1:
            doom.armed = True
        model.metrics_builder("train").add_cost("train/judge", 0.25)
        await model.train(groups(step), learning_rate=1e-3)
        if tell is not None:
            os.write(tell, b"%d\\n" % model.run.history.last.seq)
    reports = await model.close()
    await backend.close()
    assert reports["file"].undelivered == 0, reports
    return start, [c.step for c in await backend.checkpoints(model)] if kind == "echo" else None

def fork(work):
    out, into = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(out)
            work(into)
            os._exit(0)
        except BaseException:
            __import__("traceback").print_exc()
            os._exit(1)
    os.close(into)
    said = b"".join(iter(lambda: os.read(out, 4096), b""))
    os.close(out)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said.decode().split()

def die(n):
    directory = f"{base}/{n}"
    os.mkdir(directory)
    code, told = fork(lambda into: asyncio.run(life(directory, 2, Doom(directory, n), into)))
    resume, start = fork(lambda into: os.write(into, b"%d" % asyncio.run(life(directory, 4))[0]))
    print(json.dumps([n, code, told, resume, start]), flush=True)
    return code

# what each fork needs is loaded once, here
art.TrainableModel(name="m", project="p", base_model="b", base_path=base, sinks=[])
if points == "all":
    n = 1
    while die(n) == 9:
        n += 1
else:
    for n in map(int, points.split(",")):
        die(n)
'''


def died_at(kind, base, points):
    command = [sys.executable, "-W", "ignore", "-c", TRAIN, kind, str(base), points]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1500, env=alone, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def assert_it_goes_on(run_dir, told, resume, start, assert_right):
    """Whatever the point: no acknowledged row is lost, and steps go on from a whole checkpoint."""
    assert resume == 0
    rows = assert_right(run_dir, map(int, told))
    (start,) = map(int, start)
    # The checkpoint is there before its row: a crash in between costs that step its row.
    assert len(told) <= start <= 2
    assert [row.step for row in rows if row.attempt == 2 and "reward/mean" in row.metrics] == [
        *range(start + 1, 5)
    ]
    assert [row.step for row in rows if row.attempt == 1] in ([1], [1, 2])
    taken = [int(seq) for seq in (run_dir / "taken").read_text().split()]
    assert sorted(set(taken)) == [row.seq for row in rows]
    assert taken == sorted(taken) or len(taken) > len(rows)
    for file in filter(Path.is_file, (run_dir / "trajectories" / "train").rglob("*")):
        assert all(json.loads(line) for line in file.read_text().splitlines())
    left = [p.name for p in (run_dir / "checkpoints").iterdir() if p.name.startswith(".")]
    assert left == []


def some(trials, first, last, every):
    """All points in full numbers, else some."""
    return "all" if trials >= 1000 else ",".join(map(str, range(first, last, every)))


@pytest.mark.timeout(1800)
def test_a_step_that_dies_at_any_point_goes_on_from_a_whole_checkpoint(
    tmp_path, trials, assert_right
):
    points, said = died_at("echo", tmp_path, some(trials, 1, 22, 2))
    assert {code for _, code, *_ in points} <= {0, 9}, said
    assert sum(code == 9 for _, code, *_ in points) > 8
    for n, _, told, resume, start in points:
        run_dir = tmp_path / str(n) / "p" / "models" / "m"
        assert_it_goes_on(run_dir, told, resume, start, assert_right)


@pytest.mark.torch
@pytest.mark.timeout(1800)
def test_a_step_of_the_local_backend_that_dies_at_any_point_goes_on(tmp_path, trials, assert_right):
    pytest.importorskip("art_local")
    from art_local.session.checkpoints import CheckpointStore

    points, said = died_at("local", tmp_path, some(trials, 5, 24, 9))
    assert {code for _, code, *_ in points} <= {0, 9}, said
    assert sum(code == 9 for _, code, *_ in points) >= 3
    for n, _, told, resume, start in points:
        run_dir = tmp_path / str(n) / "p" / "models" / "m"
        assert_it_goes_on(run_dir, told, resume, start, assert_right)
        store = CheckpointStore(run_dir / "checkpoints")
        assert store.steps()[-1] == 4
        for step in store.steps():
            store.read(step)
