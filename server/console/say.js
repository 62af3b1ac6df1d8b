// One short sentence for everybody, also for screen readers; it goes after a few seconds.

import { $ } from "./dom.js";

let timer = null;

export function say(sentence) {
  clearTimeout(timer);
  $("said").textContent = sentence;
  timer = setTimeout(() => { $("said").textContent = ""; }, 8000);
}
