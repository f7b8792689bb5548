// @ts-check
// One attempt of an agent in TypeScript or JavaScript. GATEWAY_URL and GATEWAY_KEY are those of
// train.py. The OpenAI client takes the same address: new OpenAI({ baseURL, apiKey }).

const { GATEWAY_URL = "", GATEWAY_KEY = "" } = process.env;

/** @param {string} url @param {string} key @param {object} body @returns {Promise<any>} */
async function post(url, key, body) {
  const headers = { Authorization: `Bearer ${key}`, "Content-Type": "application/json" };
  const response = await fetch(url, { method: "POST", headers, body: JSON.stringify(body) });
  if (!response.ok) throw new Error(`${response.status}: ${await response.text()}`);
  return response.json();
}

const attempt = await post(`${GATEWAY_URL}/attempts`, GATEWAY_KEY, { scenario_id: "sky" });
/** @param {object} ending */
const end = (ending) => post(`${GATEWAY_URL}/attempts/${attempt.id}/end`, GATEWAY_KEY, ending);

try {
  const messages = [{ role: "user", content: "Is the sky blue? Answer in one word." }];
  const request = { model: attempt.model_name, messages, max_tokens: 8 };
  const answer = await post(`${attempt.base_url}/chat/completions`, attempt.api_key, request);
  const text = answer.choices[0].message.content;
  console.log(await end({ reward: text === "yes" ? 1 : 0, metrics: { characters: text.length } }));
} catch (error) {
  await end({ failure: String(error) });
  throw error;
}
