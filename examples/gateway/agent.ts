// An agent in TypeScript, of the AI SDK (npm install, here). It knows nothing of the gateway: the
// provider reads OPENAI_BASE_URL and OPENAI_API_KEY.
//
//   sh attempt.sh npx tsx agent.ts

import { openai } from "@ai-sdk/openai";
import { generateText, stepCountIs, tool } from "ai";
import { z } from "zod";

const meanings: Record<string, string> = { sky: "what is above us, blue by day" };

const lookUp = tool({
  description: "Look up a word.",
  inputSchema: z.object({ word: z.string() }),
  execute: async ({ word }) => meanings[word] ?? "no such word",
});

const { text } = await generateText({
  model: openai(process.env.MODEL ?? ""),
  prompt: "Is the sky blue? Look it up, then answer in one word.",
  tools: { lookUp },
  stopWhen: stepCountIs(4),
  maxOutputTokens: 200,
});
console.log(text);
