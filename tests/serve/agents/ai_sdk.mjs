// Vercel's AI SDK against the server at an address: `node ai_sdk.mjs URL`. What came of it is one line of JSON.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, isStepCount, jsonSchema, Output, streamText, tool } from "ai";

const baseURL = `${process.argv[2]}/v1`;
const model = createOpenAICompatible({ name: "mlxmtp", baseURL, includeUsage: true, supportsStructuredOutputs: true })("fake");
const city = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const weather = tool({
  description: "Says how the weather is in a city.",
  inputSchema: jsonSchema(city),
  execute: async ({ city }) => `cold in ${city}`,
});

const stream = streamText({ model, prompt: "Rome and Oslo?", tools: { weather }, stopWhen: isStepCount(3) });
const errors = [];
for await (const part of stream.fullStream) if (part.type === "error") errors.push(String(part.error));
const steps = (await stream.steps).map(({ text, reasoningText, toolResults, finishReason, usage }) => ({
  text, reasoning: reasoningText, results: toolResults.map((one) => one.output), finishReason,
  counted: usage.inputTokens > 0 && usage.outputTokens > 0,
}));
const whole = await generateText({ model, prompt: "Oslo?", tools: { weather } });
const form = await generateText({ model, prompt: "A city", output: Output.object({ schema: jsonSchema(city) }) });
const calls = whole.toolCalls.map((one) => one.input);
console.log(JSON.stringify({ errors, steps, calls, finishReason: whole.finishReason, form: form.output }));
