"""The example of the page about environments runs."""

import ast
import inspect
import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "environments.md"


async def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    part = PAGE.read_text().split("\n## verifiers\n")[1]
    (text,) = re.findall(r"^```\n(.*?)^```$", part.split("\n## ")[0], re.MULTILINE | re.DOTALL)
    code = compile(text, str(PAGE), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names = {}
    running = eval(code, names)
    assert inspect.iscoroutine(running)
    await running
    assert sorted(names["group"].rewards) == [0.0, 0.0, 1.0, 1.0]
    await names["model"].close()
    await names["model"].backend.close()
