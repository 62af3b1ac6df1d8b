// Asking the gateway: addresses relative to the page, the key in a header, errors as sentences.

const ROOT = new URL("./", document.baseURI);
const PLACE = "moergate-key";
let held = null; // where the browser keeps nothing for us

export const key = {
  get() {
    try { return sessionStorage.getItem(PLACE) ?? held; } catch { return held; }
  },
  set(value) {
    held = value;
    try {
      if (value === null) sessionStorage.removeItem(PLACE);
      else sessionStorage.setItem(PLACE, value);
    } catch { /* it is held until the page is left */ }
  },
};

/** The gateway refused, or did not answer (status 0). */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let askForKey = () => {};
export const onKeyNeeded = callback => { askForKey = callback; };

/** The response to a request, if it is good; throws ApiError. `signal` ends it. */
export async function send(method, path, { body, signal } = {}) {
  const headers = {};
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path, ROOT), {
      method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store", credentials: "omit", redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The gateway does not answer. Is it running, and is the network up?");
  }
  if (response.ok) return response;
  const message = await messageOf(response);
  if (response.status === 401) askForKey(message);
  throw new ApiError(response.status, message);
}

async function messageOf(response) {
  try {
    const { error } = await response.json();
    const problems = (error.problems ?? []).map(each => `${each.where}: ${each.what}. ${each.fix}`);
    return [error.message, ...problems].join(" ");
  } catch {
    return `The gateway answered with status ${response.status}.`;
  }
}

export const ask = async (method, path, options) => (await send(method, path, options)).json();
export const get = (path, query = {}) => {
  const given = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const text = new URLSearchParams(given).toString();
  return ask("GET", text ? `${path}?${text}` : path);
};

/** Events of a stream as objects, until it ends; throws ApiError for an error event. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    rest += value ?? "";
    const parts = rest.split(/\r?\n\r?\n/);
    rest = done ? "" : parts.pop();
    for (const part of parts) {
      const data = part.split(/\r?\n/).filter(line => line.startsWith("data:")).map(line => line.slice(5).trimStart()).join("\n");
      if (!data || data === "[DONE]") continue;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(event.error.code ?? 0, event.error.message);
      yield event;
    }
    if (done) return;
  }
}

/** Does something now and every few seconds while the page is looked at; returns what ends it. */
export function poll(work, everyMs) {
  let timer = null;
  let ended = false;
  let working = false;
  const turn = async () => {
    clearTimeout(timer);
    if (ended || working) return;
    working = true;
    if (!document.hidden) await work();
    working = false;
    if (!ended) timer = setTimeout(turn, everyMs);
  };
  const wake = () => { if (!document.hidden) turn(); };
  document.addEventListener("visibilitychange", wake);
  turn();
  return () => { ended = true; clearTimeout(timer); document.removeEventListener("visibilitychange", wake); };
}
