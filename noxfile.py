"""The jobs behind `make`, in its environment; `wheels`, `client`, `environments` make their own."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import nox

ROOT = Path(__file__).parent
EXAMPLE = ROOT / "docs" / "examples" / "art-sink-example"
PLUGINS = [ROOT / "compat", *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]
LOCKS = ROOT / "locks"
LOCK = LOCKS / "all.txt"
BUILD = ("hatchling", "editables")
PACKAGES = str(ROOT / "plugins" / "local" / "art_local" / "vllm" / "packages.py")
LACKING = str(ROOT / "tests" / "shared" / "lacking.py")
BACKENDS = ("local", "unsloth", "ray", "tinker", "serverless")
INDEX = ("--index", os.environ["TORCH_INDEX"]) if os.environ.get("TORCH_INDEX") else ()
TRACKERS = ("mlflow", "tensorboard", "trackio")
ENVIRONMENTS = ("openenv", "verifiers")  # their packages do not fit beside the others
APART = ("unsloth", *ENVIRONMENTS)
CLIENTS = {"client": "published_client", "cookbook": "tinker_cookbook"}
HERE = "not vllm and not judges and not ray and not ranks"  # those have jobs of their own
FOLDERS = ("art_core", "compat", "plugins", "tests", "examples", "benchmarks", "docs", "locks")
SOURCES = (*FOLDERS, "conftest.py", "noxfile.py")

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "test"]


def _run(session: nox.Session, *command: str, **env: str) -> None:
    tool, *arguments = command
    scripts = Path(sysconfig.get_path("scripts"))
    program = sys.executable if tool == "python" else str(scripts / tool)
    # Tests start many processes: modules are compiled once, whatever the caller's setting.
    env = {"PYTHONDONTWRITEBYTECODE": "", **env}
    session.run(program, *arguments, env=env, external=True)


def _pytest(session: nox.Session, *arguments: str, **env: str) -> None:
    _run(session, "python", "-m", "pytest", "-q", *arguments, **env)


def _pip(python: str, constraint: Path) -> tuple[str, ...]:
    quiet = ("-qq", "--disable-pip-version-check")
    return (python, "-m", "pip", "install", *quiet, "--constraint", str(constraint))


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff, import contracts, spelling, plain English, and that plugins stay weightless."""
    sources = [path for path in SOURCES if (ROOT / path).exists()]
    _run(session, "ruff", "check", *sources)
    _run(session, "ruff", "format", "--check", *sources)
    # Plugins that are not installed are looked at too.
    packages = os.pathsep.join(str(path) for path in (ROOT, *PLUGINS))
    _run(session, "lint-imports", "--no-logo", PYTHONPATH=packages)
    _run(session, "codespell")
    _run(session, "python", "docs/words.py")
    _pytest(session, "tests/test_weightless.py")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict."""
    _run(session, "mypy")


@nox.session
def test(session: nox.Session) -> None:
    """Run the core's tests, which must cover it whole, and the plugins'; `nox -s test -- tests/cli
    -x` runs some, without the gate.
    """
    if session.posargs:
        _run(session, "python", "-m", "pytest", *session.posargs)
        return
    marked = ("-m", "pytest", "--durations=25", "-m", f"not slow and {HERE}")
    # Not pytest-cov: art-core's own import would happen before it measures.
    measured = ("-m", "coverage", "run", "--parallel-mode", *marked)
    longer = [f"tests/{name}" for name in ("faults", "testing")]
    longer += sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/test_*.py"))
    # Tests wait as long as they compute, so there are more streams than cores.
    streams = {
        "local": (*marked, "plugins/local/tests"),
        "plugins": (*marked, *(tests for tests in _plugin_tests() if "local" not in tests)),
        "longer": (*measured, *longer),
    }
    _run(session, "coverage", "erase")
    with ExitStack() as beside:
        for name, command in streams.items():
            beside.enter_context(_beside(session, name, *command))
        _run(session, "python", *measured, "tests", *(f"--ignore={path}" for path in longer))
    _run(session, "coverage", "combine", "--quiet")
    _run(session, "coverage", "report")


@nox.session
def slow(session: nox.Session) -> None:
    """Run the tests that take long and prove what seldom changes, which `test` leaves out."""
    _pytest(session, "--durations=25", "-m", f"slow and {HERE}", "tests", *_plugin_tests())


def _plugin_tests() -> list[str]:
    left_out = (*TRACKERS, *ENVIRONMENTS)
    return [str(path / "tests") for path in PLUGINS if path.name not in left_out]


@contextmanager
def _beside(session: nox.Session, name: str, *command: str) -> Iterator[None]:
    """Run Python with arguments beside a block; then show its output, and fail if it failed."""
    output = ROOT / ".nox" / f"{name}.log"
    output.parent.mkdir(exist_ok=True)
    session.log(f"beside it, with output in {output}: {shlex.join(command)}")
    with output.open("wb") as file:
        beside = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
            process_group=0,
        )
        try:
            yield
            beside.wait()
        finally:
            if beside.poll() is None:
                os.killpg(beside.pid, signal.SIGINT)
                beside.wait()
            session.run("cat", str(output), external=True)
    if beside.returncode:
        session.error(f"exit status {beside.returncode}: {shlex.join(command)}")


@nox.session
def lock(session: nox.Session) -> None:
    """Pin everything that `make` and `art engines install` install, for Python 3.11 to 3.13; pins
    that still fit stay, unless `-- --upgrade` is given.
    """
    _run(session, "python", "locks/compile.py", "lock", *session.posargs)


@nox.session
def oldest(session: nox.Session) -> None:
    """Run the tests with the lowest versions that our distributions promise."""
    folder = _fresh("oldest")
    _run(session, "python", "locks/compile.py", "oldest", str(folder))
    _install_and_test(session, folder, folder / "lowest.txt")


@nox.session
def newest(session: nox.Session) -> None:
    """Ignore the lock: run the tests with the newest versions and group failures by package."""
    folder = _fresh("newest")
    _run(session, "python", "locks/compile.py", "newest", str(folder))
    _install_and_test(session, folder, Path(os.devnull))


def _fresh(name: str) -> Path:
    folder = ROOT / ".nox" / name
    venv.create(folder, with_pip=True, clear=True)
    return folder


def _install_and_test(session: nox.Session, folder: Path, constraint: Path) -> None:
    """Install everything within a constraint, run all tests, report the failing ones."""
    python, alone = str(folder / "bin" / "python"), folder / "unsloth.txt"
    session.run(python, PACKAGES, "--constraint", str(constraint), *INDEX, external=True)
    pip = _pip(python, constraint)
    session.run(*pip, *BUILD, external=True)
    plugins = [str(path) for path in PLUGINS if path.name not in (*APART, "local")]
    every = [".[dev,openai,endpoint,plot]", "./plugins/local[8bit,images]", *plugins]
    editable = [word for path in every for word in ("--editable", path)]
    session.run(*pip, "--no-build-isolation", *editable, external=True)
    unsloth = ("--no-deps", "--no-build-isolation", "--editable", "plugins/unsloth")
    session.run(*_pip(python, alone), *unsloth, "-r", str(alone), external=True)
    tested = [str(path / "tests") for path in PLUGINS if path.name not in ENVIRONMENTS]
    results = {folder / "core.xml": ["tests"], folder / "plugins.xml": tested}
    for result, tests in results.items():
        report = (f"--junitxml={result}", "-q", "--no-header", "-m", "not ranks", *session.posargs)
        session.run(
            python, "-m", "pytest", *report, *tests, external=True, success_codes=[0, 1],
            env={"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"},
        )  # fmt: skip
    session.run(python, "locks/report.py", *map(str, results), external=True)


@nox.session
def faults(session: nox.Session) -> None:
    """Run the fault suite in full numbers."""
    _pytest(session, "tests/faults", "tests/tokens", FAULT_TRIALS="1000")


@nox.session
def vllm(session: nox.Session) -> None:
    """Install vLLM into the cache of engines, unless it is there; run the tests that need it."""
    _run(session, "art", "engines", "install", "vllm", *INDEX)
    _pytest(session, "-m", "vllm", "plugins/local/tests", *session.posargs)


@nox.session
def ray(session: nox.Session) -> None:
    """Train on a Ray cluster of three nodes on this machine; nodes and actors are killed."""
    _pytest(session, "-m", "ray", "plugins/ray/tests/test_cluster.py", *session.posargs)


@nox.session
def trackers(session: nox.Session) -> None:
    """Test the sinks of the trackers that `make test` leaves out."""
    _pytest(session, *(f"plugins/{name}/tests" for name in TRACKERS))


def _apart(session: nox.Session, name: str) -> tuple[str, tuple[str, ...]]:
    """Make an environment of the packages of a lock; return its Python and the command for pip."""
    place = Path(session.create_tmp()).resolve() / name
    venv.create(place, with_pip=True)
    python, lock = str(place / "bin" / "python"), LOCKS / f"{name}.txt"
    pip = (*_pip(python, lock), "--no-deps")
    if "\ntorch==" in lock.read_text():
        session.run(python, PACKAGES, "--constraint", str(lock), *INDEX, external=True)
    session.run(*pip, "--requirement", str(lock), external=True)
    return python, pip


@nox.session
def client(session: nox.Session) -> None:
    """Train on `art serve` with clients of others, each in an environment of its own."""
    for name in session.posargs or CLIENTS:
        python = {f"ART_{CLIENTS[name].upper()}": _apart(session, name)[0]}
        _pytest(session, f"plugins/serverless/tests/test_{CLIENTS[name]}.py", **python)


@nox.session
def doors(session: nox.Session) -> None:
    """Ask a recording through the clients that agents bring, and write docs/doors.md."""
    _run(session, "python", "docs/doors.py", _apart(session, "doors")[0], *session.posargs)


@nox.session
def board(session: nox.Session) -> None:
    """Open the board in the system's Chromium."""
    python, pip = _apart(session, "board")
    session.run(*pip, "--no-build-isolation", "-e", ".", "-e", "plugins/board", external=True)
    session.run(python, "-m", "pytest", "-q", "plugins/board/tests", external=True)


@nox.session
def environments(session: nox.Session) -> None:
    """Play environments of other packages and train on them; `-- verifiers` runs one."""
    for name in session.posargs or ENVIRONMENTS:
        python, pip = _apart(session, name)
        ours = f"--editable . --editable plugins/{name} --editable plugins/serverless".split()
        session.run(*pip, "--no-build-isolation", *ours, external=True)
        _run(session, "python", "tests/shared/beside_server.py", python, f"plugins/{name}/tests")
    if not session.posargs:
        _pytest(session, "plugins/mcp/tests", MCP_SERVERS=_apart(session, "mcp")[0])


@nox.session
def judges(session: nox.Session) -> None:
    """Ask judges through the real litellm, and train a task with RULER as its only reward."""
    local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else litellm asks the network for prices
    _run(session, "python", "-c", "import litellm", **local)
    _pytest(session, "-m", "judges", "tests/rewards", "compat", "plugins/local/tests", **local)


@nox.session
def contract(session: nox.Session) -> None:
    """Run every backend's contract tests and write into the docs what each does."""
    files = []
    for name in BACKENDS:
        file = Path(session.create_tmp()).resolve() / f"{name}.xml"
        _pytest(session, f"plugins/{name}/tests/test_contract.py", f"--junitxml={file}")
        files.append(f"{name}={file}")
    _run(session, "python", "docs/contract.py", *files)


@nox.session
def docs(session: nox.Session) -> None:
    """Write the metric table from the catalogue, then build the site; a dangling link fails."""
    _run(session, "python", "docs/generate.py")
    _run(session, "mkdocs", "build", "--strict")


@nox.session
def models(session: nox.Session) -> None:
    """Serve, train, export and resume tiny models of many architectures; write docs/models.md."""
    _run(session, "python", "docs/models.py", *session.posargs)


@nox.session
def exports(session: nox.Session) -> None:
    """Load exported weights in each consumer, compare answers, and write docs/export.md."""
    place = Path(session.create_tmp()).resolve() / "llama"
    _run(session, "python", "docs/llama.py", str(place))
    _run(session, "art", "engines", "install", "vllm", *INDEX)
    tools = ("--llama-server", str(place / "lib/llama-server"), "--go", str(place / "venv/bin/go"))
    _run(session, "python", "docs/exports.py", "--write", *tools, *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run each benchmark; a claim that does not hold fails."""
    for benchmark in sorted(ROOT.glob("benchmarks/*.py")):
        _run(session, "python", str(benchmark), *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Run the examples that have a figure and draw the figures again; `-- art_e` runs one."""
    _run(session, "python", "docs/figures.py", *session.posargs)


@nox.session
def wheels(session: nox.Session) -> None:
    """Build all distributions; in a clean environment and an empty directory, use their wheels."""
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    for project in (ROOT, *PLUGINS):
        _build(session, ROOT / "dist", project)
    empty = Path(session.create_tmp()) / "empty"
    shutil.rmtree(empty, ignore_errors=True)
    empty.mkdir()
    venv.create(empty / "venv", with_pip=True)
    python = str(empty / "venv" / "bin" / "python")
    pip = _pip(python, LOCK)
    left_out = tuple(f"art_{name}-" for name in (*TRACKERS, *APART))
    built = [str(p) for p in (ROOT / "dist").glob("*.whl") if not p.name.startswith(left_out)]
    # torch first: then the wheels' requirement is met, and no larger build is installed.
    session.run(python, PACKAGES, "--constraint", str(LOCK), *INDEX, external=True)
    session.run(*pip, *built, external=True)
    # offered without what it needs to be made: Unsloth's own dependencies are gigabytes
    alone = [str(p) for p in (ROOT / "dist").glob("art_unsloth-*.whl")]
    session.run(*pip, "--no-deps", *alone, external=True)
    with session.chdir(empty):
        listed = session.run("venv/bin/art", "backends", external=True, silent=True)
        for command in ("art plugins", "art examples copy first_loop", "python first_loop.py -h"):
            session.run(*f"venv/bin/{command}".split(), external=True, env={"ART_STRICT": "1"})
    _expect_backends(session, str(listed))
    _without_heavy_parts(session, empty)


def _build(session: nox.Session, out: Path, project: Path, *what: str) -> None:
    """Build a distribution with the build tools of the lock."""
    locked = ("--build-constraints", str(LOCK))
    _run(session, "uv", "build", "--quiet", *locked, *what, "--out-dir", str(out), str(project))


def _expect_backends(session: nox.Session, listed: str) -> None:
    for name in BACKENDS:
        if name not in listed:
            session.error(f"the installed wheels offer no backend {name!r}")


def _without_heavy_parts(session: nox.Session, place: Path) -> None:
    """Install only the backends' wheels: each is listed, and its error names what is missing."""
    venv.create(place / "light", with_pip=True)
    pip = _pip(str(place / "light" / "bin" / "python"), LOCK)
    core, *others = [
        next(str(p) for p in (ROOT / "dist").glob(f"art_{name}-*.whl"))
        for name in ("core", *BACKENDS)
    ]
    session.run(*pip, core, external=True)
    session.run(*pip, "--no-deps", *others, external=True)
    with session.chdir(place):
        listed = session.run("light/bin/art", "backends", external=True, silent=True)
        _expect_backends(session, str(listed))
        for name in BACKENDS:
            session.run("light/bin/python", LACKING, name, external=True)


@nox.session
def example(session: nox.Session) -> None:
    """Build the example of a third-party sink; run its tests with only art-core's wheel."""
    empty = Path(session.create_tmp()).resolve() / "example"
    shutil.rmtree(empty, ignore_errors=True)
    for project in (ROOT, EXAMPLE):
        _build(session, empty / "dist", project, "--wheel")
    venv.create(empty / "venv", with_pip=True)
    python = str(empty / "venv" / "bin" / "python")
    pip = _pip(python, LOCK)
    built = sorted(str(path) for path in (empty / "dist").glob("*.whl"))
    session.run(*pip, *built, "pytest>=8.4", external=True)
    shutil.copytree(EXAMPLE / "tests", empty / "tests")
    (empty / "pytest.ini").write_text("[pytest]\n")  # not the settings of the folders above
    with session.chdir(empty):
        no_torch = "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is not None)"
        session.run(python, "-c", no_torch, external=True)
        session.run("venv/bin/art", "plugins", external=True, env={"ART_STRICT": "1"})
        session.run(python, "-m", "pytest", "-q", "tests", external=True)
