// Making and changing elements. What comes from a person or the gateway is only ever put in as text.

export const $ = id => document.getElementById(id);

/** An element; children are elements or texts, and attributes that are null or false are left out. */
export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter(child => child !== null && child !== undefined));
  return made;
}

export function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Terms and what they are, into a <dl>; those without a value are left out. */
export function describe(list, pairs, wrap = false) {
  const items = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  list.replaceChildren(...items.flatMap(([term, value]) => {
    const both = [el("dt", {}, term), el("dd", {}, value)];
    return wrap ? [el("div", {}, ...both)] : both;
  }));
}

/**
 * A table whose rows stay the same elements when they are shown again, so that focus and selection survive.
 * A column is {key, title, help, kind: "text" | "long" | "", cell(row) -> text or element, value(row) to sort by, button(row)}.
 * The first column heads its row; `button` makes it a button.
 */
export class Table {
  constructor(table, columns, { keyOf, sortable = false, onsort = () => {} } = {}) {
    this.table = table;
    this.columns = columns;
    this.keyOf = keyOf ?? ((_row, number) => number);
    this.rows = new Map();
    this.sort = null;
    const head = el("tr");
    for (const column of columns) {
      const th = el("th", { scope: "col", class: column.kind ? "text" : null, title: column.help });
      if (sortable && column.value) {
        th.append(el("button", { type: "button", onclick: () => { this.turn(column, th); onsort(); } }, column.title));
      } else th.append(column.title);
      head.append(th);
    }
    table.tHead.replaceChildren(head);
    table.tBodies[0].replaceChildren();
  }

  turn(column, th) {
    const first = column.first ?? "descending";
    const was = this.sort?.column === column ? this.sort.way : null;
    const way = was === null ? first : was === "ascending" ? "descending" : "ascending";
    for (const each of th.parentElement.children) each.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", way);
    this.sort = { column, way };
  }

  sorted(rows) {
    if (!this.sort) return rows;
    const { column, way } = this.sort;
    const sign = way === "ascending" ? 1 : -1;
    const known = row => { const value = column.value(row); return value === null || value === undefined ? null : value; };
    return [...rows].sort((a, b) => {
      const [x, y] = [known(a), known(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return sign * (typeof x === "number" ? x - y : String(x).localeCompare(String(y)));
    });
  }

  show(rows) {
    const body = this.table.tBodies[0];
    const seen = new Set();
    let before = null;
    this.sorted(rows).forEach((row, number) => {
      const key = this.keyOf(row, number);
      seen.add(key);
      let line = this.rows.get(key);
      if (!line) this.rows.set(key, line = this.line(row));
      this.fill(line, row);
      const place = before ? before.nextSibling : body.firstChild;
      if (line.element !== place) body.insertBefore(line.element, place);
      before = line.element;
    });
    for (const [key, line] of this.rows) if (!seen.has(key)) { line.element.remove(); this.rows.delete(key); }
  }

  line() {
    const line = { element: el("tr"), shown: [], row: null };
    this.columns.forEach((column, index) => {
      const kind = { class: column.kind === "long" ? "long" : column.kind || null };
      const cell = index === 0 ? el("th", { scope: "row" }) : el("td", kind);
      if (index === 0 && column.button) cell.append(el("button", { type: "button", onclick: () => column.button(line.row) }));
      line.element.append(cell);
    });
    return line;
  }

  fill(line, row) {
    line.row = row;
    this.columns.forEach((column, index) => {
      const made = column.cell(row);
      const text = made instanceof Node ? `${made.className} ${made.textContent}` : String(made ?? "");
      if (line.shown[index] === text) return;
      line.shown[index] = text;
      const cell = line.element.children[index];
      (index === 0 && column.button ? cell.firstChild : cell).replaceChildren(made ?? "");
    });
  }
}

export const badge = (text, kind = text) => el("span", { class: `badge ${String(kind).replace(/[^a-z]/g, "")}` }, text);

// -- how figures are written ----------------------------------------------------------------------------------------

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
export const NONE = "–";
export const count = value => value === null || value === undefined ? NONE : grouped.format(value);
export const percent = (part, digits = 0) => part === null || part === undefined || Number.isNaN(part) ? NONE : `${(100 * part).toFixed(digits)} %`;
export const seconds = value => {
  if (value === null || value === undefined) return NONE;
  return value < 1 ? `${(1000 * value).toFixed(value < 0.01 ? 1 : 0)} ms` : `${value.toFixed(value < 10 ? 2 : 1)} s`;
};
export const millis = value => seconds(value === null || value === undefined ? null : value / 1000);
export const bytes = value => value < 2 ** 20 ? `${(value / 1024).toFixed(0)} KiB` : `${(value / 2 ** 20).toFixed(1)} MiB`;
export const moment = text => {
  const at = new Date(text);
  const day = at.toDateString() === new Date().toDateString() ? "" : `${at.toISOString().slice(0, 10)} `;
  return day + at.toLocaleTimeString("en-GB");
};
