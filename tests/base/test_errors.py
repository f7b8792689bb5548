import difflib
import pickle
from types import SimpleNamespace

import pytest

from art_core.base import errors
from art_core.base.errors import (
    ArtError,
    ConfigError,
    InfrastructureError,
    RolloutError,
    RolloutFailure,
    unknown,
)

KINDS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ArtError)
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arguments", [("no such thing",), ("no such thing", "Make one.")])
def test_an_error_pickles(kind, arguments):
    copy = pickle.loads(pickle.dumps(kind(*arguments)))
    assert type(copy) is kind
    assert str(copy) == str(kind(*arguments))


@pytest.mark.parametrize(
    ("problem", "remedy", "text"),
    [
        ("no such thing", "", "no such thing"),
        ("no such thing", "Make one.", "no such thing. Make one."),
        ("Did you mean 'x'?", "pip install x", "Did you mean 'x'? pip install x"),
        ("It is gone.", "Make one.", "It is gone. Make one."),
    ],
)
def test_an_error_reads_as_problem_and_remedy(problem, remedy, text):
    assert str(ArtError(problem, remedy)) == text


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (errors.ConfigError, ValueError),
        (errors.MetricError, ValueError),
        (errors.PricingError, LookupError),
        (errors.RolloutError, RuntimeError),
        (errors.BackendError, RuntimeError),
        (errors.EngineError, errors.BackendError),
        (errors.HistoryError, RuntimeError),
        (errors.SinkError, RuntimeError),
    ],
)
def test_an_error_is_the_builtin_that_fits_too(kind, base):
    assert issubclass(kind, base)


def test_the_groups_of_a_rollout_error_pickle_with_it():
    error = RolloutError("3 of 4 rollouts failed")
    assert error.groups == ()
    error.groups = ("a group",)
    assert pickle.loads(pickle.dumps(error)).groups == ("a group",)


@pytest.mark.parametrize(
    ("asked", "known", "text"),
    [
        ("locl", ["unsloth", "local"], "no x 'locl'; known: local, unsloth. Did you mean 'local'?"),
        ("zzz", ["local"], "no x 'zzz'; known: local"),
        ("zzz", [], "no x 'zzz'; known: none"),
        (3, ["3"], "no x '3'; known: 3. Did you mean '3'?"),
    ],
)
def test_an_unknown_name_is_told_with_what_there_is_and_the_nearest(asked, known, text):
    assert unknown("x", asked, known) == text


def test_of_very_many_names_the_most_alike_are_told():
    many = [f"reward/r{number}" for number in range(50)] + ["train/x"]
    told = unknown("metric", "train/y", many)
    assert told.startswith("no metric 'train/y'; known: train/x, reward/r")
    assert told.endswith(" and 43 more. Did you mean 'train/x'?")
    assert unknown("metric", "a", many[:40]).count("reward/") == 40


def test_where_names_are_known_from_can_be_said():
    assert unknown("run", "a", ["b"], known_as="in .art") == "no run 'a'; in .art: b"


def test_errors_of_configuration_are_caught_as_value_errors():
    with pytest.raises(ValueError, match="nothing"):
        raise ConfigError("nothing")


def test_a_very_long_name_is_cut_and_not_compared():
    text = unknown("model", "x" * 1_000_000, ["x" * 150])
    assert text == f"no model '{'x' * 199}…'; known: {'x' * 150}"


def test_of_very_many_names_those_around_the_asked_one_are_compared(monkeypatch):
    compared = []

    def matches(asked, names, **options):
        compared.append(len(names))
        return difflib.get_close_matches(asked, names, **options)

    monkeypatch.setattr(errors, "difflib", SimpleNamespace(get_close_matches=matches))
    names = [f"model-{n:05}" for n in range(20_000)]
    for asked in ("model-0a000", "a", "z"):
        assert f"no model {asked!r}; known: model-" in unknown("model", asked, names)
    assert "Did you mean 'model-1" in unknown("model", "model-10x00", names)
    assert set(compared) == {1000}


def test_the_errors_of_plugins_have_a_public_module():
    from art_core import errors as public

    assert public.ArtError is ArtError
    assert public.unknown is unknown


def test_a_failure_of_infrastructure_has_a_reason_of_its_own():
    error = InfrastructureError("the server is down")
    assert RolloutFailure.of(error).reason == "infrastructure"
    assert RolloutFailure.of(error, "bad_reward").reason == "bad_reward"
    assert RolloutFailure.of(ValueError("no")).reason == "raised"
    outer = ValueError("no reward")
    outer.__cause__ = error
    assert RolloutFailure.of(outer).reason == "infrastructure"
