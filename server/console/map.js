// The map: every expert's examples on a plane, recent prompts, and where a prompt of one's own falls.

import { ask, get } from "./api.js";
import { $, Table, count, el, percent, svg } from "./dom.js";

const WIDTH = 800;
const HEIGHT = 560;
const MARGIN = 24;
const MAX_RECENT = 100; // as many as can be placed at once
const MAX_LOOKED_AT = 500;
const MAX_LISTED = 500;
const HUES = 8;
/** Outlines around the origin, so that experts differ without their colours, too. */
const SHAPES = [
  "M-4.2 0a4.2 4.2 0 1 0 8.4 0a4.2 4.2 0 1 0-8.4 0Z",
  "M-4-4h8v8h-8Z",
  "M0-5 5 4H-5Z",
  "M0-5.4 5.4 0 0 5.4-5.4 0Z",
  "M0 5-5-4H5Z",
  "M-1.7-5h3.4v3.3H5v3.4H1.7V5h-3.4V1.7H-5v-3.4h3.3Z",
];
const PAIRS = 24; // after so many experts pairs of hue and shape would come again; another 24 follow by shifting the shapes
const STAR = "M0-10 2.9-3.1 9.5-3.1 4.2 1.2 6.2 8.1 0 4 -6.2 8.1 -4.2 1.2 -9.5-3.1 -2.9-3.1Z";

let data = null;
let recent = [];
let placed = null; // {x, y, nearest, text}
let chosen = new Set(); // names in the legend that are looked at; none: all
let at = null; // {kind: "point" | "recent", index}
let view = { zoom: 1, x: 0, y: 0 }; // what of the plane is in the middle, and how near
let fit = { scale: 1, x: 0, y: 0 };
let table = null;
let report = () => {};

const hueOf = expert => `hue${expert % HUES}`;
const shapeOf = expert => SHAPES[(expert + Math.floor(expert / PAIRS)) % SHAPES.length];

export function start(tell) {
  report = tell;
  load();
}

async function load() {
  $("map-about").textContent ||= "The map is being made…";
  try {
    const found = await get("admin/map");
    report(null);
    if (data?.version === found.version) return;
    [data, placed, at, recent] = [found, null, null, []];
    $("map-place").disabled = data.points.length === 0;
    chosen = new Set(data.experts.filter((_, expert) => chosen.has(data.experts[expert])));
    reset();
    about();
    legend();
    draw();
    list();
    if ($("map-recent").checked) await showRecent();
  } catch (error) {
    $("map-about").textContent = "";
    report(error);
  }
}

function about() {
  const left = data.num_examples - data.points.length;
  $("map-about").textContent = data.points.length
    ? `${count(data.points.length)} examples of ${count(data.experts.length)} experts as ${data.embedder} sees them`
      + `${left ? `; ${count(left)} more are left out, evenly` : ""}. The two axes are the main directions in which they differ and hold `
      + `${percent(data.explained[0] + data.explained[1])} of their variance, so distance on the map is a hint only.`
    : "No active expert has examples.";
}

// -- where things are -----------------------------------------------------------------------------------------------

function reset() {
  const xs = data.points.map(point => point.x);
  const ys = data.points.map(point => point.y);
  const span = values => values.length ? [Math.min(...values), Math.max(...values)] : [0, 0];
  const [[left, right], [low, high]] = [span(xs), span(ys)];
  const scale = Math.min((WIDTH - 2 * MARGIN) / (right - left || 1), (HEIGHT - 2 * MARGIN) / (high - low || 1));
  fit = { scale, x: (left + right) / 2, y: (low + high) / 2 };
  view = { zoom: 1, x: fit.x, y: fit.y };
}

const onPlane = ({ x, y }) => [WIDTH / 2 + (x - view.x) * fit.scale * view.zoom, HEIGHT / 2 - (y - view.y) * fit.scale * view.zoom];
const moved = point => `translate(${onPlane(point).map(value => value.toFixed(1)).join(" ")})`;

function zoom(factor) {
  const middle = at ? item(at) : view;
  view = { zoom: Math.min(40, Math.max(1, view.zoom * factor)), x: middle.x, y: middle.y };
  if (view.zoom === 1) view = { zoom: 1, x: fit.x, y: fit.y };
  draw();
}

// -- drawing --------------------------------------------------------------------------------------------------------

const item = ({ kind, index }) => (kind === "point" ? data.points : recent)[index];
const isFaded = name => chosen.size > 0 && !chosen.has(name);

function draw() {
  const points = data.points.map((point, index) => svg("path", {
    class: `point ${hueOf(point.expert)}${isFaded(data.experts[point.expert]) ? " faded" : ""}`,
    d: shapeOf(point.expert), transform: moved(point), "data-kind": "point", "data-index": index,
  }));
  const rings = recent.map((prompt, index) => svg("circle", {
    class: `recent ${prompt.expert < 0 ? "hue7" : hueOf(prompt.expert)}`, r: 6.5, transform: moved(prompt), "data-kind": "recent", "data-index": index,
  }));
  const extra = [];
  if (placed) {
    const [x, y] = onPlane(placed);
    for (const near of placed.nearest) {
      const [x2, y2] = onPlane(data.points[near.point]);
      extra.push(svg("line", { class: "tie", x1: x, y1: y, x2, y2 }));
    }
    extra.push(svg("path", { class: "placed", d: STAR, transform: moved(placed) }));
  }
  $("map-svg").replaceChildren(svg("g", {}, ...points), svg("g", {}, ...rings), svg("g", {}, ...extra), svg("g", { id: "map-ring" }));
  ring();
}

function ring() {
  $("map-ring").replaceChildren(...(at ? [svg("circle", { class: "ring", r: 10, transform: moved(item(at)) })] : []));
}

function legend() {
  const numbers = new Array(data.experts.length).fill(0);
  for (const point of data.points) numbers[point.expert] += 1;
  $("map-legend").replaceChildren(...data.experts.map((name, expert) => {
    const mark = svg("svg", { width: 16, height: 16, viewBox: "-8 -8 16 16", "aria-hidden": "true" }, svg("path", { class: `point ${hueOf(expert)}`, d: shapeOf(expert) }));
    const button = el("button", { type: "button", "aria-pressed": String(chosen.has(name)) }, mark, el("span", {}, `${name} (${numbers[expert]})`));
    button.addEventListener("click", () => {
      if (!chosen.delete(name)) chosen.add(name);
      button.setAttribute("aria-pressed", String(chosen.has(name)));
      draw();
      list();
    });
    return el("li", {}, button);
  }));
}

function list() {
  if (!$("map-list").open || !data) return;
  table ??= new Table($("map-table"), [
    { title: "Expert", kind: "text", cell: row => data.experts[row.expert] },
    { title: "Example", kind: "long", cell: row => row.text },
  ]);
  const rows = data.points.filter(point => !isFaded(data.experts[point.expert]));
  table.show(rows.slice(0, MAX_LISTED));
  $("map-caption").textContent = `${rows.length > MAX_LISTED ? `The first ${MAX_LISTED} of ${rows.length}` : rows.length} examples`
    + `${chosen.size ? ` of ${[...chosen].join(", ")}` : "; choose experts above to see theirs only"}`;
}

function show(shown) {
  at = shown;
  ring();
  const found = item(at);
  const whose = at.kind === "point" ? data.experts[found.expert] : `recent prompt, ${found.answeredBy}`;
  $("map-shown").replaceChildren(el("p", {}, el("strong", {}, whose)), el("p", {}, found.text));
}

// -- moving by keyboard and pointer ----------------------------------------------------------------------------------

const WAYS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** The next mark in a direction: near, and not far to the side. */
function step([dx, dy]) {
  const all = [...data.points.keys()].filter(index => !isFaded(data.experts[data.points[index].expert])).map(index => ({ kind: "point", index }))
    .concat([...recent.keys()].map(index => ({ kind: "recent", index })));
  if (!all.length) return;
  const [x, y] = at ? onPlane(item(at)) : [WIDTH / 2, HEIGHT / 2];
  let best = null;
  for (const each of all) {
    const [px, py] = onPlane(item(each));
    const along = (px - x) * dx + (py - y) * dy;
    const aside = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
    const far = at ? along + 2.5 * aside : Math.hypot(px - x, py - y);
    const isSame = at && each.kind === at.kind && each.index === at.index;
    if (!isSame && (!at || (along > 0.05 && aside <= 2 * along)) && (best === null || far < best.far)) best = { each, far };
  }
  if (best) show(best.each);
}

$("map-plane").addEventListener("keydown", event => {
  if (!data?.points.length || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in WAYS) step(WAYS[event.key]);
  else if (event.key === "+" || event.key === "=") zoom(1.6);
  else if (event.key === "-") zoom(1 / 1.6);
  else if (event.key === "Home") { reset(); draw(); } else return;
  event.preventDefault();
});

for (const kind of ["pointerover", "click"]) {
  $("map-svg").addEventListener(kind, event => {
    const mark = event.target.closest("[data-kind]");
    if (mark) show({ kind: mark.dataset.kind, index: Number(mark.dataset.index) });
  });
}
$("map-in").addEventListener("click", () => data && zoom(1.6));
$("map-out").addEventListener("click", () => data && zoom(1 / 1.6));
$("map-all").addEventListener("click", () => { if (data) { reset(); draw(); } });
$("map-list").addEventListener("toggle", list);

// -- prompts --------------------------------------------------------------------------------------------------------

async function place(texts) {
  const found = await ask("POST", "admin/map/place", { body: { texts } });
  if (found.version !== data.version) await load();
  return found.data;
}

$("map-form").addEventListener("submit", async event => {
  event.preventDefault();
  const text = $("map-prompt").value.trim();
  if (!text || !data) return;
  try {
    const [found] = await place([text]);
    placed = { ...found, text };
    report(null);
    draw();
    const near = placed.nearest.map(each => el("li", {}, `${each.expert} (${each.similarity.toFixed(3)}): ${each.text}`));
    const first = placed.nearest[0];
    $("map-note").textContent = first ? `The star is your prompt. The nearest example is one of ${first.expert}.` : "There are no examples to compare it with.";
    $("map-shown").replaceChildren(el("p", {}, el("strong", {}, "Your prompt")), el("p", {}, text), el("p", { class: "hint" }, "Nearest examples:"), el("ol", {}, ...near));
  } catch (error) {
    report(error);
  }
});

async function showRecent() {
  recent = [];
  if (at?.kind === "recent") at = null;
  $("map-note").textContent = "";
  if ($("map-recent").checked) await loadRecent();
  draw();
}

$("map-recent").addEventListener("change", () => { if (data) showRecent(); });

async function loadRecent() {
  const none = "No recent prompts are kept. The setting decision_log says what is; it has to be prompts for them to be shown here.";
  try {
    const { data: decisions } = await get("admin/decisions", { limit: MAX_LOOKED_AT });
    const kept = decisions.filter(each => each.prompt?.trim()).slice(0, MAX_RECENT);
    if (!kept.length) {
      $("map-note").textContent = none;
      return;
    }
    const spots = await place(kept.map(each => each.prompt));
    recent = kept.map((each, index) => {
      const answeredBy = each.experts?.length ? each.experts.map(id => id.split("@")[0]).join(", ") : "base";
      return { ...spots[index], text: each.prompt, answeredBy, expert: data.experts.indexOf(answeredBy) };
    });
    $("map-note").textContent = `${kept.length} recent prompts are shown as rings, in the colour of the expert that answered.`;
  } catch (error) {
    if (error.status === 404) $("map-note").textContent = none;
    else report(error);
  }
}
