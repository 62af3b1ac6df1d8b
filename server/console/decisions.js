// Decisions as they are made: polled, filtered, with feedback; and abstentions in groups. The gateway's log has them.

import { get, poll } from "./api.js";
import { $, NONE, Table, badge, count, el, millis, moment, percent } from "./dom.js";

const EVERY_MS = 2000;
const PAGE = 50;
const OFF = "The decision log is off: this gateway keeps no decisions to show.";

const COLUMNS = [
  { title: "When", kind: "text", cell: row => moment(row.at) },
  { title: "Policy", kind: "text", cell: row => row.policy ?? row.kind ?? NONE },
  { title: "Recipe", kind: "long", cell: row => row.recipe },
  { title: "Outcome", kind: "text", cell: row => row.abstained ? badge("abstained", "canary") : badge("expert" + (row.experts?.length === 1 ? "" : "s"), "yes"),
    only: row => row.policy },
  { title: "Confidence", cell: row => row.confidence === null || row.confidence === undefined ? NONE : row.confidence.toFixed(3) },
  { title: "Prompt", kind: "long", cell: row => row.prompt ?? "" },
  { title: "Feedback", kind: "text", cell: row => feedbackOf(row.feedback) },
  { title: "Status", cell: row => row.status >= 400 ? badge(String(row.status), "no") : String(row.status) },
  { title: "Tokens in / out", cell: row => `${count(row.input_tokens)} / ${count(row.output_tokens)}` },
  { title: "TTFT", cell: row => millis(row.ttft_ms) },
  { title: "Duration", cell: row => millis(row.duration_ms) },
  { title: "Endpoint", kind: "text", cell: row => row.endpoint },
  { title: "Key", kind: "text", cell: row => row.key_id ?? "" },
  { title: "Request id", kind: "text", cell: row => row.request_id },
].map(column => column.only ? { ...column, cell: row => column.only(row) ? column.cell(row) : NONE } : column);

function feedbackOf(opinion) {
  if (!opinion) return "";
  const kind = opinion.rating > 0 ? "good" : opinion.rating < 0 ? "bad" : "neutral";
  const wanted = opinion.expert ? `, wanted ${opinion.expert}` : "";
  return el("span", {}, badge(`${kind} (${opinion.rating})`, kind === "good" ? "yes" : kind === "bad" ? "no" : "none"),
    `${wanted}${opinion.comment ? `: ${opinion.comment}` : ""}`);
}

let table = null;
let rows = [];
let next = null;
let filters = {};
let paused = false;
let refresh = async () => {};

const keyOf = row => row.number ?? row.request_id;

export function start(report) {
  table ??= new Table($("decisions-table"), COLUMNS, { keyOf });
  refresh = async () => {
    try {
      const asked = filters;
      const page = await get("admin/decisions", { limit: PAGE, ...asked });
      report(null);
      if (asked === filters) take(page);
    } catch (error) {
      if (error.status === 404) tell(OFF);
      else report(error);
      return error.status !== 404;
    }
    return true;
  };
  let end = () => {};
  end = poll(async () => { if (!paused && !(await refresh())) end(); }, EVERY_MS);
  return () => end();
}

function take(page) {
  tell(page.decision_log === "off" ? `${OFF} (setting decision_log)` : "");
  const known = new Set(page.data.map(keyOf));
  const older = rows.filter(row => !known.has(keyOf(row)));
  if (rows.length <= PAGE) {
    rows = page.data;
    next = page.next ?? null;
  } else rows = [...page.data, ...older]; // older pages were asked for: they stay
  draw();
}

function draw() {
  table.show(rows);
  const abstained = rows.filter(row => row.abstained).length;
  const routed = rows.filter(row => row.policy).length;
  $("decisions-note").textContent = rows.length
    ? `${rows.length} decisions are shown${routed ? `; of ${routed} by policies, ${percent(abstained / routed)} abstained` : ""}.`
    : "No decision is like that yet.";
  $("decisions-more").hidden = next === null;
}

function tell(text) {
  $("decisions-off").hidden = !text;
  $("decisions-off").textContent = text;
}

$("decisions-form").addEventListener("submit", event => {
  event.preventDefault();
  filters = Object.fromEntries(["policy", "expert", "abstained", "rated"].map(name => [name, $(`decisions-${name}`).value.trim()]));
  rows = [];
  refresh();
});

$("decisions-pause").addEventListener("click", () => {
  paused = !paused;
  $("decisions-pause").setAttribute("aria-pressed", String(paused));
});

$("decisions-more").addEventListener("click", async () => {
  try {
    const page = await get("admin/decisions", { limit: PAGE, ...filters, before: next });
    rows = [...rows, ...page.data];
    next = page.next ?? null;
    draw();
  } catch (error) {
    tell(error.message);
  }
});

$("abstentions-load").addEventListener("click", async () => {
  $("abstentions").replaceChildren();
  try {
    const groups = await get("admin/abstentions");
    $("abstentions-note").textContent = groups.advice;
    $("abstentions").replaceChildren(...groups.data.map(group => {
      const near = group.nearest ? ` Nearest expert: ${group.nearest.expert} (${group.nearest.score.toFixed(3)}).` : "";
      const about = el("p", {}, `${count(group.size)} prompts, ${percent(group.share)} of the abstentions.${near}`);
      const prompts = group.prompts.map(text => el("li", {}, text.slice(0, 300)));
      return el("li", {}, about, prompts.length ? el("ul", {}, ...prompts) : "");
    }));
  } catch (error) {
    $("abstentions-note").textContent = error.status === 404 ? OFF : error.message;
  }
});
