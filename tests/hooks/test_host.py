import importlib.metadata
import sys
from textwrap import dedent

import pytest

import art_core as art
from art_core.base.errors import ConfigError, PluginError
from art_core.hooks.host import installed_plugins
from art_core.metrics.receipt import TokenRates, TokenUsage
from art_core.testing.echo import EchoBackend


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution with one plugin module: `install(name, code)`."""
    monkeypatch.syspath_prepend(tmp_path)
    modules = []
    here = {e.name for e in importlib.metadata.entry_points(group="art_core")}
    monkeypatch.setenv("ART_BLOCK", ",".join(here))

    def write(name, code, *, dist=None, version="1.2"):
        module = f"art_test_{dist or name}"
        modules.append(module)
        (tmp_path / f"{module}.py").write_text("import art_core as art\n" + dedent(code))
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n"
        )
        (info / "entry_points.txt").write_text(f"[art_core]\n{name} = {module}\n")

    yield write
    for module in modules:
        sys.modules.pop(module, None)


GOOD = """
    @art.hookimpl
    def art_backends():
        return [art.BackendSpec(name="good", create=dict, summary="trains")]
"""


def test_an_installed_plugin_is_found_by_its_entry_point(install):
    install("good", GOOD, version="3.4")
    plugins = art.Plugins.discover()
    assert plugins.backends().keys() == {"good"}
    assert plugins.backend("good").summary == "trains"
    info = next(i for i in plugins.infos() if i.name == "good")
    assert (info.version, info.hooks, info.error) == ("3.4", ("art_backends",), None)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import a_package_that_is_not_there", "ModuleNotFoundError: No module named"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit('no licence')", "SystemExit: no licence"),
        ("def broken(:", "SyntaxError"),
        ("@art.hookimpl\ndef art_backend(): ...", r"no hook 'art_backend'.*mean 'art_backends'\?"),
        ("@art.hookimpl\ndef art_gpu_rate(gpu): ...", "gpu"),
        ("def art_backends(): ...", "hook 'art_backends' is not marked. Put @art_core.hookimpl"),
        (
            "@art.hookimpl(hookwrapper=True)\ndef art_gpu_rate(device): yield",
            r"'art_gpu_rate' is a wrapper of the old style. Use hookimpl\(wrapper=True\)",
        ),
        (
            "@art.hookimpl(wrapper=True)\ndef art_gpu_rate(device): return 1.0",
            "not a generator function",
        ),
    ],
)
def test_a_plugin_that_is_broken_when_it_is_loaded_is_set_aside(install, caplog, code, reason):
    install("bad", code)
    install("good", GOOD)
    plugins = art.Plugins.discover()
    assert plugins.backends().keys() == {"good"}
    (info,) = (i for i in plugins.infos() if i.error)
    assert (info.name, info.version, info.hooks) == ("bad", "1.2", ())
    assert info.error.startswith("plugin 'bad' is broken: ")
    with pytest.raises(PluginError, match=reason):
        raise plugins.problems["bad"]
    assert caplog.text.count("plugin 'bad' is broken") == 1


def test_an_interrupt_at_import_is_the_users(install):
    install("bad", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        art.Plugins.discover()


@pytest.mark.parametrize(("strict", "raises"), [("1", True), ("0", False), ("", False)])
def test_art_strict_raises_what_is_broken(install, monkeypatch, strict, raises):
    install("bad", "1 / 0")
    monkeypatch.setenv("ART_STRICT", strict)
    if not raises:
        assert "bad" in art.Plugins.discover().problems
        return
    with pytest.raises(PluginError, match="plugin 'bad' is broken") as caught:
        art.Plugins.discover()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_art_block_leaves_a_plugin_out_before_it_is_imported(install, monkeypatch):
    install("bad", "raise SystemExit")
    install("good", GOOD)
    monkeypatch.setenv("ART_BLOCK", "local, bad")
    plugins = art.Plugins.discover()
    assert not plugins.problems
    assert "good" in plugins.backends()
    assert "art_test_bad" not in sys.modules


def test_a_second_plugin_of_the_same_name_does_not_take_the_first_one_with_it(install):
    install("core", GOOD)
    plugins = art.Plugins.discover()
    assert "console" in plugins.sinks()
    assert "good" not in plugins.backends()
    assert "another plugin has the name 'core'" in str(plugins.problems["core (again)"])


def test_two_plugins_with_one_backend_name_are_told_apart_by_the_error(install):
    install("first", GOOD)
    install("second", GOOD)
    with pytest.raises(
        PluginError, match="backend 'good' is offered by the plugins 'second' and 'first'"
    ) as caught:
        art.Plugins.discover().backends()
    assert "ART_BLOCK=second" in str(caught.value)


def test_a_plugin_that_takes_a_built_in_sinks_name_is_the_one_to_block():
    plugins = art.Plugins.discover()
    spec = art.SinkSpec(name="console", create=dict, summary="")
    plugins.register(plugin(art_sinks=lambda: [spec]), "mine")
    with pytest.raises(PluginError, match="ART_BLOCK=mine"):
        plugins.sinks()


def plugin(**hooks):
    """An object with hooks, each a plain function."""

    class Plugin:
        pass

    for name, function in hooks.items():
        setattr(Plugin, name, staticmethod(art.hookimpl(function)))
    return Plugin()


@pytest.fixture
def host():
    """A host with plugins that answer, asked before and after what a test adds."""

    def add(**hooks):
        plugins = art.Plugins()
        plugins.register(plugin(**answers("first")), "first")
        plugins.register(plugin(**hooks), "bad")
        return plugins

    return add


def answers(name):
    return {
        "art_backends": lambda: [art.BackendSpec(name=name, create=dict, summary="")],
        "art_sinks": lambda: [art.SinkSpec(name=name, create=dict, summary="")],
        "art_metrics": lambda: [art.MetricSpec(key=f"{name}/x", unit="1", help="")],
        "art_rollup": lambda leaves: {"train/first": 1.0},
        "art_usage": lambda response: TokenUsage(input_tokens=1),
        "art_token_rates": lambda model: TokenRates(input_per_million=1, output_per_million=2),
        "art_gpu_rate": lambda device: 2.0,
    }


ASK = {
    "art_backends": lambda p: list(p.backends()) == ["first"],
    "art_sinks": lambda p: list(p.sinks()) == ["first"],
    "art_metrics": lambda p: "first" in p.taxonomy().sections,
    "art_rollup": lambda p: p.rollup({}, {}, "train", ()) == {"train/first": 1.0},
    "art_usage": lambda p: p.usage({}, "openai").input_tokens == 1,
    "art_token_rates": lambda p: p.token_rates("openai", "m", None).output_per_million == 2,
    "art_gpu_rate": lambda p: p.gpu_rate("H100") == 2.0,
}


def raises():
    raise OSError("down")


def exits():
    raise SystemExit(1)


def later():
    yield art.BackendSpec(name="lazy", create=dict, summary="")
    raise OSError("down")


@pytest.mark.parametrize("hook", ASK)
@pytest.mark.parametrize("fault", [raises, exits])
def test_a_hook_that_fails_costs_its_plugin_alone(host, caplog, hook, fault):
    plugins = host(**{hook: fault})
    assert ASK[hook](plugins)
    assert plugins.problems.keys() == {"bad"}
    assert ASK[hook](plugins)
    assert caplog.text.count("plugin 'bad' is broken") == 1


WRONG = [
    ("art_backends", 3),
    ("art_backends", ["local"]),
    ("art_backends", [{"name": "local"}]),
    ("art_backends", [art.BackendSpec(name="local", create="art_local", summary="")]),
    ("art_sinks", [art.SinkSpec(name="x", create=None, summary="")]),
    ("art_sinks", [art.SinkSpec(name=None, create=dict, summary="")]),
    ("art_metrics", 3),
    ("art_metrics", [{"key": "own/x"}]),
    ("art_metrics", [art.MetricSpec(key="reward/mean", unit="apples", help="")]),
    ("art_rollup", [1.0]),
    ("art_rollup", {"train/x": "fast"}),
    ("art_rollup", {"costs/cum/x": 1.0}),
    ("art_usage", {"input_tokens": 1}),
    ("art_token_rates", (1.0, 2.0)),
    ("art_gpu_rate", "cheap"),
    ("art_gpu_rate", -1.0),
    ("art_gpu_rate", float("nan")),
]


@pytest.mark.parametrize(("hook", "answer"), WRONG)
def test_a_hook_that_answers_something_else_costs_its_plugin_alone(host, hook, answer):
    plugins = host(**{hook: lambda: answer})
    assert ASK[hook](plugins)
    assert plugins.problems.keys() == {"bad"}


def test_a_generator_that_fails_halfway_is_set_aside_whole(host):
    assert list(host(art_backends=later).backends()) == ["first"]


@pytest.mark.parametrize("hook", ASK)
def test_a_hook_without_an_answer_lets_the_next_one_answer(host, hook):
    plugins = host(**{hook: lambda: None})
    assert ASK[hook](plugins)
    assert not plugins.problems


def test_a_failing_hook_is_raised_when_strict():
    plugins = art.Plugins(strict=True)
    plugins.register(plugin(art_gpu_rate=raises), "bad")
    with pytest.raises(PluginError, match="OSError: down"):
        plugins.gpu_rate("H100")


def test_the_plugin_that_was_added_last_is_asked_first(host):
    assert host(art_gpu_rate=lambda device: 9.0).gpu_rate("H100") == 9.0
    assert art.Plugins().gpu_rate("H100") is None
    assert art.Plugins().usage({}, "openai") is None
    assert art.Plugins().token_rates("openai", "m", None) is None


def test_a_hook_takes_the_arguments_that_it_names():
    seen = {}

    def art_token_rates(usage, provider):
        seen.update(usage=usage, provider=provider)

    plugins = art.Plugins()
    plugins.register(plugin(art_token_rates=art_token_rates), "mine")
    plugins.token_rates("openai", "m", TokenUsage(input_tokens=3))
    assert seen == {"usage": TokenUsage(input_tokens=3), "provider": "openai"}


def test_a_hook_may_have_a_name_of_its_own():
    class Mine:
        @art.hookimpl(specname="art_gpu_rate")
        def price(self, device):
            return 3.0

    plugins = art.Plugins()
    plugins.register(Mine(), "mine")
    assert plugins.gpu_rate("H100") == 3.0


def test_derived_metrics_are_finite_and_new_and_bare_names_go_under_the_split(host):
    derived = {"bare": 2, "train/odd": float("inf"), "loss/train": 9.0, "train/first": 7.0}
    plugins = host(art_rollup=lambda leaves: derived)
    assert plugins.derives
    assert not art.Plugins().derives
    row = plugins.rollup({"loss/train": 1.0}, {}, "train", {"loss/train"})
    assert row == {"train/bare": 2.0, "train/first": 7.0}


def test_a_plugin_that_derives_a_total_is_told_whose_it_is(host):
    plugins = host(art_rollup=lambda: {"costs/cum/x": 1.0})
    plugins.rollup({}, {}, "train", ())
    assert "'costs/cum/x' is a total, which the core keeps" in str(plugins.problems["bad"])


def test_what_a_plugin_derives_is_no_cost(host):
    plugins = host(art_rollup=lambda: {"costs/per_point": 1.0})
    assert "costs/per_point" not in plugins.rollup({}, {}, "train", ())
    assert "'costs/per_point' would be among the dollars" in str(plugins.problems["bad"])


def test_a_plugins_metrics_join_the_catalogue():
    plugins = art.Plugins()
    spec = art.MetricSpec(key="judge/agreement", unit="share", help="with people")
    plugins.register(plugin(art_metrics=lambda: [spec]), "judge")
    assert plugins.taxonomy().spec("judge/agreement") == spec
    assert plugins.taxonomy().place("judge/other", "val") == "judge/other"


@pytest.fixture
def chosen():
    plugins = art.Plugins()
    specs = [art.BackendSpec(name=n, create=dict, summary="") for n in ("local", "farm")]
    plugins.register(plugin(art_backends=lambda: specs), "two")
    return plugins


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("locall", "no backend 'locall'; installed: farm, local. Did you mean 'local'?"),
        ("unsloth", "no backend 'unsloth'; installed: farm, local. pip install art-unsloth"),
        ("unslot", "no backend 'unslot'; installed: farm, local. pip install art-unsloth"),
        ("zzz", "no backend 'zzz'; installed: farm, local"),
    ],
)
def test_an_unknown_backend_is_told_with_what_there_is_and_what_to_install(chosen, asked, message):
    with pytest.raises(ConfigError) as caught:
        chosen.backend(asked)
    assert str(caught.value) == message


def test_an_unknown_sink_is_told_likewise(chosen):
    with pytest.raises(ConfigError) as caught:
        chosen.sink("wandb")
    assert str(caught.value) == "no sink 'wandb'; installed: none. pip install art-wandb"


def test_a_name_whose_plugin_is_broken_tells_why(install):
    install("bad", "import a_package_that_is_not_there")
    with pytest.raises(PluginError, match="no backend 'bad': plugin 'bad' is broken") as caught:
        art.Plugins.discover().backend("bad")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.fixture
def farm(install):
    install(
        "farm",
        """
        ECHO = "art_core.testing.echo:EchoBackend"

        class HalfMade:
            def register(self, model): ...

        class Made(HalfMade):
            unregister = train = step = checkpoints = delete_checkpoints = close = None

            def __init__(self, given):
                self.given = given

        def make(*, url, workers=1):
            return Made((url, workers))

        def make_any(**options):
            return Made(options)

        def make_nothing():
            import torch_of_nobody

        @art.hookimpl
        def art_backends():
            return [
                art.BackendSpec(name="farm", create=make, summary=""),
                art.BackendSpec(name="any", create=make_any, summary=""),
                art.BackendSpec(name="local", create=make_nothing, summary=""),
                art.BackendSpec(name="lacking", create=make_nothing, summary=""),
                art.BackendSpec(name="half", create=HalfMade, summary=""),
                art.BackendSpec(name="told", create=ECHO, summary=""),
                art.BackendSpec(name="far", create="datetime:timezone.near", summary=""),
                art.BackendSpec(name="away", create="torch_of_nobody:Backend", summary=""),
            ]
        """,
    )
    installed_plugins.cache_clear()
    yield
    installed_plugins.cache_clear()


@pytest.mark.usefixtures("farm")
def test_a_backend_is_made_with_its_options():
    assert art.backend("farm", url="u", workers=2).given == ("u", 2)
    assert art.backend("any", what="ever").given == {"what": "ever"}


@pytest.mark.usefixtures("farm")
def test_what_lacks_a_method_of_a_backend_is_told_when_it_is_made():
    message = "backend 'half' is made as a HalfMade, which has no unregister, train, step, .* close"
    with pytest.raises(art.PluginError, match=message):
        art.backend("half")


@pytest.mark.usefixtures("farm")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"url": "u", "worker": 2},
            "no backend 'farm' option 'worker'; known: url, workers. Did you mean 'workers'?",
        ),
        ({"workers": 2}, "backend 'farm' needs url. Give url=..."),
    ],
)
def test_options_of_a_backend_are_checked_before_it_is_made(options, message):
    with pytest.raises(ConfigError) as caught:
        art.backend("farm", **options)
    assert str(caught.value) == message


@pytest.mark.usefixtures("farm")
@pytest.mark.parametrize(
    ("name", "remedy"),
    [("local", "art-local"), ("lacking", "torch_of_nobody"), ("away", "torch_of_nobody")],
)
def test_a_backend_whose_packages_are_missing_says_which(name, remedy):
    with pytest.raises(ConfigError) as caught:
        art.backend(name)
    said = f"backend {name!r} needs 'torch_of_nobody', which is not installed. pip install {remedy}"
    assert str(caught.value) == said


def test_the_plugins_of_a_process_are_discovered_once():
    assert installed_plugins() is installed_plugins()


LOSS = """
    @art.hookimpl
    def art_losses():
        return [art.LossSpec(name={name!r}, create=lambda: max, summary="the largest")]
"""


def test_a_plugin_offers_losses_that_a_step_takes_by_name(install):
    install("losing", LOSS.format(name="largest"))
    losses = art.Plugins.discover().losses()
    config = art.TrainConfig.of(losses, loss_fn="largest", importance_sampling_level="sequence")
    assert config.loss.spec.create() is max
    assert (config.loss.name, config.loss.source) == ("largest", "the largest")
    assert art.TrainConfig.of(losses, loss_fn="ppo").loss.surrogate == "ratio"
    with pytest.raises(ConfigError, match=r"no loss 'larges'; .* Did you mean 'largest'\?"):
        art.TrainConfig.of(losses, loss_fn="larges")


@pytest.mark.parametrize("name", ["cispo", "a:b"])
def test_a_plugin_whose_loss_has_the_name_of_another_is_set_aside(install, name):
    install("losing", LOSS.format(name=name))
    plugins = art.Plugins.discover()
    assert plugins.losses() == {}
    assert f"'{name}', a name that is taken" in str(plugins.problems["losing"])


def test_a_plugin_that_offers_no_loss_spec_is_set_aside(install):
    install("losing", "@art.hookimpl\ndef art_losses(): return [max]")
    plugins = art.Plugins.discover()
    assert plugins.losses() == {}
    assert "not a LossSpec" in str(plugins.problems["losing"])


def test_two_plugins_with_one_loss_name_are_told_apart(install):
    install("first", LOSS.format(name="largest"))
    install("second", LOSS.format(name="largest"))
    with pytest.raises(PluginError, match="loss 'largest' is offered by the plugins"):
        art.Plugins.discover().losses()


ADVANTAGES = """
    @art.hookimpl
    def art_advantages():
        return [art.AdvantageSpec(name={name!r}, create=lambda: sorted)]
"""


def test_a_plugin_offers_advantages_that_a_step_takes_by_name(install):
    install("ranking", ADVANTAGES.format(name="ranks"))
    offered = art.Plugins.discover().advantages()
    config = art.TrainConfig.of({}, offered, advantage_fn="ranks")
    assert config.advantage_fn.create() is sorted
    assert art.TrainConfig.of({}, offered, advantage_fn="a:b").advantage_fn == "a:b"
    assert art.TrainConfig.of({}, offered).advantage_fn is None
    with pytest.raises(ConfigError, match=r"no advantages 'rank'; .* Did you mean 'ranks'\?"):
        art.TrainConfig.of({}, offered, advantage_fn="rank")


@pytest.mark.parametrize("name", ["rloo", "a:b"])
def test_a_plugin_whose_advantages_have_another_name_is_set_aside(install, name):
    install("ranking", ADVANTAGES.format(name=name))
    plugins = art.Plugins.discover()
    assert plugins.advantages() == {}
    assert f"'{name}', a name that is taken" in str(plugins.problems["ranking"])


@pytest.mark.usefixtures("farm")
def test_a_backend_told_as_a_text_is_imported_when_it_is_made():
    assert isinstance(art.backend("told", gpu_cost_per_hour_usd=3.0), EchoBackend)
    with pytest.raises(art.PluginError, match="'far' is to be made by 'datetime:timezone.near'"):
        art.backend("far")


def test_a_text_that_does_not_say_where_a_backend_lies_is_told():
    plugins = art.Plugins()

    class Lost:
        @art.hookimpl
        def art_backends(self):
            return [art.BackendSpec(name="lost", create="my.backend.Lost", summary="")]

    plugins.register(Lost(), "lost")
    with pytest.raises(PluginError, match=r"made by 'my.backend.Lost'. Give \"module:name\""):
        plugins.backend("lost")
