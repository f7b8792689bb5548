// The newest rows of a run, as they are logged.
import { announce, fill, h } from "./dom.js";
import { dollars, metric, moment, number } from "./format.js";
import { follow } from "./live.js";
import { table } from "./table.js";

const KEPT = 200;
const SHOWN = ["reward/mean", "val/reward", "loss/train", "time/step_wall_s"];

/** Show the tail of a run's log; return what to do when the page is left. */
export function showRows(place, about) {
  let rows = [];
  let waits = false;
  const state = h("span", { role: "status" }, "connecting…");
  const body = h("div");
  fill(place, h("p", { class: "note" }, "Newest rows first; ", state), body);
  const show = () => {
    waits = false;
    fill(body, rowsTable(rows));
  };
  return follow(about.id, {
    row: (row) => {
      if (rows.some((known) => known.seq === row.seq)) {
        return; // sent again after a reconnect
      }
      rows = [row, ...rows].slice(0, KEPT);
      if (!waits) {
        waits = true;
        requestAnimationFrame(show);
      }
    },
    status: (status) => {
      fill(document.getElementById("run-status"), h("span", { class: `pill ${status}` }, status));
      announce(`the run is ${status}`);
    },
    state: (text) => { state.textContent = text; },
  });
}

function rowsTable(rows) {
  const own = SHOWN.filter((key) => rows.some((row) => key in row.metrics));
  return table({
    caption: "Newest rows", rows, columns: [
      { key: "seq", title: "row", right: true, cell: (row) => number(row.seq) },
      { key: "at", title: "logged", cell: (row) => moment(row.at) },
      { key: "attempt", title: "attempt", right: true, cell: (row) => number(row.attempt) },
      { key: "split", title: "split", cell: (row) => row.split },
      { key: "step", title: "step", right: true, cell: (row) => number(row.step) },
      ...own.map((key) => ({ key, title: key, right: true, cell: (row) => metric(key, row.metrics[key]) })),
      { key: "usd", title: "cost so far", right: true, cell: (row) => dollars(row.usd) },
      { key: "all", title: "all", cell: (row) => allOf(row) },
    ],
  });
}

function allOf(row) {
  return h("details", null, h("summary", null, `${Object.keys(row.metrics).length} metrics`),
    h("pre", { class: "text" }, Object.entries(row.metrics).map(([key, value]) => `${key}  ${value}\n`)));
}
