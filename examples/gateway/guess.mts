// Attempts of an agent in TypeScript, of the AI SDK: it guesses a number from 1 to 9, and the answer
// is "Higher." or "Lower.". Each attempt has an address and a key of its own from the gateway.
//
//   npm install --prefix examples/gateway
//
// examples/typescript_agent.py starts it for each step, and trains on the attempts.

import { createOpenAI } from "@ai-sdk/openai";
import { generateText, type ModelMessage } from "ai";

const { GATEWAY_URL = "", GATEWAY_KEY = "", NUMBERS = "5", ATTEMPTS = "1" } = process.env;
const rules = "I think of a number from 1 to 9. Guess it: answer with one digit, nothing else.";
const played = [rules, "4", "Higher.", "8", "Right. I think of another number."];

async function post(path: string, body: object): Promise<any> {
  const headers = { Authorization: `Bearer ${GATEWAY_KEY}`, "Content-Type": "application/json" };
  const request = { method: "POST", headers, body: JSON.stringify(body) };
  const response = await fetch(GATEWAY_URL + path, request);
  if (!response.ok) throw new Error(`${response.status}: ${await response.text()}`);
  return response.json();
}

/** Return the ending: 1 for the first guess, 0.2 less for each other one, 0.05 for each digit. */
async function play(model: ReturnType<ReturnType<typeof createOpenAI>["chat"]>, secret: number) {
  const messages: ModelMessage[] = played.map((content, turn) => ({
    role: turn % 2 ? "assistant" : "user",
    content,
  }));
  for (let guesses = 1; guesses <= 4; guesses++) {
    // one token is one digit
    const { text, response } = await generateText({ model, messages, maxOutputTokens: 1 });
    if (!/^[1-9]$/.test(text)) {
      return { reward: 0.05 * (guesses - 1), metrics: { guesses, found: false, digits: false } };
    }
    const guess = Number(text);
    if (guess === secret) {
      return { reward: 1.2 - 0.2 * guesses, metrics: { guesses, found: true, digits: true } };
    }
    messages.push(...response.messages);
    messages.push({ role: "user", content: guess < secret ? "Higher." : "Lower." });
  }
  return { reward: 0.2, metrics: { guesses: 4, found: false, digits: true } };
}

async function attempt(secret: number): Promise<void> {
  const begun = await post("/attempts", { scenario_id: String(secret) });
  const provider = createOpenAI({ baseURL: begun.base_url, apiKey: begun.api_key });
  const ending = await play(provider.chat(begun.model_name), secret).catch((error) => ({
    failure: String(error),
  }));
  await post(`/attempts/${begun.id}/end`, ending);
}

const numbers = NUMBERS.split(" ").map(Number);
const attempts = numbers.flatMap((number) => Array(Number(ATTEMPTS)).fill(number));
await Promise.all(attempts.map(attempt));
