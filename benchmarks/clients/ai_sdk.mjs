// Vercel's AI SDK against a server: one line of JSON per provider, {"name", "version", "cells": {feature: "ok" | "FAILS"}}.
//
//     npm install ai @ai-sdk/openai @ai-sdk/openai-compatible @ai-sdk/anthropic zod
//     node ai_sdk.mjs http://127.0.0.1:8000
//
// drive.py runs it with --node FOLDER, the folder that holds node_modules.

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [url, folder = process.cwd()] = process.argv.slice(2);
const require = createRequire(`${folder}/`);
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const { generateText, streamText, Output, tool } = await load("ai");
const { createOpenAI } = await load("@ai-sdk/openai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const { createAnthropic } = await load("@ai-sdk/anthropic");
const { z } = await load("zod");

const base = { baseURL: `${url}/v1`, apiKey: "none" };
const providers = {
  "AI SDK, openai chat": createOpenAI(base).chat("demo"),
  "AI SDK, openai responses": createOpenAI(base).responses("demo"),
  "AI SDK, openai-compatible": createOpenAICompatible({ name: "kvtrove", ...base, supportsStructuredOutputs: true })("demo"),
  "AI SDK, anthropic": createAnthropic(base)("demo"),
};
const pet = z.object({ kind: z.enum(["cat", "dog"]), tame: z.boolean() }).strict();
const paint = tool({ description: "Paints.", inputSchema: pet });
const system = "You are kind and patient, and you like cats. ".repeat(12);

const features = {
  answer: async (model) => (await generateText({ model, prompt: "Hi", maxOutputTokens: 8 })).text.length > 0,
  stream: async (model) => {
    let text = "";
    for await (const piece of streamText({ model, prompt: "Hi", maxOutputTokens: 8 }).textStream) text += piece;
    return text.length > 0;
  },
  "forced call": async (model) => {
    const settings = { model, prompt: "Hi", tools: { paint }, toolChoice: "required", maxOutputTokens: 90 };
    return pet.safeParse((await generateText(settings)).toolCalls[0].input).success;
  },
  "tool result": async (model) => {
    const call = { type: "tool-call", toolCallId: "c", toolName: "paint", input: {} };
    const result = { type: "tool-result", toolCallId: "c", toolName: "paint", output: { type: "text", value: "painted" } };
    const messages = [
      { role: "user", content: "Hi" },
      { role: "assistant", content: [call] },
      { role: "tool", content: [result] },
    ];
    return (await generateText({ model, messages, tools: { paint }, maxOutputTokens: 4 })).finishReason !== "error";
  },
  structured: async (model) => {
    const settings = { model, prompt: "Hi", output: Output.object({ schema: pet }), maxOutputTokens: 90 };
    return pet.safeParse((await generateText(settings)).output).success;
  },
  overflow: async (model) => {
    try {
      await generateText({ model, prompt: "hello ".repeat(9000), maxRetries: 0 });
    } catch (error) {
      return error.statusCode === 400 && error.message.includes("maximum context length");
    }
    return false;
  },
  usage: async (model) => {
    let usage;
    for (let n = 0; n < 2; n++) usage = (await generateText({ model, system, prompt: "Hi", maxOutputTokens: 2 })).usage;
    return (usage.cachedInputTokens ?? usage.inputTokenDetails?.cacheReadTokens) > 0;
  },
};

for (const [name, model] of Object.entries(providers)) {
  const cells = {};
  for (const [feature, run] of Object.entries(features)) {
    let failure = "not as wanted";
    const right = await run(model).catch((error) => ((failure = error), false));
    cells[feature] = right ? "ok" : "FAILS";
    if (!right) console.error(name, feature, failure);
  }
  console.log(JSON.stringify({ name, version: require("ai/package.json").version, cells }));
}
