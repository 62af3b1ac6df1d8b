// Experts: every version with state, traffic and residency; replicas; policies. A name opens what can be done with it.

import { get, poll } from "./api.js";
import { $, NONE, Table, badge, bytes, count, describe, el, percent, seconds } from "./dom.js";
import { open, stateOf } from "./expert.js";

const EVERY_MS = 4000;
const FIRST_ROWS = 100;
const RATE_OVER_MS = 60_000;

let data = null;
let limit = FIRST_ROWS;
let refresh = () => {};
let samples = []; // of the requests by name, of the last minute

const traffic = field => row => row.traffic?.[field] ?? null;
const requests = row => row.traffic?.requests ?? row.trial?.requests ?? null;
const errors = row => row.traffic?.errors ?? row.trial?.errors ?? null;

function perMinute(row) {
  const oldest = samples[0];
  const newest = samples.at(-1);
  if (!row.traffic || samples.length < 2) return null;
  const minutes = (newest.at - oldest.at) / 60_000;
  return Math.max(0, (row.traffic.requests - (oldest.requests.get(row.name) ?? 0)) / minutes);
}

/** Of a canary: its own, of all requests to the name. */
function answers(row) {
  const all = data.experts.find(each => each.name === row.name && each.traffic)?.traffic.requests;
  return row.traffic || !row.trial || all === undefined ? count(requests(row)) : `${count(row.trial.requests)} of ${count(all)}`;
}

const COLUMNS = [
  { key: "id", title: "Version", kind: "text", first: "ascending", value: row => row.id, cell: row => row.id,
    button: row => open(row, refresh) },
  { key: "state", title: "State", kind: "text", first: "ascending", value: row => row.state,
    cell: row => badge(stateOf(row), row.state === "canary" && !row.share ? "shadow" : row.state) },
  { key: "requests", title: "Requests", help: "Of an active version all requests to its name, also those that its canary answered; of a canary its own",
    value: requests, cell: answers },
  { key: "rate", title: "per minute", help: "Over the last minute that this page was open", value: perMinute,
    cell: row => { const rate = perMinute(row); return rate === null ? NONE : rate.toFixed(rate < 10 ? 1 : 0); } },
  { key: "errors", title: "Errors", help: "Requests that failed; callers who hung up do not count",
    value: errors, cell: row => count(errors(row)) },
  { key: "p50", title: "p50", help: "Half of the answers were complete within this time", value: traffic("p50_s"),
    cell: row => seconds(traffic("p50_s")(row)) },
  { key: "p95", title: "p95", help: "95 % of the answers were complete within this time", value: traffic("p95_s"),
    cell: row => seconds(traffic("p95_s")(row)) },
  { key: "ttft", title: "TTFT p50", help: "Time to the first token of streamed answers", value: traffic("ttft_p50_s"),
    cell: row => seconds(traffic("ttft_p50_s")(row)) },
  { key: "resident", title: "Resident in", help: "Replicas that have it in a slot; the table below says which", value: row => row.resident_in.length,
    cell: row => row.resident_in.length ? `${row.resident_in.length} of ${data.replicas.length}` : NONE },
  { key: "flight", title: "Running", help: "Requests under way that use it", value: row => row.in_flight, cell: row => count(row.in_flight) },
  { key: "tokens", title: "Tokens in / out", value: traffic("output_tokens"),
    cell: row => row.traffic ? `${count(row.traffic.input_tokens)} / ${count(row.traffic.output_tokens)}` : NONE },
  { key: "cost", title: "Cost", help: "By the configured prices", value: traffic("cost"),
    cell: row => row.traffic?.cost ? row.traffic.cost.toFixed(4) : NONE },
  { key: "rank", title: "Rank", value: row => row.rank, cell: row => count(row.rank) },
  { key: "size", title: "Size", value: row => row.size_bytes, cell: row => bytes(row.size_bytes) },
  { key: "examples", title: "Examples", value: row => row.num_examples, cell: row => count(row.num_examples) },
];
const REPLICAS = [
  { title: "Replica", kind: "text", cell: row => row.name },
  { title: "State", kind: "text", cell: row => badge(row.ready ? "ready" : row.detail || "not ready", row.ready ? "yes" : "no") },
  { title: "In its batch", cell: row => count(row.running) },
  { title: "Waiting", cell: row => count(row.waiting) },
  { title: "Of ours", help: "Requests of this gateway that are under way there", cell: row => count(row.in_flight) },
  { title: "Executes", kind: "text", cell: row => row.has_plugin ? "experts, mixes, gates" : "single experts" },
  { title: "Resident experts", kind: "long", cell: row => row.experts.join(", ") || NONE },
];
const POLICIES = [
  { title: "Policy", kind: "text", cell: row => row.name },
  { title: "Router", kind: "text", cell: row => row.router },
  { title: "State", kind: "text", cell: row => badge(row.state, row.state === "ready" ? "yes" : row.state === "failed" ? "no" : "draining") },
  { title: "Experts", cell: row => count(row.num_experts) },
  { title: "Missing", help: "Experts of the library that the policy does not know yet", cell: row => row.behind_since
    ? el("span", { title: `since ${row.behind_since}` }, count(row.num_missing_experts)) : "0" },
  { title: "Decisions", cell: row => count(row.decisions) },
  { title: "Abstained", help: "For no expert: the base answered", cell: row => row.decisions ? percent(row.abstentions / row.decisions, 1) : NONE },
  { title: "Problem", kind: "long", cell: row => row.error ?? "" },
];

let tables = null;

export function start(report) {
  tables ??= {
    experts: new Table($("experts-table"), COLUMNS, { keyOf: row => row.id, sortable: true, onsort: draw }),
    replicas: new Table($("replicas-table"), REPLICAS, { keyOf: row => row.name }),
    policies: new Table($("policies-table"), POLICIES, { keyOf: row => row.name }),
  };
  refresh = async () => {
    try {
      data = await get("admin/overview");
      report(null);
    } catch (error) {
      report(error);
      return;
    }
    note();
    offerStates();
    draw();
  };
  return poll(refresh, EVERY_MS);
}

function note() {
  const at = Date.now();
  const requests = new Map(data.experts.filter(row => row.traffic).map(row => [row.name, row.traffic.requests]));
  samples = [...samples.filter(each => at - each.at < RATE_OVER_MS), { at, requests }];
}

function offerStates() {
  const select = $("experts-state");
  const known = new Set([...select.options].map(option => option.value));
  for (const state of new Set(data.experts.map(row => row.state))) if (!known.has(state)) select.append(el("option", { value: state }, state));
}

function draw() {
  if (!data) return;
  $("base").textContent = data.base;
  const all = data.experts.map(row => row.traffic).concat(Object.values(data.traffic)).filter(Boolean);
  const sum = field => all.reduce((total, each) => total + each[field], 0);
  const decided = data.policies.reduce((total, each) => total + each.decisions, 0);
  const abstained = data.policies.reduce((total, each) => total + each.abstentions, 0);
  describe($("tiles"), [
    ["Gateway", data.ready ? "ready" : "not ready"],
    ["Active experts", count(data.experts.filter(row => row.state === "active").length)],
    ["Requests", count(sum("requests"))],
    ["Errors", count(sum("errors"))],
    ["Running / queued", `${count(data.active)} / ${count(data.queued)}`],
    ["To the base", count(data.traffic.base?.requests ?? 0)],
    ["Abstained", decided ? percent(abstained / decided, 1) : NONE],
  ], true);
  const missing = Object.entries(data.missing).map(([part, why]) => `${part}: ${why}`).join("; ");
  $("missing").hidden = !missing;
  $("missing").textContent = missing && `Not ready. ${missing}`;
  const part = $("experts-name").value.trim().toLowerCase();
  const state = $("experts-state").value;
  const rows = data.experts.filter(row => row.id.includes(part) && (!state || row.state === state));
  tables.experts.show(tables.experts.sorted(rows).slice(0, limit));
  $("experts-more").hidden = rows.length <= limit;
  const left = data.num_versions - data.experts.length;
  $("experts-note").textContent = [
    rows.length ? "" : data.experts.length ? "No version is like that." : "The library is empty. moergate adapters add NAME FOLDER",
    rows.length > limit ? `${limit} of ${rows.length} are shown.` : "",
    left ? `${left} more versions are left out; moergate adapters list has all.` : "",
    data.traffic.other ? "Experts beyond the setting metrics_experts have no figures of their own." : "",
  ].filter(Boolean).join(" ");
  tables.replicas.show(data.replicas);
  tables.policies.show(data.policies);
}

$("experts-name").addEventListener("input", draw);
$("experts-state").addEventListener("change", draw);
$("experts-more").addEventListener("click", () => { limit += FIRST_ROWS; draw(); });
