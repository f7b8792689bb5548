import pytest

import art_core as art
from art_core.base.errors import reason_of, settings_without_secrets, without_secrets


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (ValueError("first line\nsecond line"), "ValueError: first line"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (KeyError("step"), "KeyError: 'step'"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
    ],
)
def test_a_reason_is_the_type_and_the_first_line_of_the_message(error, told):
    assert reason_of(error) == told


def test_a_long_reason_is_cut_and_says_so():
    told = reason_of(ValueError("x y " * 1000))
    assert len(told) == 300
    assert told.endswith("…")


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abcDEF1234567890",
        "em_live_0123456789abcdef",
        "hf_abcdefghijklmnop",
        "ghp_abcdefghijklmnop",
        "0123456789abcdef0123456789abcdef01234567",
        "user:pass@",
        "Bearer abc.def.ghi",
        "token=abcdef",
        "swordfish",
    ],
)
def test_no_secret_is_told(monkeypatch, secret):
    monkeypatch.setenv("MY_API_KEY", "swordfish")
    message = f"401 from https://{secret}api.example.com" if "@" in secret else f"refused: {secret}"
    told = reason_of(RuntimeError(message))
    hidden = secret.removeprefix("Bearer ").removeprefix("token=").removesuffix("@")
    assert hidden not in told
    assert "***" in told


def test_a_short_value_of_the_environment_is_no_secret(monkeypatch):
    monkeypatch.setenv("PRESS_ANY_KEY", "no")
    assert reason_of(ValueError("no such step")) == "ValueError: no such step"


@pytest.mark.parametrize(
    "name",
    [
        "api_key", "apiKey", "API_KEY", "WANDB_API_KEY", "openai-api-key", "token", "hf_token",
        "accessToken", "password", "db_password", "client_secret", "credentials", "private_key",
    ],
)  # fmt: skip
def test_a_setting_that_is_a_secret_is_not_kept(name):
    config = {"judge": [{name: "abc"}], name: ["abc", {"x": "abc"}]}
    assert settings_without_secrets(config) == {
        "judge": [{name: "***"}],
        name: ["***", {"x": "abc"}],
    }


@pytest.mark.parametrize(
    "config",
    [
        {"tokenizer": "gpt2", "max_tokens": 100, "sort_key": "reward", "pad_token": "<pad>"},
        {"commit": "0123456789abcdef0123456789abcdef01234567", "monkey": "capuchin"},
        {"token": 5, "api_key": None, "password": "", "skip_special_tokens": True, "x": (1, 2)},
    ],
)
def test_settings_that_are_no_secrets_stay(config):
    stays = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}
    assert settings_without_secrets(config) == stays


def test_a_secret_inside_a_settings_text_is_not_kept(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "swordfish")
    config = {
        "url": "https://user:pass@host/",
        "command": "run sk-proj-abcDEF123",
        "note": "swordfish!",
    }
    assert settings_without_secrets(config) == {
        "url": "https://***@host/",
        "command": "run ***",
        "note": "***!",
    }


def test_ordinary_words_are_no_secrets():
    text = "in skip_special_tokens: skeletons, hfdatasets and pkg_resources"
    assert without_secrets(text) == text


async def test_a_run_keeps_and_sends_its_config_without_secrets(tmp_path):
    config = {"api_key": "abc-123", "learning_rate": 1e-5}
    model = art.Model(name="m", project="p", base_path=tmp_path, sinks=[], config=config)
    kept = {"api_key": "***", "learning_rate": 1e-5}
    assert model.run.info.config == kept
    await model.close()
    assert "abc-123" not in (model.run_dir / "model.json").read_text()
    assert model.config == config


def test_a_failed_rollout_is_stored_without_secrets(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "swordfish")
    try:
        raise RuntimeError("401 for sk-proj-abcDEF1234567890")
    except RuntimeError as error:
        error.add_note("sent swordfish")
        failure = art.RolloutFailure.of(error)
    assert failure.message == "401 for ***"
    assert "sk-proj" not in failure.traceback
    assert "sent ***" in failure.traceback


def test_settings_of_a_pydantic_model_are_those_of_its_dict():
    class Settings:
        def model_dump(self, *, mode: str) -> dict:
            return {"mode": mode, "api_key": "abc"}

    config = {"judge": Settings()}
    assert settings_without_secrets(config) == {"judge": {"mode": "json", "api_key": "***"}}
