import ast
import inspect
import subprocess
import sys

import pytest

import art_core as art


def imported_for_type_checkers():
    """Names and modules of the `if TYPE_CHECKING:` block."""
    (block,) = (
        node
        for node in ast.parse(inspect.getsource(art)).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    return {
        alias.name: statement.module
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


@pytest.mark.parametrize("name", art.__all__)
def test_a_public_name_resolves_to_the_thing_of_that_name_in_its_module(name):
    vars(art).pop(name, None)
    assert getattr(art, name) is vars(sys.modules[art._MODULE_OF[name]])[name]
    assert getattr(getattr(art, name), "__name__", name) == name
    assert name in dir(art)


def test_every_list_of_public_names_agrees_with_the_others():
    assert sorted(art.__all__) == sorted(art._MODULE_OF)
    assert imported_for_type_checkers() == art._MODULE_OF
    assert list(art.__all__) == sorted(art.__all__)
    assert len(set(art.__all__)) == len(art.__all__)


@pytest.mark.parametrize("name", art.__all__)
def test_a_public_thing_says_what_it_is(name):
    thing = getattr(art, name)
    assert not (inspect.isclass(thing) or inspect.isfunction(thing)) or thing.__doc__


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'art_core' has no attribute 'TrainableModle'"):
        art.TrainableModle  # noqa: B018


def test_a_star_import_gives_the_public_names():
    code = "from art_core import *; print(Trajectory.__name__, backend.__name__)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["Trajectory", "backend"]


@pytest.mark.parametrize(
    "code",
    [
        "import art_core",
        "from art_core import *",
        "import art_core.model.trainable, art_core.client.openai_client",
    ],
)
def test_importing_loads_nothing_heavy(code):
    heavy = "{'torch', 'openai', 'wandb', 'pydantic', 'transformers', 'numpy', 'tqdm', 'pytest'}"
    code = f"import sys; {code}; print(*{heavy} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def test_the_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert art.__version__ == version("art-core")


def test_names_of_art_are_found_where_art_has_them():
    from art_core import metrics

    assert metrics.track_api_cost is art.track_api_cost
    assert metrics.MetricsBuilder is art.MetricsBuilder
    with pytest.raises(AttributeError, match=r"'art_core.metrics' has no attribute 'tracked'"):
        metrics.tracked  # noqa: B018


def test_the_local_backend_is_that_of_the_plugin(monkeypatch):
    plugins = art.Plugins()
    monkeypatch.setattr("art_core.hooks.host.installed_plugins", lambda: plugins)
    with pytest.raises(art.ConfigError, match="pip install art-local"):
        art.LocalBackend  # noqa: B018

    class Local:
        @art.hookimpl
        def art_backends(self):
            return [art.BackendSpec(name="local", create=dict, summary="")]

    plugins.register(Local(), "local")
    assert art.LocalBackend(gpu_cost_per_hour_usd=2.25) == {"gpu_cost_per_hour_usd": 2.25}


def test_ruler_is_found_where_art_has_it():
    from art_core import rewards

    assert art.ruler_score_group is rewards.ruler_score_group
