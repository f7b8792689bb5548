// Attempts of an agent in TypeScript, of the AI SDK: the model names a town, the program looks its
// weather up, and the model answers in one word. Each attempt has an address and a key of its own
// from the gateway. examples/typescript_agent.py starts it for each step.
//
//   npm install --prefix examples/gateway

import { createOpenAI } from "@ai-sdk/openai";
import { generateText } from "ai";

const { GATEWAY_URL = "", GATEWAY_KEY = "", TOWNS = "Rome", ATTEMPTS = "1" } = process.env;
const weather: Record<string, string> = {
  Rome: "sunny", Paris: "cloudy", Oslo: "snowy", Cairo: "dry", Delhi: "hot", Bonn: "rainy",
  Bern: "windy", Perth: "warm", Quito: "mild", Tokyo: "wet", Berlin: "cold", Dublin: "stormy",
};

async function post(path: string, body: object): Promise<any> {
  const headers = { Authorization: `Bearer ${GATEWAY_KEY}`, "Content-Type": "application/json" };
  const request = { method: "POST", headers, body: JSON.stringify(body) };
  const response = await fetch(GATEWAY_URL + path, request);
  if (!response.ok) throw new Error(`${response.status}: ${await response.text()}`);
  return response.json();
}

type Model = ReturnType<ReturnType<typeof createOpenAI>["chat"]>;

/** Return the answer to a question, after one that was played before. */
async function ask(model: Model, played: string, answered: string, question: string) {
  const { text } = await generateText({
    model,
    maxOutputTokens: 6,
    messages: [
      { role: "user", content: played },
      { role: "assistant", content: answered },
      { role: "user", content: question },
    ],
  });
  return text.trim();
}

/** Play one attempt: 0.1 for an answer that begins with the town, 0.2 for nothing else, 0.7 for its weather. */
async function play(model: Model, town: string) {
  const question = `What is the weather in ${town}?`;
  const said = await ask(model, "Reply with a town. What is the weather in Lima?", "Lima", question);
  const named = said === town;
  let right = false;
  if (named) {
    const played = "Reply with one word. Lima is foggy today. What is the weather in Lima?";
    const found = `${town} is ${weather[town]} today.`;
    right = (await ask(model, played, "foggy", `${found} ${question}`)) === weather[town];
  }
  const begun = said.split(" ")[0] === town;
  const reward = 0.1 * Number(begun) + 0.2 * Number(named) + 0.7 * Number(right);
  return { reward, metrics: { named, right } };
}

async function attempt(town: string): Promise<void> {
  const begun = await post("/attempts", { scenario_id: town });
  const provider = createOpenAI({ baseURL: begun.base_url, apiKey: begun.api_key });
  const ending = await play(provider.chat(begun.model_name), town).catch((error) => ({
    failure: String(error),
  }));
  await post(`/attempts/${begun.id}/end`, ending);
}

const attempts = TOWNS.split(" ").flatMap((town) => Array(Number(ATTEMPTS)).fill(town));
await Promise.all(attempts.map(attempt));
