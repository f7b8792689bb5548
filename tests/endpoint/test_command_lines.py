"""The second requests of Claude Code 2.1 and Codex 0.171, shortened: a call and its result."""

from __future__ import annotations

import json

SCHEMA = {
    "type": "object", "properties": {"cmd": {"type": "string"}}, "required": ["cmd"],
    "additionalProperties": False,
}  # fmt: skip
CACHED = {"cache_control": {"type": "ephemeral"}}
CLAUDE_CODE = {
    "model": "agent",
    "messages": [
        {"role": "user", "content": [
            {"type": "text", "text": "<system-reminder>"}, {"type": "text", "text": "1 + 2?"}]},
        {"role": "system", "content": "Available agent types"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "unsigned"},
            {"type": "tool_use", "id": "RowW5a4cp", "name": "Bash", "input": {"cmd": "expr"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "RowW5a4cp", "content": "3", "is_error": False,
             **CACHED}]},
    ],
    "system": [{"type": "text", "text": "x-billing: cli; "},
               {"type": "text", "text": "You are an agent.", **CACHED}],
    "tools": [{"name": "Bash", "description": "Runs a command.", "input_schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema", **SCHEMA}}],
    "metadata": {"user_id": '{"device_id":"e03ee7"}'},
    "max_tokens": 100,
    "thinking": {"type": "adaptive"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
    "stream": True,
}  # fmt: skip
CLAUDE_CODE_HEADERS = {
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,effort-2025-11-24",
    "anthropic-dangerous-direct-browser-access": "true",
    "anthropic-version": "2023-06-01",
    "x-app": "cli",
}
CODEX = {
    "model": "agent",
    "stream": True,
    "input": [
        {"type": "message", "id": "msg_da18", "role": "developer", "content": [
            {"type": "input_text", "text": "You are an agent."}]},
        {"type": "message", "id": "msg_01a2", "role": "user", "content": [
            {"type": "input_text", "text": "1 + 2?"}]},
        {"type": "reasoning", "id": "rs_ab46", "summary": [], "encrypted_content": None,
         "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "status": "completed", "id": "fc_0231", "name": "exec_command",
         "arguments": '{"cmd": "expr"}', "call_id": "YjeeW3JTg"},
        {"type": "function_call_output", "call_id": "YjeeW3JTg", "output": "3"},
    ],
    "tools": [{"type": "function", "name": "exec_command", "description": "Runs a command.",
               "strict": False, "parameters": SCHEMA}],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"summary": "auto"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "01a230e1",
    "client_metadata": {"thread_id": "01a230e1", "session_id": "01a230e1"},
}  # fmt: skip


async def read(tokenizer, answer):
    """Return the roles that the model saw, what it thought and called, and the answer's events."""
    assert answer.status_code == 200, answer.text
    messages, options = max(tokenizer.seen, key=lambda seen: len(repr(seen)))
    (called,) = [message for message in messages if message["role"] == "assistant"]
    (call,) = called["tool_calls"]
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if "data: " in line]
    kinds = [json.loads(each)["type"] for each in data]
    assert "hm" in called.get("reasoning_content", called["content"])
    assert call["id"] == messages[-1]["tool_call_id"]
    return [message["role"] for message in messages], options["tools"], kinds


async def test_claude_code_is_answered(engine, tokenizer, http):
    engine.lines = ["3"]
    answer = await http.post("/messages?beta=true", json=CLAUDE_CODE, headers=CLAUDE_CODE_HEADERS)
    roles, tools, kinds = await read(tokenizer, answer)
    assert roles == ["system", "user", "system", "assistant", "tool"]
    assert tools[0]["function"]["name"] == "Bash"
    assert kinds[-1] == "message_stop"
    fields = ("model", "messages", "system", "tools", "thinking", "context_management")
    counting = {name: CLAUDE_CODE[name] for name in fields}
    counted = await http.post("/messages/count_tokens?beta=true", json=counting)
    assert counted.json() == {"input_tokens": len(engine.asked[0][0])}


async def test_codex_is_answered(engine, tokenizer, http):
    engine.lines = ["3"]
    answer = await http.post("/responses", json=CODEX)
    roles, tools, kinds = await read(tokenizer, answer)
    assert roles == ["system", "user", "assistant", "tool"]
    assert tools[0]["function"]["name"] == "exec_command"
    assert kinds[-1] == "response.completed"
