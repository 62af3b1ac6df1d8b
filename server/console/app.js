// The frame: which view is shown, the key, and what is said to people.

import { key, onKeyNeeded } from "./api.js";
import { $ } from "./dom.js";
import * as decisions from "./decisions.js";
import * as experts from "./experts.js";
import * as leaderboard from "./leaderboard.js";
import * as map from "./map.js";
import * as playground from "./playground.js";

const VIEWS = { experts, decisions, playground, map, leaderboard };
const FIRST = "experts";
let stop = () => {};
let shown = null;

function show(name, { moveFocus }) {
  stop();
  stop = () => {};
  for (const section of document.querySelectorAll("main > .view[id]")) section.hidden = section.id !== `view-${name}`;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const section = $(`view-${name}`);
  const heading = section.querySelector("h1");
  document.title = `${heading.textContent} · Moergate console`;
  if (moveFocus) heading.focus();
  $("forget").hidden = key.get() === null;
  shown = name;
  if (VIEWS[name]) stop = VIEWS[name].start(reporter(section)) ?? (() => {});
}

/** What a view tells its problems to; no problem takes the last one away. */
const reporter = section => problem => {
  const place = section.querySelector(".problem");
  const text = problem ? problem.message : "";
  if (place.textContent !== text) place.textContent = text;
};

function showAsked(options) {
  const asked = location.hash.slice(1);
  show(asked in VIEWS ? asked : FIRST, options);
}

onKeyNeeded(why => {
  if (shown === "key") return;
  show("key", { moveFocus: false });
  $("key-why").textContent = why;
  $("key").value = "";
  $("key").focus();
});

$("key-form").addEventListener("submit", event => {
  event.preventDefault();
  key.set($("key").value.trim());
  $("key").value = "";
  showAsked({ moveFocus: true });
});

$("forget").addEventListener("click", () => {
  key.set(null);
  location.reload();
});

$("skip").addEventListener("click", event => {
  event.preventDefault();
  $("main").focus();
});

addEventListener("hashchange", () => showAsked({ moveFocus: true }));
showAsked({ moveFocus: false });
