// The AI SDK with its providers for OpenAI and Anthropic: `node ai.mjs PROTOCOL CASE`.
import assert from "node:assert/strict";

import { createAnthropic } from "@ai-sdk/anthropic";
import { openai } from "@ai-sdk/openai"; // reads OPENAI_BASE_URL and OPENAI_API_KEY
import { Output, generateText, stepCountIs, streamText, tool } from "ai";

import { Sum, add } from "./adding.mjs";

const [protocol, name] = process.argv.slice(2);
const id = process.env.MODEL;
const models = {
  chat: () => openai.chat(id),
  responses: () => openai(id),
  // This provider's base URL has the version; Anthropic's own variable has not.
  messages: () => createAnthropic({ baseURL: `${process.env.ANTHROPIC_BASE_URL}/v1` })(id),
  completions: () => openai.completion(id),
};
const tools = {
  add: tool({ description: "Add two numbers.", inputSchema: Sum, execute: (given) => add(given) }),
};
const asked = { model: models[protocol](), maxRetries: 0, maxOutputTokens: 500 };
const hi = [{ role: "user", content: "hi" }];

async function withTools() {
  return (await generateText({ ...asked, messages: hi, tools, stopWhen: stepCountIs(5) })).text;
}

const cases = {
  async plain() {
    assert.equal((await generateText({ ...asked, messages: hi })).text, "hello");
  },
  async stream() {
    const parts = [];
    for await (const part of streamText({ ...asked, messages: hi }).textStream) parts.push(part);
    assert.equal(parts.join(""), "hello");
  },
  async two_turns() {
    const first = await generateText({ ...asked, messages: hi });
    const messages = [...hi, ...first.response.messages, { role: "user", content: "on" }];
    assert.equal((await generateText({ ...asked, messages })).text, "two");
  },
  async tools() {
    assert.equal(await withTools(), "3");
  },
  async parallel_tools() {
    assert.equal(await withTools(), "3 and 5");
  },
  async forced_tool() {
    const toolChoice = { type: "tool", toolName: "add" };
    const answer = await generateText({ ...asked, messages: hi, tools, toolChoice });
    assert.deepEqual([answer.toolCalls[0].toolName, answer.toolCalls[0].input], ["add", { a: 1, b: 2 }]);
  },
  async schema() {
    const output = Output.object({ schema: Sum });
    assert.deepEqual((await generateText({ ...asked, messages: hi, output })).output, { a: 1, b: 2 });
  },
};
await cases[name]();
