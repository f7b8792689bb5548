"""The example of the page about environments runs."""

import ast
import re
from pathlib import Path

import art_core as art
from art_core.testing.echo import EchoBackend

PAGE = Path(__file__).parents[3] / "docs" / "environments.md"


async def test_the_example_of_the_page_runs(echo_app, served, tmp_path):
    part = PAGE.read_text().split("\n## OpenEnv\n")[1]
    (text,) = re.findall(r"^```\n(.*?)^```$", part.split("\n## ")[0], re.MULTILINE | re.DOTALL)
    text = text.replace("http://127.0.0.1:8000", served(echo_app))
    # the example allows one session at a time
    text = text.replace("range(4)", "range(1)")
    model = art.TrainableModel(
        name="m", project="p", base_model="echo-base", base_path=tmp_path, sinks=[]
    )
    await model.register(EchoBackend(reply=lambda messages, step: "four"))
    names = {"model": model}
    await eval(compile(text, str(PAGE), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    assert names["group"].rewards == [0.4]
    await model.close()
    await model.backend.close()
