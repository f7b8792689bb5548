import json
import sys
from pathlib import Path

import pytest

from art_mcp import McpServer

SMALL = Path(__file__).parent / "small_server.py"


@pytest.fixture
def small():
    """Return a small server, by its fault."""

    def make(fault="", **options):
        return McpServer(command=[sys.executable, "-S", str(SMALL), fault], **options)

    return make


@pytest.fixture
def call():
    """Return a message that calls a tool."""

    def make(name, arguments, number=1):
        function = {"name": name, "arguments": json.dumps(arguments)}
        calls = [{"id": f"call_{number}", "type": "function", "function": function}]
        return {"role": "assistant", "content": None, "tool_calls": calls}

    return make
