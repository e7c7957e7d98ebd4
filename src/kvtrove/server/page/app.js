// The page of one server: asks /v1/status every two seconds and draws it; chats through /v1/chat/completions.
"use strict";
const byId = (id) => document.getElementById(id);
let key = sessionStorage.getItem("key") || "";
let model = sessionStorage.getItem("model") || "";
let several = null; // whether the server has several models; null: not known yet

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function drawn(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const count = (number) => Math.round(number).toLocaleString("en");
const counted = (number, word) => `${count(number)} ${word}${Math.round(number) === 1 ? "" : "s"}`;
const percent = (part, whole) => (!whole ? "-" : part && part < whole / 200 ? "< 1 %" : `${Math.round((100 * part) / whole)} %`);

function bytes(size) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (size >= 1024 && unit < 4) { size /= 1024; unit += 1; }
  return `${size >= 100 || unit === 0 ? Math.round(size) : size.toFixed(1)} ${units[unit]}`;
}

function seconds(value) {
  if (value === null || value === undefined) return "-";
  if (value < 1) return `${Math.round(1000 * value)} ms`;
  if (value < 120) return `${value.toFixed(1)} s`;
  const minutes = Math.round(value / 60), hours = Math.round(minutes / 60);
  return minutes < 120 ? `${minutes} min` : hours < 48 ? `${hours} h` : `${Math.round(hours / 24)} days`;
}

function headers() {
  const sent = { "content-type": "application/json" };
  if (key) sent.authorization = `Bearer ${key}`;
  return sent;
}

const of = (path) => (several ? `${path}${path.includes("?") ? "&" : "?"}model=${encodeURIComponent(model)}` : path);

async function get(path) {
  const answer = await fetch(path, { headers: headers() });
  if (answer.status === 401) throw new Error("key");
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

// ---- bars, tables, charts ----

function bar(element, keys, parts, total, words) {
  element.replaceChildren();
  const shown = parts.filter((part) => part.size > 0);
  for (const part of shown) {
    const piece = make("i", { class: `c-${part.colour}`, title: `${part.name}: ${words(part.size)}` });
    piece.style.flexGrow = String(part.size / total);
    piece.style.flexBasis = "0";
    element.append(piece);
  }
  element.setAttribute("role", "img");
  element.setAttribute("aria-label", shown.map((part) => `${part.name} ${words(part.size)}`).join(", "));
  if (keys) {
    keys.replaceChildren(...shown.map((part) =>
      make("li", {}, make("i", { class: `c-${part.colour}` }), `${part.name} ${words(part.size)} (${percent(part.size, total)})`)));
  }
}

function table(element, titles, rows, nothing) {
  const caption = element.querySelector("caption");
  element.replaceChildren();
  if (caption) element.append(caption);
  if (!rows.length) { element.append(make("tbody", {}, make("tr", {}, make("td", { class: "note" }, nothing)))); return; }
  element.append(make("thead", {}, make("tr", {}, ...titles.map((title) => make("th", { scope: "col" }, title)))));
  element.append(make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", {}, cell instanceof Node ? cell : String(cell)))))));
}

function steps(high) {
  const power = 10 ** Math.floor(Math.log10(high / 3));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= high / 3.5);
  return Array.from({ length: Math.floor(high / step) + 1 }, (_, at) => at * step);
}

// lines: [{name, colour, values: [[age, value or null]], area}]; a gap where there was nothing.
function chart(element, lines, format, most) {
  const W = Math.max(260, element.clientWidth || 520), H = 170, left = 54, right = 8, top = 10, bottom = 24;
  const oldest = Math.max(0, ...lines.flatMap((line) => line.values.map(([age]) => age)));
  const span = [60, 120, 300, 600].find((size) => oldest <= size) || 600;
  const known = lines.flatMap((line) => line.values.map(([, value]) => value)).filter((value) => value !== null);
  const high = most || Math.max(...known, 0) * 1.1;
  const svg = drawn("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": lines.map((line) => line.name).join(", ") });
  const x = (age) => left + (1 - Math.min(age, span) / span) * (W - left - right);
  const y = (value) => H - bottom - (Math.min(value, high) / high) * (H - top - bottom);
  if (!known.length || !high) {
    svg.append(drawn("text", { x: W / 2, y: H / 2, "text-anchor": "middle" }, "nothing in the last ten minutes"));
    element.replaceChildren(svg);
    return;
  }
  for (const value of steps(high)) {
    svg.append(drawn("line", { class: "grid", x1: left, x2: W - right, y1: y(value), y2: y(value) }));
    svg.append(drawn("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, format(value)));
  }
  for (const share of [1, 0.75, 0.5, 0.25, 0]) {
    const ago = share * span;
    const words = !ago ? "now" : ago < 60 || ago % 60 ? `-${ago} s` : `-${ago / 60} min`;
    const anchor = share === 0 ? "end" : share === 1 ? "start" : "middle";
    svg.append(drawn("text", { x: x(ago), y: H - 6, "text-anchor": anchor }, words));
  }
  for (const line of lines) {
    let points = [];
    const flush = () => {
      if (points.length > 1) {
        const path = points.map(([age, value]) => `${x(age).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
        if (line.area) {
          const [first, last] = [points[0][0], points[points.length - 1][0]];
          svg.append(drawn("polygon", { class: `a-${line.colour}`, points: `${x(first)},${y(0)} ${path} ${x(last)},${y(0)}` }));
        }
        svg.append(drawn("polyline", { class: `l-${line.colour}`, points: path }));
      } else if (points.length) {
        svg.append(drawn("circle", { class: `d-${line.colour}`, r: 2.5, cx: x(points[0][0]), cy: y(points[0][1]) }));
      }
      points = [];
    };
    for (const point of line.values) { if (point[1] === null) flush(); else points.push(point); }
    flush();
  }
  const keys = make("ul", { class: "keys" }, ...lines.map((line) => make("li", {}, make("i", { class: `c-${line.colour}` }), line.name)));
  element.replaceChildren(svg, ...(lines.length > 1 ? [keys] : []));
}

// ---- the status ----

function show(status) {
  if (!several) model = status.model;
  const recent = status.history.slice(-12);
  const sum = (name) => recent.reduce((total, sample) => total + sample[name], 0);
  const time = Math.max(1, recent.length) * status.period;
  byId("headline").textContent = `${status.model} · ${status.state} · context ${count(status.context)} tokens · cache ${status.cache} · up ${seconds(status.uptime)} · version ${status.version}`;
  const tiles = [
    ["running", count(status.running)], ["waiting", count(status.waiting)],
    ["output tokens/s, last minute", (sum("output_tokens") / time).toFixed(1)],
    ["prompt tokens/s, last minute", (sum("prompt_tokens") / time).toFixed(1)],
    ["of them from the cache", percent(sum("reused_tokens"), sum("prompt_tokens"))],
    ["blocks in use", percent(status.blocks.used, status.blocks.total)],
  ];
  byId("tiles").replaceChildren(...tiles.map(([name, value]) => make("div", { class: "tile" }, make("b", {}, value), make("span", {}, name))));
  const memory = status.memory;
  bar(byId("memory"), byId("memory-keys"), [
    { name: "weights", size: memory.weights, colour: "blue" }, { name: "KV cache", size: memory.kv, colour: "green" },
    { name: "activations", size: memory.activations, colour: "amber" }, { name: "reserve", size: memory.reserve, colour: "pink" },
    { name: "free", size: memory.free, colour: "none" }], memory.total, bytes);
  const blocks = status.blocks;
  bar(byId("blocks"), byId("blocks-keys"), [
    { name: "used by requests:", size: blocks.used, colour: "blue" }, { name: "cached, reusable:", size: blocks.cached, colour: "green" },
    { name: "free:", size: blocks.free, colour: "none" }], blocks.total, (size) => counted(size, "block"));
  table(byId("tenants"), ["tenant", "requests", "prompt tokens", "reused", "output tokens", "blocks in flight"],
    status.tenants.map((one) => [one.tenant, count(one.requests), count(one.prompt_tokens), percent(one.reused_tokens, one.prompt_tokens), count(one.output_tokens), count(one.blocks)]), "no request yet");
  const values = (name, scale = 1) => status.history.map((sample) => [sample.age, sample[name] === null ? null : sample[name] * scale]);
  chart(byId("chart-hits"), [
    { name: "prompt tokens/s", colour: "blue", values: values("prompt_tokens", 1 / status.period) },
    { name: "of them reused", colour: "amber", area: true, values: values("reused_tokens", 1 / status.period) }], (value) => count(value));
  chart(byId("chart-out"), [{ name: "output tokens/s", colour: "blue", area: true, values: values("output_tokens", 1 / status.period) }], (value) => count(value));
  chart(byId("chart-ttft"), [
    { name: "median", colour: "blue", values: values("ttft") }, { name: "95th percentile", colour: "amber", values: values("ttft_p95") }], seconds);
  chart(byId("chart-usage"), [{ name: "blocks in use", colour: "blue", area: true, values: values("usage") }], (value) => `${Math.round(100 * value)} %`, 1);
  table(byId("flight"), ["request", "tenant", "for", "state", "prompt", "reused", "output"],
    status.in_flight.map((one) => [`${one.id.slice(0, 16)} ${one.route}`, one.tenant, seconds(one.seconds), one.state, count(one.prompt_tokens), ...[one.reused_tokens, one.output_tokens].map((tokens) => (one.state === "running" ? "-" : count(tokens)))]), "none");
}

// ---- the models of a server that has several ----

function choose(name) {
  model = name;
  sessionStorage.setItem("model", name);
  drawnReports = null;
  look();
}

// True when the chosen model is loaded, so that there is something to show of it.
function showModels(listed) {
  const own = listed.data.filter((one) => one.id === one.root);
  if (!own.some((one) => one.id === model)) model = (own.find((one) => one.state === "ready") || own[0]).id;
  const loaded = own.filter((one) => !["asleep", "unloaded", "failed"].includes(one.state));
  const colours = ["blue", "green", "amber", "pink", "grey"];
  bar(byId("budget"), byId("budget-keys"), [
    ...loaded.map((one, at) => ({ name: one.id, size: one.memory_bytes, colour: colours[at % colours.length] })),
    { name: "free", size: Math.max(0, listed.budget_bytes - listed.used_bytes), colour: "none" }], listed.budget_bytes, bytes);
  const focused = document.activeElement && document.activeElement.dataset.model;
  table(byId("models"), ["model", "state", "memory", "of it KV cache", "in flight", "loaded in"], own.map((one) => {
    const button = make("button", { type: "button", "data-model": one.id, "aria-pressed": String(one.id === model) }, one.id);
    button.addEventListener("click", () => choose(one.id));
    return [button, one.state, bytes(one.memory_bytes), bytes(one.kv_bytes), count(one.in_flight), seconds(one.load_seconds)];
  }), "none");
  if (focused) byId("models").querySelector(`[data-model="${CSS.escape(focused)}"]`)?.focus();
  const chosen = own.find((one) => one.id === model), ready = chosen.state === "ready";
  byId("asleep").textContent = ready ? "" : `${model} is ${chosen.state}${chosen.error ? `: ${chosen.error}` : ""}. A message in the chat loads it.`;
  if (!ready) byId("headline").textContent = `${counted(own.length, "model")} · ${model} is ${chosen.state}`;
  for (const part of byId("main").children) part.hidden = !ready && !["several", "chatting"].includes(part.id);
  byId("several").hidden = false;
  return ready;
}

// What ended the reuse of a prompt (kvtrove.kv.reasons).
const reasons = {
  full: "Everything that could be reused was.",
  last_token_recomputed: "All of it was cached; its last block is computed again, for the output.",
  cold: "Nothing that begins like it was computed before.",
  diverged: "It goes on differently from every earlier prompt.",
  evicted: "What comes next had been cached, and had to make room.",
  window_lost: "What comes next is cached in some layers; others had to make room.",
  no_state_checkpoint: "What comes next is cached, but no checkpoint of the running states.",
  state_checkpoint_evicted: "What comes next is cached; the checkpoint of the running states had to make room.",
  below_block_granularity: "What is shared is shorter than a block.",
  prompt_logprobs: "The request asks for figures of every prompt token, so all are computed.",
  exact_prefix: "A compacted prefix has more of it, and the request wants the exact one.",
  disabled: "Prefix caching is off.",
  other_tenant: "The earlier prompt belongs to somebody else.",
  other_model_or_cache_spec: "The earlier prompt was for another model.",
};
// system[0], messages[3], tools or template, in words.
function place(where) {
  const [, kind, number] = where.match(/^(\w+?)s?\[(\d+)\]$/) || [];
  if (kind === "system" && number === "0") return "the system message";
  if (kind) return `${kind === "message" ? "" : `${kind} `}message ${Number(number) + 1}`;
  return { tools: "the tools", template: "what the template adds" }[where] || where;
}

const open = new Set();
let drawnReports = null;
function showReports(reports) {
  const ids = reports.map((report) => report.request_id).join();
  if (ids === drawnReports) return;
  drawnReports = ids;
  const rows = reports.slice(0, 12).map((report, at) => {
    const row = make("details", {});
    const id = `${report.request_id}/${at}`;
    row.open = open.has(report.request_id);
    const prompt = make("div", { class: "prompt" });
    row.addEventListener("toggle", () => {
      if (!row.open) { open.delete(report.request_id); return; }
      open.add(report.request_id);
      showPrompt(prompt, report.request_id);
    });
    const parted = report.first_divergence;
    const same = parted ? Math.max(parted.position, report.reused_tokens) : report.prompt_tokens;
    const parts = [
      { name: "reused", size: report.reused_tokens, colour: "green" },
      { name: "computed", size: same - report.reused_tokens, colour: "blue" },
      { name: "after the difference", size: report.prompt_tokens - same, colour: "amber" }];
    const strip = make("div", { class: "bar" });
    bar(strip, null, parts, Math.max(1, report.prompt_tokens), (size) => counted(size, "token"));
    row.append(make("summary", { "data-id": id }, make("span", {}, `${percent(report.reused_tokens, report.prompt_tokens)} of ${counted(report.prompt_tokens, "token")}`), strip, make("span", { title: report.reason }, reasons[report.reason] || report.reason)));
    const keys = make("ul", { class: "keys" }, ...parts.filter((part) => part.size > 0).map((part) => make("li", {}, make("i", { class: `c-${part.colour}` }), `${part.name}: ${counted(part.size, "token")}`)));
    row.append(keys);
    if (parted) {
      const where = parted.where ? ` in ${place(parted.where)}` : "";
      const kind = parted.volatile ? `, which looks like a ${parted.volatile}` : "";
      row.append(make("p", {}, `First difference at token ${count(parted.position)}${where}${kind}, ${seconds(parted.earlier_seconds_ago)} after ${parted.earlier_request_id}:`));
      row.append(make("pre", {}, make("mark", { class: "reused" }, parted.before), make("mark", { class: "parted" }, parted.here), "\n\nbefore it was\n", make("mark", { class: "reused" }, parted.before), make("mark", { class: "computed" }, parted.earlier)));
    } else {
      row.append(make("p", { class: "note" }, report.reused_tokens ? "It continues an earlier prompt." : "Nothing earlier begins like it."));
    }
    row.append(prompt);
    return row;
  });
  byId("reports").replaceChildren(...(rows.length ? rows : [make("p", { class: "note" }, "no prompt yet")]));
}

// Prompts by request, each token in the colour of what the cache did for it; fetched when a row opens.
const prompts = new Map();
async function showPrompt(element, id) {
  try {
    if (!prompts.has(id)) prompts.set(id, (await get(of(`v1/cache/reports/${encodeURIComponent(id)}`))).data);
  } catch (error) {
    element.replaceChildren(make("p", { class: "note" }, "the prompt itself is forgotten"));
    return;
  }
  const words = { reused: "reused", computed: "computed", parted: "after the difference" };
  element.replaceChildren(...prompts.get(id).map((one) => {
    const kind = (at) => (at < one.reused_tokens ? "reused" : at < one.same_tokens ? "computed" : "parted");
    const shown = make("pre", { class: "tokens", tabindex: "0", "aria-label": "the prompt, token by token" },
      ...one.tokens.map((text, at) => make("span", { class: `t-${kind(at)}`, title: `token ${count(at)}: ${words[kind(at)]}` }, text)));
    const left = one.prompt_tokens - one.tokens.length;
    if (left > 0) shown.append(`\n... and ${counted(left, "token")} more`);
    return shown;
  }));
}

async function look() {
  try {
    const listed = several === false ? null : await get("v1/models");
    if (listed) several = "budget_bytes" in listed;
    byId("login").hidden = true;
    byId("main").hidden = false;
    if (several && !showModels(listed)) return;
    show(await get(of("v1/status")));
    const focused = byId("reports").contains(document.activeElement);
    if (!focused) showReports((await get(of("v1/cache/reports?limit=12"))).data);
  } catch (error) {
    const wanted = error.message === "key";
    byId("headline").textContent = wanted ? (key ? "this key does not open the server" : "this server wants a key") : "no answer from the server; trying again";
    if (wanted) { byId("main").hidden = true; byId("login").hidden = false; }
  }
}

async function refresh() {
  if (byId("login").hidden) await look();
  setTimeout(refresh, document.hidden ? 10000 : 2000);
}

byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("key").value;
  sessionStorage.setItem("key", key);
  byId("key").value = "";
  look();
});

// ---- the chat ----

let messages = [];
let asking = null;

function said(who, text) {
  const words = make("p", {}, text);
  const entry = make("div", {}, make("div", { class: "who" }, who), words);
  byId("talk").append(entry);
  return { entry, words };
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function ask(text) {
  messages.push({ role: "user", content: text });
  said("you", text);
  const answer = said("model", "");
  const started = performance.now();
  let content = "", first = null, usage = null;
  asking = new AbortController();
  byId("stop").disabled = false;
  byId("send").disabled = true;
  try {
    const body = { model, messages, stream: true, stream_options: { include_usage: true } };
    const reply = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(body), signal: asking.signal });
    if (!reply.ok) throw new Error((await reply.json()).error.message);
    for await (const event of events(reply.body)) {
      if (event.error) throw new Error(event.error.message);
      const delta = event.choices && event.choices[0] ? event.choices[0].delta.content : null;
      if (delta) { if (first === null) first = performance.now(); content += delta; answer.words.textContent = content; }
      if (event.usage) usage = event.usage;
    }
  } catch (error) {
    if (error.name !== "AbortError") answer.entry.append(make("p", { class: "error" }, error.message));
  }
  asking = null;
  byId("stop").disabled = true;
  byId("send").disabled = false;
  if (content) messages.push({ role: "assistant", content }); else messages.pop();
  if (usage) {
    const cached = usage.prompt_tokens_details.cached_tokens;
    const time = (performance.now() - (first || started)) / 1000;
    const rate = usage.completion_tokens > 1 && time > 0 ? `, ${((usage.completion_tokens - 1) / time).toFixed(1)} tokens/s` : "";
    const strip = make("div", { class: "bar turn" });
    bar(strip, null, [{ name: "reused", size: cached, colour: "green" }, { name: "computed", size: usage.prompt_tokens - cached, colour: "blue" }], Math.max(1, usage.prompt_tokens), (size) => counted(size, "token"));
    answer.entry.append(strip, make("div", { class: "note" }, `${counted(usage.prompt_tokens, "prompt token")}, ${count(cached)} reused (${percent(cached, usage.prompt_tokens)}); first token after ${seconds(((first || performance.now()) - started) / 1000)}, ${count(usage.completion_tokens)} out${rate}`));
  }
}

byId("chat").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("message").value.trim();
  if (!text || asking) return;
  byId("message").value = "";
  ask(text);
});
byId("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); byId("chat").requestSubmit(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && asking) asking.abort(); });
byId("stop").addEventListener("click", () => asking && asking.abort());
byId("reset").addEventListener("click", () => { if (asking) asking.abort(); messages = []; byId("talk").replaceChildren(); byId("message").focus(); });
refresh();
