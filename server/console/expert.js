// One version closely: what is known of it, what can be done with it, its probes and its history.

import { ask, get } from "./api.js";
import { $, Table, badge, bytes, count, describe, el, moment, percent } from "./dom.js";
import { say } from "./say.js";

export function stateOf(row) {
  if (row.state !== "canary") return row.state;
  return row.share ? `canary, ${percent(row.share, row.share < 0.01 ? 2 : 0)}` : "in the shadow";
}

const HISTORY = [
  { title: "When", kind: "text", cell: row => moment(row.at) },
  { title: "What", kind: "text", cell: row => row.action },
  { title: "Version", kind: "text", cell: row => row.subject },
  { title: "From", kind: "text", cell: row => row.from ?? "" },
  { title: "To", kind: "text", cell: row => row.to ?? "" },
  { title: "Who", kind: "text", cell: row => row.actor },
  { title: "Why", kind: "long", cell: row => row.reason },
];

const path = (ref, action = "") => `admin/adapters/${encodeURIComponent(ref)}${action}`;

/** What can be done with a version in its state; each asks first. */
const ACTIONS = {
  promote: { title: "Promote", on: ["ready", "canary", "draining"], reason: true,
    what: row => `${row.id} gets all new conversations of ${row.name}; the version that is active now drains.`,
    work: (row, body) => ask("POST", path(row.id, "/promote"), { body }) },
  canary: { title: "Canary…", on: ["ready"], reason: true, share: true,
    what: row => `${row.id} gets a share of ${row.name}'s conversations; with a share of 0 it is only decided on in the shadow.`,
    work: (row, body) => ask("POST", path(row.id, "/promote"), { body }) },
  share: { title: "Change the share…", on: ["canary"], reason: true, share: true,
    what: row => `${row.id} gets another share of ${row.name}'s conversations.`,
    work: (row, body) => ask("POST", path(row.id, "/promote"), { body }) },
  withdraw: { title: "Withdraw", on: ["canary"], reason: true,
    what: row => `${row.id} gets no share any more. It stays ready, and can be asked for by its version.`,
    work: (row, body) => ask("POST", path(row.id, "/withdraw"), { body }) },
  rollback: { title: "Roll back", on: ["active"], reason: true,
    what: row => `The version of ${row.name} that was active before becomes active again; ${row.id} drains.`,
    work: (row, body) => ask("POST", path(row.name, "/rollback"), { body }) },
  remove: { title: "Remove", on: ["ready", "canary", "active"], danger: true,
    what: row => `Nothing new begins on ${row.id}. Requests under way end, then its files go. It has to be registered again to come back.`,
    work: row => ask("DELETE", path(row.id)) },
};

let history = null;
let current = null;
let after = () => {};

/** Show a version; `changed` is called when something was done. */
export async function open(row, changed) {
  history ??= new Table($("history-table"), HISTORY, { keyOf: each => each.number });
  current = row;
  after = changed;
  $("expert-name").textContent = row.id;
  $("expert").querySelector(".problem").textContent = "";
  $("expert-probes").replaceChildren();
  history.show([]);
  describe($("expert-facts"), []);
  offer(row);
  if (!$("expert").open) $("expert").showModal();
  try {
    const inShadow = row.state === "canary" && !row.share;
    const [record, audit, shadow] = await Promise.all([
      get(path(row.id)), get("admin/audit", { name: row.name, limit: 50 }), inShadow ? get("admin/shadow") : { data: [] },
    ]);
    if (current !== row) return;
    facts(record, shadow.data.find(each => each.id === row.id));
    probes(record.report);
    history.show(audit.data);
  } catch (error) {
    $("expert").querySelector(".problem").textContent = error.message;
  }
}

/** What the shadow's decisions tell of a version, in words. */
function tallied(tally) {
  if (!tally) return null;
  const whose = changes => {
    const listed = Object.entries(changes).sort((a, b) => b[1] - a[1]).map(([name, times]) => `${name} ${times}`);
    return listed.length ? ` (${listed.slice(0, 5).join(", ")})` : "";
  };
  const sum = changes => Object.values(changes).reduce((total, times) => total + times, 0);
  return `offered, it would keep ${tally.kept} requests, gain ${sum(tally.gained)}${whose(tally.gained)} `
    + `and lose ${sum(tally.lost)}${whose(tally.lost)}`;
}

function facts(record, tally) {
  const card = record.card;
  describe($("expert-facts"), [
    ["State", badge(stateOf(record), record.state)],
    ["In the shadow", tallied(tally)],
    ["Description", card.description],
    ["Tags", card.tags?.join(", ")],
    ["Tenant", card.tenant],
    ["Tasks", card.tasks?.join(", ")],
    ["Owner", card.owner],
    ["Licence", card.license],
    ["Merged from", card.composed_from?.recipe],
    ["Rank, alpha", `${record.rank}, ${record.alpha}`],
    ["Modules", record.target_modules.join(", ")],
    ["Size", bytes(record.size_bytes)],
    ["Registered", moment(record.created_at)],
    ["SHA-256", record.sha256],
    ["Examples", `${count(record.num_examples)}${record.examples.length ? ", such as" : ""}`],
    ["", record.examples.length ? el("ul", {}, ...record.examples.slice(0, 5).map(text => el("li", {}, text.slice(0, 300)))) : ""],
  ]);
}

function probes(report) {
  const place = $("expert-probes");
  if (!report) {
    place.replaceChildren(el("p", { class: "hint" }, "It was not probed: probes are off, or no engine has been asked yet."));
    return;
  }
  const simple = Object.entries(report).filter(([name]) => !["passed", "problems"].includes(name));
  const list = el("dl", { class: "facts" });
  describe(list, [["Result", badge(report.passed ? "passed" : "failed", report.passed ? "yes" : "no")],
    ...simple.map(([name, value]) => [name.replaceAll("_", " ").replace(/ s$/, ", s"), written(value)])]);
  const problems = (report.problems ?? []).map(each => el("li", {}, `${each.where}: ${each.what}. ${each.fix}`));
  place.replaceChildren(list, ...(problems.length ? [el("ul", {}, ...problems)] : []));
}

function written(value) {
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : value.toPrecision(4);
  if (value === null || typeof value !== "object") return String(value);
  return Object.entries(value).map(([name, each]) => `${name} ${written(each)}`).join(", ");
}

function offer(row) {
  const buttons = Object.values(ACTIONS).filter(action => action.on.includes(row.state)).map(action =>
    el("button", { type: "button", class: action.danger ? "danger" : null, onclick: () => confirm(action, row) }, action.title));
  $("expert-actions").replaceChildren(...(buttons.length ? buttons : [el("p", { class: "hint" }, "Nothing can be done with it in this state.")]));
}

let confirmed = null;

function confirm(action, row) {
  confirmed = { action, row };
  $("confirm-title").textContent = `${action.title.replace("…", "")}: ${row.id}`;
  $("confirm-what").textContent = action.what(row);
  $("confirm-share-label").hidden = !action.share;
  $("confirm-share").disabled = !action.share;
  $("confirm-share").value = row.share ? String(100 * row.share) : "10";
  $("confirm-reason-label").hidden = !action.reason;
  $("confirm-reason").value = "";
  $("confirm-yes").textContent = action.title.replace("…", "");
  $("confirm-yes").classList.toggle("danger", Boolean(action.danger));
  $("confirm-yes").classList.toggle("main", !action.danger);
  $("confirm").showModal();
}

$("confirm-form").addEventListener("submit", async event => {
  event.preventDefault();
  const { action, row } = confirmed;
  const body = { reason: $("confirm-reason").value };
  if (action.share) body.share = Number($("confirm-share").value) / 100;
  $("confirm-yes").disabled = true;
  try {
    const record = await action.work(row, body);
    $("confirm").close();
    $("expert").close();
    say(`${record.id} is ${stateOf(record)} now.`);
  } catch (error) {
    $("confirm").close();
    $("expert").querySelector(".problem").textContent = error.message;
  } finally {
    $("confirm-yes").disabled = false;
  }
  await after();
});
$("confirm-no").addEventListener("click", () => $("confirm").close());
$("expert-close").addEventListener("click", () => $("expert").close());
$("expert").addEventListener("close", () => { current = null; });
