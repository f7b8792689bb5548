"""Base models without a chat template."""

from __future__ import annotations

import json
import shutil

import pytest

import art_core as art
from art_local.models.load import load_tokenizer
from art_local.options import read_template
from art_local.session.checkpoints import CHAT_TEMPLATE, template_for

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
OPTIONS = {"device": "cpu", "dtype": "float32", "lora_rank": 4, "progress": False}


@pytest.fixture
def bare(tiny_directory, tmp_path):
    """The tiny model without its chat template."""
    directory = tmp_path / "bare"
    shutil.copytree(tiny_directory, directory, ignore=shutil.ignore_patterns("*.jinja"))
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def test_a_template_is_given_as_text_or_as_a_file(tmp_path):
    assert read_template(None) is None
    assert read_template(TEMPLATE) == TEMPLATE
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    assert read_template(tmp_path / "chat.jinja") == TEMPLATE
    assert read_template(str(tmp_path / "chat.jinja")) == TEMPLATE
    for wrong in ("chatml", tmp_path, "x" * 5000, "a\0b"):
        with pytest.raises(art.ConfigError, match="neither a jinja template nor a file"):
            read_template(wrong)


def test_a_base_model_without_a_template_is_refused_and_takes_a_given_one(bare):
    with pytest.raises(art.ConfigError, match=r"bare has no chat template.*chat_template="):
        load_tokenizer(bare, None)
    messages = [{"role": "user", "content": "go"}]
    prompt = load_tokenizer(bare, TEMPLATE).apply_chat_template(messages, tokenize=False)
    assert prompt == "[user] go\n"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for m in", "TemplateSyntaxError"),
        ("{{ raise_exception('no users') }}", "no users"),
        ("{{ messages[7].content }}", "UndefinedError"),
        ("{# nothing #}", "leaves a user message out"),
    ],
)
def test_a_template_that_renders_no_message_is_refused(tiny_directory, template, problem):
    with pytest.raises(art.ConfigError, match=problem):
        load_tokenizer(tiny_directory, template)


def test_a_run_goes_on_with_the_template_of_its_checkpoint(tmp_path, caplog):
    assert template_for(None, None) is template_for(None, tmp_path) is None
    (tmp_path / CHAT_TEMPLATE).write_text(TEMPLATE)
    assert template_for(None, tmp_path) == template_for(TEMPLATE, tmp_path) == TEMPLATE
    assert not caplog.text
    assert template_for("{{ other }}", tmp_path) == "{{ other }}"
    assert "is not the one that checkpoint" in caplog.text


async def test_a_checkpoint_carries_a_given_template_and_resumes_with_it(bare, tmp_path):
    answers = []
    for options in ({"chat_template": TEMPLATE}, {}):
        backend = art.backend("local", **OPTIONS, **options)
        model = art.TrainableModel(
            name="m", project="p", base_model=str(bare), base_path=tmp_path / "runs", sinks=[]
        )
        try:
            await model.register(backend)
            messages = [{"role": "user", "content": "go"}]
            answers.append(
                await model.openai_client().chat.completions.create(
                    model=model.get_inference_name(), messages=messages, max_tokens=4, seed=1
                )
            )
            if options:
                choice = answers[0].choices[0]
                rollout = art.Trajectory(messages_and_choices=[*messages, choice], reward=1.0)
                result = await model.train([art.TrajectoryGroup([rollout])])
                assert (result.checkpoint / CHAT_TEMPLATE).read_text() == TEMPLATE
        finally:
            await model.openai_client().close()
            await backend.close()
            await model.close()
    prompts = [answer.choices[0].prompt_token_ids for answer in answers]
    assert prompts[0] == prompts[1] == list(b"[user] go\n")
