"""Exported weights: each form loaded by what is meant to load it, equal to what was served."""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, HubServer
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import art_core as art
from art_core.base.errors import BackendError, ConfigError
from art_core.cli.main import main
from art_local.export.export import export_weights
from art_local.export.gguf import VARIABLE
from art_local.export.ollama import modelfile, turn_texts
from art_local.models.find import resolve_base_model
from art_local.session.checkpoints import DamagedError
from art_local.testing.tiny import save_tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
QUESTION = [{"role": "user", "content": "Name a letter."}]


async def train(base, runs, name="agent", rewards=((1.0, 0.0), (1.0, 0.0)), **options):
    """Train a model for two steps; return its run and what it then answers without chance."""
    model = art.TrainableModel(
        name=name, project="export", base_model=str(base), base_path=runs, sinks=[]
    )
    backend = art.backend("local", device="cpu", progress=False, **options)
    await model.register(backend)
    client = model.openai_client()

    async def rollout(reward, seed):
        completion = await client.chat.completions.create(
            model=model.get_inference_name(), messages=QUESTION, max_tokens=8, seed=seed
        )
        return art.Trajectory(
            messages_and_choices=[*QUESTION, completion.choices[0]], reward=reward
        )

    for step, pair in enumerate(rewards):
        attempts = [await rollout(reward, seed) for seed, reward in enumerate(pair)]
        trained = await model.train(
            [art.TrajectoryGroup(attempts)], learning_rate=3e-2, mask_truncated=False
        )
        await model.log(metrics={"reward": float(2 - step)}, split="val", step=trained.step)
    answer = await client.chat.completions.create(
        model=model.get_inference_name(), messages=QUESTION, max_tokens=12, temperature=0,
        logprobs=True,
    )  # fmt: skip
    await client.close()
    await backend.close()
    await model.close()
    return art.open_run(model.run_dir), list(answer.choices[0].token_ids)


def greedy(model, directory, count):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    prompt = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**prompt, max_new_tokens=count, do_sample=False)
    return out[0, prompt["input_ids"].shape[1] :].tolist()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    base = save_tiny_model(folder / "base")
    return *asyncio.run(train(base, folder / "runs", dtype="float32")), base


async def test_the_adapter_is_peft_s_and_answers_as_the_served_model(trained, tmp_path):
    run, answer, base = trained
    export_weights(run, "adapter", tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert greedy(plain, tmp_path / "out", len(answer)) != answer
    tuned = PeftModel.from_pretrained(plain, tmp_path / "out")
    assert greedy(tuned, tmp_path / "out", len(answer)) == answer


async def test_the_merged_model_answers_as_the_served_one(trained, tmp_path):
    run, answer, _ = trained
    done = export_weights(run, "merged", tmp_path / "out")
    assert (done.step, done.dtype) == (2, "float32")
    assert done.bytes == sum(f.stat().st_size for f in (tmp_path / "out").iterdir())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert merged.dtype == torch.float32
    assert greedy(merged, tmp_path / "out", len(answer)) == answer


async def test_bfloat16_is_rounded_as_the_engine_rounds(tmp_path):
    base = save_tiny_model(tmp_path / "whole")
    half = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "base")
    run, _ = await train(tmp_path / "base", tmp_path / "runs", dtype="bfloat16")
    export_weights(run, "merged", tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    exact = PeftModel.from_pretrained(half.float(), run.checkpoints()[2]).merge_and_unload()
    names = [n for n in merged if "proj" in n]
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    kept, wanted = 0.0, 0.0
    for name in names:
        update = exact.state_dict()[name] - before.state_dict()[name]
        kept += float(((merged[name].float() - before.state_dict()[name]) * update).sum())
        wanted += float((update * update).sum())
    assert {merged[name].dtype for name in names} == {torch.bfloat16}
    assert 0.9 < kept / wanted < 1.1


async def test_all_trained_weights_are_exported_whole(tmp_path):
    base = save_tiny_model(tmp_path / "base")
    run, answer = await train(base, tmp_path / "runs", dtype="float32", full_finetune=True)
    shutil.rmtree(base)  # the checkpoint contains the model
    export_weights(run, "merged", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert greedy(model, tmp_path / "out", len(answer)) == answer
    with pytest.raises(ConfigError, match="trained all weights, so there is no adapter"):
        export_weights(run, "adapter", tmp_path / "none")
    assert not (tmp_path / "none").exists()


async def test_an_export_goes_to_a_url_and_comes_back_as_a_base_model(
    trained, tmp_path, monkeypatch
):
    run, answer, _ = trained
    monkeypatch.setenv("ART_CACHE", str(tmp_path / "cache"))
    url = f"memory://{tmp_path.name}/agent"
    export_weights(run, "merged", url)
    copy = resolve_base_model(url)
    model = AutoModelForCausalLM.from_pretrained(copy)
    assert greedy(model, copy, len(answer)) == answer
    assert resolve_base_model(url) == copy
    with pytest.raises(ConfigError, match="exists and is not empty"):
        export_weights(run, "adapter", url)
    with pytest.raises(BackendError, match="could not be copied"):
        resolve_base_model(f"memory://{tmp_path.name}/none")
    with pytest.raises(ConfigError, match="can't be opened"):
        export_weights(run, "adapter", "nowhere://agent")


async def test_best_is_the_step_with_the_best_metric(trained, tmp_path):
    run, _, _ = trained
    assert export_weights(run, "adapter", tmp_path / "best", step="best").step == 1
    with pytest.raises(ConfigError, match="no checkpoint of step 7; it has: 1, 2"):
        export_weights(run, "adapter", tmp_path / "none", step=7)
    with pytest.raises(ConfigError, match="is read only by step='best'"):
        export_weights(run, "adapter", tmp_path / "none", metric="val/reward")
    with pytest.raises(ConfigError, match="no metric 'val/wins'"):
        export_weights(run, "adapter", tmp_path / "none", step="best", metric="val/wins")
    with pytest.raises(ConfigError, match="has a value of val/reward or train/reward"):
        (tmp_path / "history.jsonl").touch()
        shutil.copytree(run.path / "checkpoints", tmp_path / "checkpoints")
        export_weights(art.LoggedRun(tmp_path), "adapter", tmp_path / "none", step="best")


async def test_the_card_states_reward_cost_and_data(trained, tmp_path):
    run, _, _ = trained
    export_weights(run, "adapter", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: base\n" in card  # not the path of this machine
    assert "| mean reward of the validation attempts | 2.000 | 1.000 |" in card
    assert "Data: 4 attempts in 2 groups of 2 stored steps." in card
    assert "Cost up to the newest row" in card


async def test_damaged_and_foreign_weights_are_refused(trained, tmp_path):
    run, _, base = trained
    other = save_tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="over another base model"):
        export_weights(run, "merged", tmp_path / "out", base_model=other)
    copied = tmp_path / "copied"
    shutil.copytree(run.path, copied)
    weights = copied / "checkpoints" / "0002" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-7] ^= 1
    weights.write_bytes(data)
    with pytest.raises(DamagedError, match="other contents than written"):
        export_weights(art.LoggedRun(copied), "merged", tmp_path / "out", base_model=base)
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(ConfigError, match="has no checkpoint"):
        export_weights(art.LoggedRun(copied), "merged", tmp_path / "out")
    assert not (tmp_path / "out").exists()


async def test_places_that_are_taken_or_closed_are_refused(trained, tmp_path, monkeypatch):
    run, _, _ = trained
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an empty directory"):
        export_weights(run, "adapter", tmp_path / "taken")
    (tmp_path / "empty").mkdir()
    assert export_weights(run, "adapter", tmp_path / "empty").files >= 4
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ConfigError, match="needs a token with write access"):
        export_weights(run, "adapter", "hub:you/agent")
    with pytest.raises(ConfigError, match="no name of a repository"):
        export_weights(run, "adapter", "hub:you/a/b")
    for wrong in ("int8", "int4"):
        with pytest.raises(ConfigError, match="dtype must be one of"):
            export_weights(run, "merged", tmp_path / "out", dtype=wrong)
    with pytest.raises(ConfigError, match="no format 'pickle'"):
        export_weights(run, "pickle", tmp_path / "out")
    with pytest.raises(ConfigError, match="stored in float32"):
        export_weights(run, "adapter", tmp_path / "out", dtype="float16")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The hub on this machine, as huggingface_hub finds it, with a right token."""
    server = HubServer()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    yield server
    server.close()


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # in huggingface_hub
@pytest.mark.parametrize("form", ["adapter", "merged"])
async def test_the_hub_gets_each_file_of_an_export(trained, tmp_path, hub, form):
    run, _, _ = trained
    export_weights(run, form, tmp_path / "here")
    done = export_weights(run, form, "hub:you/agent")
    here = {file.name: file.read_bytes() for file in (tmp_path / "here").iterdir()}
    assert hub.committed == {"you/agent": here}
    assert hub.created["you/agent"]["visibility"] == "private"
    assert len(hub.large) == 1
    assert (done.files, done.to) == (len(here), "hub:you/agent")
    assert not [*(tmp_path / "scratch").iterdir()]


@pytest.mark.parametrize(
    ("name", "token", "reason"),
    [
        ("you/agent", "hf_wrong", r"does not accept the token in HF_TOKEN \(401, Invalid user"),
        ("them/agent", TOKEN, r"may not write to them/agent \(403, You don't have the rights"),
    ],
)
async def test_an_export_that_the_hub_refuses_stays_on_this_machine(
    trained, tmp_path, hub, monkeypatch, name, token, reason
):
    run, _, _ = trained
    export_weights(run, "adapter", tmp_path / "here")
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(BackendError, match=reason) as caught:
        export_weights(run, "adapter", f"hub:{name}")
    assert "\n" not in str(caught.value)
    (kept,) = (tmp_path / "scratch").glob("*/model")
    assert f"hf upload {name} {kept}" in str(caught.value)
    assert {f.name: f.read_bytes() for f in kept.iterdir()} == {
        f.name: f.read_bytes() for f in (tmp_path / "here").iterdir()
    }
    assert hub.committed == {}


async def test_a_hub_that_is_not_there_is_an_error(trained, hub):
    hub.close()
    with pytest.raises(BackendError, match="the hub did not take you/agent: ConnectError"):
        export_weights(trained[0], "adapter", "hub:you/agent")


async def test_a_full_disk_leaves_nothing(trained, tmp_path):
    run, _, _ = trained
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(BackendError, match="was not written"):
            export_weights(run, "adapter", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert list(tmp_path.iterdir()) == []


CONVERTER = """
import sys
from pathlib import Path
model, file = Path(sys.argv[1]), Path(sys.argv[3])
if "fail" in sys.argv[0]:
    sys.exit("NotImplementedError: BPE pre-tokenizer was not recognized")
print("INFO:converting", file=sys.stderr)
print("Writing:   0%|   \\rWriting:  50%|    \\rWriting: 100%|  ", file=sys.stderr)
assert (model / "tokenizer.json").is_file()
file.write_bytes(b"GGUF" + sys.argv[5].encode())
"""


async def test_gguf_and_ollama_are_written_by_the_converter(trained, tmp_path, monkeypatch):
    run, _, _ = trained
    script = tmp_path / "convert.py"
    script.write_text(CONVERTER)
    monkeypatch.setenv(VARIABLE, str(script))
    done = export_weights(run, "ollama", tmp_path / "out", dtype="int8")
    assert done.files == 3
    assert (tmp_path / "out" / "model.gguf").read_bytes() == b"GGUFq8_0"
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert text.startswith('FROM ./model.gguf\nTEMPLATE """{{ range .Messages }}{{ if eq .Role')
    assert 'PARAMETER stop "<|im_end|>"' in text
    with pytest.raises(ConfigError, match="dtype must be one of"):
        export_weights(run, "gguf", tmp_path / "none", dtype="int4")
    script.rename(tmp_path / "fail.py")
    with pytest.raises(ConfigError, match="is not a file"):
        export_weights(run, "gguf", tmp_path / "none")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "fail.py"))
    with pytest.raises(ConfigError, match="pre-tokenizer was not recognized"):
        export_weights(run, "gguf", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def tokenizer_with(directory: Path, template: str):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = template
    return tokenizer


PLAIN = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'system' %}<<{{ m.content }}>>{% else %} {{ m.content }}</s>"
    "{% endif %}{% endfor %}"
)
DEFAULT = (
    "{% if messages[0].role != 'system' %}<system>Be kind.</system>\n{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
COUNTED = "{% for m in messages %}{{ loop.index }}:{{ m.content }};{% endfor %}"


@pytest.mark.parametrize("template", [PLAIN, DEFAULT], ids=["plain", "default system"])
def test_a_template_for_ollama_has_the_texts_of_the_tokenizer_s(tiny_directory, template):
    texts = turn_texts(tokenizer_with(tiny_directory, template))
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, *QUESTION]
    wanted = tokenizer_with(tiny_directory, template).apply_chat_template(
        talk, tokenize=False, add_generation_prompt=True
    )
    assert texts.render(talk) == wanted
    assert texts.user[0] in texts.go()


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (COUNTED, "do not all have the same text"),
        ("{{ messages[1].content }}", "can't be written for Ollama"),
        (PLAIN.replace("</s>", "</s>\u200b"), r"drops '\\u200b'"),
    ],
    ids=["counted", "one message", "not printable"],
)
def test_a_template_that_ollama_would_change_is_refused(tiny_directory, template, reason):
    with pytest.raises(ConfigError, match=reason):
        turn_texts(tokenizer_with(tiny_directory, template))


@pytest.mark.parametrize(
    ("end", "line"),
    [
        ("<｜end▁of▁sentence｜>", 'PARAMETER stop "<｜end▁of▁sentence｜>"'),
        ('<"end">', 'PARAMETER stop """<"end">"""'),
    ],
)
def test_a_stop_is_written_without_escapes_which_ollama_does_not_know(
    tiny_directory, tmp_path, end, line
):
    (tmp_path / "generation_config.json").write_text("{}")
    tokenizer = tokenizer_with(tiny_directory, PLAIN.replace("</s>", end))
    assert line in modelfile("model.gguf", tokenizer, tmp_path).splitlines()


async def test_the_command_writes_and_reports(trained, tmp_path, capsys):
    run, _, _ = trained
    place = str(tmp_path / "out")
    command = ["export-weights", str(run.path), "--as", "adapter", "--to", place, "--json"]
    assert main([*command, "--step", "1"]) == 0
    reported = json.loads(capsys.readouterr().out)
    assert (reported["step"], reported["form"], reported["to"]) == (1, "adapter", place)
    with pytest.raises(SystemExit):
        main(["export-weights", str(run.path), "--as", "adapter", "--to", place, "--step", "x"])
    assert "give a number, newest or best" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the converter's package needs a POSIX pip")
def test_the_published_converter_writes_what_gguf_reads(tmp_path):
    from gguf import GGUFReader

    from art_local.export.gguf import convert_to_gguf

    base = resolve_base_model("HuggingFaceTB/SmolLM2-135M-Instruct", progress=False)
    convert_to_gguf(base, tmp_path / "model.gguf", "f16")
    fields = GGUFReader(tmp_path / "model.gguf").fields
    assert "tokenizer.chat_template" in fields
    assert bytes(fields["general.architecture"].parts[-1]).decode() == "llama"
