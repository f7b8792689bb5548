"""The endpoints of the model hub that an upload with huggingface_hub uses, on this machine."""

from __future__ import annotations

import base64
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson

TOKEN = "hf_right"


class Handler(BaseHTTPRequestHandler):
    """Reads a request of huggingface_hub and answers as `HubServer` does."""

    server: Any

    def do_GET(self) -> None:
        self.answer(404, {"error": "Repository not found"})

    def do_PUT(self) -> None:
        data, name = self.body(), self.path.rpartition("/")[2]
        assert hashlib.sha256(data).hexdigest() == name
        self.server.hub.large[name] = data
        self.answer(200, {})

    def do_POST(self) -> None:
        body = self.body()
        if self.headers["Authorization"] == f"Bearer {TOKEN}":
            self.answer(*self.server.hub.post(self.path, body))
        else:
            self.answer(401, {"error": "Invalid username or password."})

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def answer(self, status: int, value: Any) -> None:
        data = orjson.dumps(value)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


class HubServer:
    """Takes what `TOKEN` sends to repositories of `you`. `committed` has the files of each
    repository after its commits; safetensors go through LFS, as on the hub.
    """

    def __init__(self) -> None:
        self.created: dict[str, dict[str, Any]] = {}
        self.committed: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.http: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.hub = self
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def post(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Return status and answer to a request of the right token."""
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}
        if path == "/api/repos/create":
            return self.create(orjson.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, {"objects": [self.upload(each) for each in orjson.loads(body)["objects"]]}
        repository, action = path.removeprefix("/api/models/").rsplit("/", 2)[:2]
        if repository not in self.created:
            return 404, {"error": "Repository not found"}
        if action == "preupload":
            return 200, {"files": [mode(each) for each in orjson.loads(body)["files"]]}
        assert action == "commit"
        return self.commit(repository, [orjson.loads(line) for line in body.splitlines()])

    def create(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if asked["organization"] != "you":
            return 403, {"error": "You don't have the rights to create a model there"}
        name = f"you/{asked['name']}"
        self.created[name] = asked
        return 200, {"url": f"{self.url}/{name}"}

    def upload(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {**asked, "actions": {"upload": {"href": f"{self.url}/large/{asked['oid']}"}}}

    def commit(self, repository: str, lines: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        files = self.committed.setdefault(repository, {})
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
        address = f"{self.url}/{repository}/commit/1"
        return 200, {"commitUrl": address, "commitOid": "1" * 40}


def mode(asked: dict[str, Any]) -> dict[str, Any]:
    """Return how the hub wants a file."""
    large = asked["path"].endswith((".safetensors", ".gguf"))
    return {
        "path": asked["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False,
    }  # fmt: skip
