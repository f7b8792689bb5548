import pytest

from art_core.reason import reason_of


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
