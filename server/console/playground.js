// The playground: one prompt, two models or policies, both answers as they stream, and why each was routed so.

import { ask, events, get, send } from "./api.js";
import { $, NONE, describe, el, seconds } from "./dom.js";

const MAX_SHOWN = 8;

let running = null; // the AbortController of the questions under way
let report = () => {};

export function start(tell) {
  report = tell;
  offerModels();
  return () => running?.abort();
}

async function offerModels() {
  try {
    const { data } = await get("v1/models");
    $("play-models").replaceChildren(...data.map(model => el("option", { value: model.id }, model.kind)));
    report(null);
  } catch (error) {
    report(error);
  }
}

/** What is asked of one side. */
function question(model, streaming) {
  const body = { model, messages: [{ role: "user", content: $("play-prompt").value }] };
  if (!streaming) return body;
  return { ...body, stream: true, stream_options: { include_usage: true },
    max_tokens: Number($("play-tokens").value), temperature: Number($("play-temperature").value) };
}

async function askBoth() {
  running?.abort();
  const mine = running = new AbortController();
  $("play-stop").disabled = false;
  report(null);
  $("play-status").textContent = "Asking both…";
  const ended = await Promise.all([side("left", mine.signal), side("right", mine.signal)]);
  if (running !== mine) return;
  running = null;
  $("play-stop").disabled = true;
  $("play-status").textContent = ended.join(" ");
}

/** Ask one side; resolves to a sentence of what became of it. */
async function side(name, signal) {
  const card = $(`play-${name}`);
  const model = card.querySelector("input").value.trim();
  const [answer, facts, why] = [".answer", ".facts", ".why"].map(part => card.querySelector(part));
  const title = `${name === "left" ? "Left" : "Right"}: ${model}`;
  card.querySelector("h2").textContent = title;
  answer.replaceChildren();
  describe(facts, []);
  why.replaceChildren();
  const [told] = await Promise.all([stream(model, answer, facts, signal), explain(model, why, signal)]);
  return `${title}: ${told}`;
}

async function stream(model, answer, facts, signal) {
  const began = performance.now();
  const seen = { first: null, last: null, events: 0, usage: null };
  let headers = null;
  const show = () => describe(facts, figures(headers, began, seen));
  try {
    const response = await send("POST", "v1/chat/completions", { body: question(model, true), signal });
    headers = response.headers;
    show();
    for await (const event of events(response)) {
      seen.usage = event.usage ?? seen.usage;
      const delta = event.choices?.[0]?.delta ?? {};
      const text = (delta.reasoning_content ?? "") + (delta.content ?? "");
      if (!text) continue;
      seen.last = performance.now();
      seen.first ??= seen.last;
      seen.events += 1;
      answer.append(text);
      show();
    }
    show();
    return "done.";
  } catch (error) {
    if (signal.aborted) {
      if (headers) show();
      return "stopped.";
    }
    answer.append(el("p", { class: "problem" }, error.message));
    return "failed.";
  }
}

function figures(headers, began, seen) {
  const tokens = seen.usage?.completion_tokens ?? seen.events;
  const took = seen.last === null ? 0 : (seen.last - seen.first) / 1000;
  const header = name => headers?.get(`x-moergate-${name}`);
  return [
    ["Recipe", header("recipe")],
    ["Policy", header("policy")],
    ["Confidence", header("confidence")],
    ["Overhead", header("overhead-ms") && `${header("overhead-ms")} ms`],
    ["First token", seen.first === null ? NONE : seconds((seen.first - began) / 1000)],
    ["Tokens", `${seen.usage ? `${seen.usage.prompt_tokens} in, ` : ""}${tokens} out`],
    ["Tokens/s", tokens > 1 && took > 0 ? ((tokens - 1) / took).toFixed(1) : NONE],
    ["Request id", headers?.get("x-request-id")],
  ];
}

async function explain(model, why, signal) {
  try {
    const found = await ask("POST", "v1/route", { body: question(model, false), signal });
    const parts = [el("h3", {}, "Why"), el("p", {}, reason(found))];
    if (found.candidates.length) parts.push(bars(found.candidates));
    if (found.neighbours.length) {
      parts.push(el("h3", {}, "Nearest examples"), el("ol", {}, ...found.neighbours.slice(0, MAX_SHOWN).map(each =>
        el("li", {}, `${each.expert.split("@")[0]} (${each.similarity.toFixed(3)}): ${each.example.slice(0, 300)}`))));
    }
    why.replaceChildren(...parts);
  } catch (error) {
    if (!signal.aborted) why.replaceChildren(el("p", { class: "hint" }, `No explanation: ${error.message}`));
  }
}

function reason(found) {
  const sure = found.confidence === null ? "" : ` Confidence ${found.confidence.toFixed(3)}.`;
  return `${found.abstained ? "It abstained. " : ""}${found.reason}${/[.!?]$/.test(found.reason) ? "" : "."}${sure}`;
}

function bars(candidates) {
  const shown = candidates.slice(0, MAX_SHOWN);
  const scores = shown.map(each => each.score);
  const low = Math.min(0, ...scores);
  const range = Math.max(...scores, 0) - low || 1;
  const rows = shown.map(each => {
    const bar = el("span");
    bar.style.setProperty("--part", `${(100 * (each.score - low)) / range}%`);
    return el("tr", {}, el("th", { scope: "row" }, each.expert), el("td", {}, each.score.toFixed(4)), el("td", { class: "bar" }, bar));
  });
  const head = el("tr", {}, ...["Candidate", "Score", "Compared"].map(title => el("th", { scope: "col" }, title)));
  const left = candidates.length - shown.length;
  return el("table", { class: "bars" }, el("caption", {}, `Candidates, best first${left ? `; ${left} more` : ""}`), el("thead", {}, head), el("tbody", {}, ...rows));
}

$("play-form").addEventListener("submit", event => {
  event.preventDefault();
  askBoth();
});
$("play-prompt").addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("play-form").requestSubmit();
});
$("play-stop").addEventListener("click", () => running?.abort());
