// The openai package from npm: `node openai.mjs PROTOCOL CASE`.
import assert from "node:assert/strict";

import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";

import { Sum, add, parameters } from "./adding.mjs";

const [protocol, name] = process.argv.slice(2);
const client = new OpenAI({ maxRetries: 0 }); // reads OPENAI_BASE_URL and OPENAI_API_KEY
const model = process.env.MODEL;
const hi = [{ role: "user", content: "hi" }];
const about = { name: "add", description: "Add two numbers.", parameters };

const chat = {
  ask: (more) => client.chat.completions.create({ model, messages: hi, ...more }),
  text: (answer) => answer.choices[0].message.content,
  async stream() {
    const chunks = await this.ask({ stream: true });
    let text = "";
    for await (const chunk of chunks) text += chunk.choices[0].delta.content ?? "";
    const whole = await client.chat.completions.stream({ model, messages: hi }).finalChatCompletion();
    return [text, this.text(whole)];
  },
  async second(first) {
    const messages = [...hi, first.choices[0].message, { role: "user", content: "on" }];
    return this.ask({ messages });
  },
  async tools() {
    const runner = client.chat.completions.runTools({
      model,
      messages: hi,
      tools: [{ type: "function", function: { ...about, function: add, parse: JSON.parse } }],
    });
    return runner.finalContent();
  },
  async forced() {
    const tools = [{ type: "function", function: about }];
    const answer = await this.ask({ tools, tool_choice: { type: "function", function: { name: "add" } } });
    return answer.choices[0].message.tool_calls[0].function;
  },
  async schema() {
    const response_format = zodResponseFormat(Sum, "sum");
    const answer = await client.chat.completions.parse({ model, messages: hi, response_format });
    return answer.choices[0].message.parsed;
  },
};

const responses = {
  ask: (more) => client.responses.create({ model, input: hi, ...more }),
  text: (answer) => answer.output_text,
  async stream() {
    let text = "";
    for await (const each of await this.ask({ stream: true }))
      if (each.type === "response.output_text.delta") text += each.delta;
    const whole = await client.responses.stream({ model, input: hi }).finalResponse();
    return [text, this.text(whole)];
  },
  second: (first) => responses.ask({ previous_response_id: first.id, input: "on" }),
  async tools() {
    const tools = [{ type: "function", ...about, strict: false }];
    const input = [...hi];
    for (;;) {
      const answer = await this.ask({ input, tools });
      const calls = answer.output.filter((item) => item.type === "function_call");
      if (!calls.length) return answer.output_text;
      input.push(...answer.output);
      for (const { call_id, arguments: given } of calls)
        input.push({ type: "function_call_output", call_id, output: add(JSON.parse(given)) });
    }
  },
  async forced() {
    const tools = [{ type: "function", ...about, strict: false }];
    const answer = await this.ask({ tools, tool_choice: { type: "function", name: "add" } });
    return answer.output.find((item) => item.type === "function_call");
  },
  async schema() {
    const text = { format: zodTextFormat(Sum, "sum") };
    return (await client.responses.parse({ model, input: hi, text })).output_parsed;
  },
};

const completions = {
  ask: (more) => client.completions.create({ model, prompt: "hi", max_tokens: 500, ...more }),
  text: (answer) => answer.choices[0].text,
  async stream() {
    let text = "";
    for await (const chunk of await this.ask({ stream: true })) text += chunk.choices[0].text;
    return [text, this.text(await this.ask())];
  },
  second: (first) => completions.ask({ prompt: `hi${completions.text(first)}` }),
};

const spoken = { chat, responses, completions }[protocol];
const cases = {
  async plain() {
    assert.equal(spoken.text(await spoken.ask()), "hello");
  },
  async stream() {
    assert.deepEqual(await spoken.stream(), ["hello", "again"]);
  },
  async two_turns() {
    assert.equal(spoken.text(await spoken.second(await spoken.ask())), "two");
  },
  async tools() {
    assert.equal(await spoken.tools(), "3");
  },
  async parallel_tools() {
    assert.equal(await spoken.tools(), "3 and 5");
  },
  async forced_tool() {
    const { name: called, arguments: given } = await spoken.forced();
    assert.deepEqual([called, JSON.parse(given)], ["add", { a: 1, b: 2 }]);
  },
  async schema() {
    assert.deepEqual(await spoken.schema(), { a: 1, b: 2 });
  },
};
await cases[name]();
