"""`art export-weights`: a checkpoint in the form that other programs load."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from art_core import CommandSpec, Plugins, Record, open_run

FORMS = {
    "adapter": "peft's files, to load over the base model",
    "merged": "a whole model in safetensors",
    "gguf": "one file for llama.cpp",
    "ollama": "a GGUF file with a Modelfile",
}
HELP = """\
The weights are merged in float32 and cast afterwards. Each form contains the tokenizer with its
chat template and a model card with the run's reward, cost and data. --to is a directory, an fsspec
URL such as s3://bucket/agent, or hub:OWNER/NAME (a private repository, with HF_TOKEN).

gguf and ollama use llama.cpp's converter, which is fetched once (2 MB); ART_GGUF_CONVERTER is the
path of another one.

examples:
  art export-weights agent-001 --as merged --to ./agent-001-merged
  art export-weights agent-001 --step best --as gguf --dtype int8 --to ./agent-001-gguf
  art export-weights agent-001 --as adapter --to hub:you/agent-001
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("name", metavar="RUN", help="a run's name, project/name or directory")
    parser.add_argument("--dir", metavar="PATH", help="the directory of the runs (.art)")
    parser.add_argument(
        "--step", type=_step, default="newest", metavar="N", help="a step, newest or best (newest)"
    )
    parser.add_argument(
        "--metric", metavar="KEY", help="what `best` compares (val/reward, else train/reward)"
    )
    parser.add_argument(
        "--as", dest="form", choices=[*FORMS], required=True,
        help="; ".join(f"{name}: {meaning}" for name, meaning in FORMS.items()),
    )  # fmt: skip
    parser.add_argument("--to", required=True, metavar="PLACE", help="DIR, URL or hub:NAME")
    parser.add_argument(
        "--dtype", default="", choices=["float32", "bfloat16", "float16", "int8"],
        help="of the weights (the one that was served; int8 for gguf and ollama)",
    )  # fmt: skip
    parser.add_argument(
        "--base-model", metavar="MODEL", help="the base model, if it is elsewhere by now"
    )


def _step(text: str) -> int | str:
    if text in ("newest", "best"):
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no step; give a number, newest or best")
    return int(text)


def export(arguments: argparse.Namespace, _: Plugins) -> Iterator[Record]:
    """Write the export and yield where it is."""
    from art_local.export.export import export_weights

    done = export_weights(
        open_run(arguments.name, arguments.dir),
        arguments.form,
        arguments.to,
        step=arguments.step,
        metric=arguments.metric,
        dtype=arguments.dtype,
        base_model=arguments.base_model,
    )
    text = (
        f"step {done.step} of {done.run} as {done.form} in {done.dtype}: "
        f"{done.bytes / 1e6:,.1f} MB in {done.files} files at {done.to}"
    )
    yield Record(done.values(), [text, f"loaded by: {done.loaded_by}"])


COMMAND = CommandSpec(
    name="export-weights",
    summary="write a checkpoint as adapter, merged model, GGUF or for Ollama",
    create=add_arguments,
    run=export,
    help=HELP,
)
