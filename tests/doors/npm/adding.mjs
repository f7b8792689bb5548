// A tool that adds.
import { z } from "zod";

export const Sum = z.object({ a: z.number().int(), b: z.number().int() });
export const add = ({ a, b }) => String(a + b);
export const parameters = {
  type: "object",
  properties: { a: { type: "integer" }, b: { type: "integer" } },
  required: ["a", "b"],
  additionalProperties: false,
};
