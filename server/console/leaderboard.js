// The newest published comparison, as a table that sorts by any figure.

import { get } from "./api.js";
import { $, Table, describe, moment } from "./dom.js";

export function start(report) {
  load(report);
}

async function load(report) {
  try {
    const found = await get("admin/leaderboard");
    report(null);
    draw(found);
  } catch (error) {
    report(error);
  }
}

function draw(found) {
  const board = found.leaderboard;
  $("board-scroll").hidden = !board;
  if (!board) {
    $("board-about").textContent = found.advice;
    describe($("board-columns"), []);
    return;
  }
  const about = board.about;
  $("board-about").textContent = `${about.folders.join(", ")} (${about.split}), base ${about.base}, ${about.num_prompts} prompts, `
    + `made ${moment(about.made_at)}, published ${moment(found.published_at)} by ${found.published_by}.`
    + (about.leave_own_out ? " Each prompt's own expert was hidden from the policies." : "")
    + (about.num_skipped ? ` ${about.num_skipped} rows were skipped.` : "")
    + Object.entries(about.left_out).map(([policy, reason]) => ` Not compared: ${policy} (${reason})`).join("");
  const columns = board.columns.filter(column => board.rows.some(row => row.shown[column.key]));
  let rows = board.rows;
  const table = new Table($("board-table"), columns.map((column, index) => ({
    title: column.title, help: column.meaning, kind: index ? "" : "text",
    first: column.better === "low" || !index ? "ascending" : "descending",
    value: row => row.values[column.key], cell: row => row.shown[column.key] ?? "",
  })), { keyOf: row => board.rows.indexOf(row), sortable: true, onsort: () => table.show(rows) });
  table.show(rows);
  describe($("board-columns"), columns.map(column => [column.title, column.meaning]));
}
