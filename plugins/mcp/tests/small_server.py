"""A small MCP server without any package, so that it starts at once. Its argument is a fault."""

import json
import sys
import time

FAULT = sys.argv[1] if len(sys.argv) > 1 else ""
PRICES = {"apple": "3", "pear": "5"}
LOOK_UP = {
    "name": "shop.look_up",
    "description": "Return the price of a fruit.",
    "inputSchema": {
        "type": "object",
        "properties": {"fruit": {"type": "string"}},
        "required": ["fruit"],
    },
}
TWIN = {**LOOK_UP, "name": "shop/look_up", "description": ""}


def text(value, *, wrong=False):
    return {"content": [{"type": "text", "text": value}], "isError": wrong}


def called(arguments):
    if FAULT == "dies":
        print("no more memory", file=sys.stderr)
        sys.exit(3)
    if FAULT == "hangs":
        time.sleep(3600)
    if FAULT == "prints":
        print("looking up", flush=True)
    if FAULT == "odd":
        return {"content": "no list"}
    if FAULT == "blocks":
        image = {"type": "image", "data": "aGk=", "mimeType": "image/png"}
        inside = {"type": "resource", "resource": {"uri": "file:///a", "text": "inside"}}
        return {"content": [image, inside]}
    if FAULT == "structured":
        return {"content": [], "structuredContent": {"price": 3}}
    fruit = arguments.get("fruit")
    known = isinstance(fruit, str) and set(arguments) == {"fruit"}
    if not known:
        return text("it needs a fruit", wrong=True)
    return text(PRICES.get(fruit, "no such fruit"))


def result(method, parameters):
    if method == "initialize":
        return {
            "protocolVersion": parameters["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "small", "version": "1"},
        }
    if method == "tools/list" and FAULT == "no_tools":
        return {"tools": []}
    if method == "tools/list":
        first = not parameters.get("cursor")
        return {"tools": [LOOK_UP], "nextCursor": "2"} if first else {"tools": [TWIN]}
    if method == "tools/call" and parameters["name"] in ("shop.look_up", "shop/look_up"):
        return called(parameters.get("arguments") or {})
    return None


def begin():
    if FAULT == "chatty":
        print("Loading ...", flush=True)
    if FAULT == "bytes":
        sys.stdout.buffer.write(b"\xff\xfe loading\n")
        sys.stdout.flush()
    if FAULT == "exits":
        sys.exit("the key is missing")
    if FAULT == "silent":
        time.sleep(3600)


def main():
    begin()
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message:
            continue
        found = result(message["method"], message.get("params") or {})
        part = {"result": found} if found else {"error": {"code": -32601, "message": "unknown"}}
        if FAULT == "refuses" and message["method"] == "tools/call":
            part = {"error": {"code": -32602, "message": "a fruit is needed"}}
        if FAULT == "fails" and message["method"] == "tools/call":
            part = {"error": {"code": -32603, "message": "the shop is closed"}}
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], **part}), flush=True)


main()
