// The list of runs and the leaderboard: filters, order, columns, a matrix, CSV.
import { address, get } from "./api.js";
import { announce, choice, debounced, field, fill, h } from "./dom.js";
import { counted, metric, moment, number } from "./format.js";
import { pager, table } from "./table.js";

const STATUSES = [["all", "all"], ["ended", "finished or interrupted"], ["running", "running"], ["finished", "finished"],
  ["interrupted", "interrupted"], ["failed", "failed"], ["killed", "killed"], ["unknown", "unknown"], ["unreadable", "unreadable"]];
const PAGE = 100;
const AGAIN_LIST_MS = 10_000;
const KINDS = {
  runs: { title: "Runs", status: "all", sort: "ended", reverse: "1", columns: ["step", "reward/mean", "reward/mean.best", "costs/cum/all", "attempts"] },
  leaderboard: {
    title: "Leaderboard", status: "ended", sort: "reward/mean", reverse: "",
    columns: ["step", "reward/mean", "reward/mean.best", "val/reward", "val/reward.best", "loss/train", "costs/cum/all", "reward_per_dollar"],
  },
};
const TITLES = { "costs/cum/all": "cost", reward_per_dollar: "reward / $", "reward/mean": "reward", "reward/mean.best": "best reward" };

/** Show a list in `main`; `query` are the parameters of its address. */
export async function showList(main, kind, query) {
  const kept = KINDS[kind];
  const state = { status: kept.status, sort: kept.sort, reverse: kept.reverse, q: "", offset: "0", ...query };
  state.columns = state.columns || kept.columns.join(",");
  const view = { kind, state, chosen: new Set(), body: h("div"), bar: h("div", { class: "chosen" }) };
  fill(main, h("h1", null, kept.title), toolbar(view), view.bar, view.body);
  await load(view);
}

function toolbar(view) {
  const { state } = view;
  const typed = debounced((value) => change(view, { q: value }), 250);
  const filter = h("input", {
    type: "search", value: state.q, placeholder: "inbox reward/mean>0.5",
    title: "Words of a run's name, and conditions: KEY>NUMBER, <, >=, <=, =, !=", oninput: (event) => typed(event.target.value),
  });
  return h("div", { class: "toolbar", role: "search" },
    field("Filter", filter),
    field("Status", choice(STATUSES, state.status, (value) => change(view, { status: value }))),
    view.columnBox = h("details", { class: "menu" }, h("summary", null, "Columns")),
    view.kind === "leaderboard" ? h("span", { class: "field" }, h("span", null, "Export"), view.links = h("span")) : null,
    view.kind === "leaderboard" ? field("Matrix of", view.matrixBox = h("select", { onchange: (event) => change(view, { matrix: event.target.value }) })) : null);
}

async function change(view, changes) {
  view.state = { offset: "0", ...without(view.state, "offset"), ...changes };
  history.replaceState(null, "", address(`#/${view.kind}`, view.state));
  await load(view);
}

function without(values, name) {
  return Object.fromEntries(Object.entries(values).filter(([key]) => key !== name));
}

async function load(view) {
  const { state } = view;
  const started = {};
  view.newest = started;
  try {
    const page = await get("/api/runs", { ...without(state, "matrix"), limit: PAGE });
    const cells = state.matrix ? await get("/api/matrix", { key: state.matrix, status: state.status, q: state.q }) : null;
    if (view.newest !== started) {
      return;
    }
    fillColumns(view, page);
    fill(view.body, cells ? matrixOf(cells) : listOf(view, page));
    announce(`${counted(page.total, "run")}`);
    if (page.statuses.running) {
      setTimeout(() => again(view, started), AGAIN_LIST_MS);
    }
  } catch (error) {
    if (view.newest === started) {
      fill(view.body, h("p", { class: "problem", role: "alert" }, error.message));
    }
  }
}

/** Load the list again while runs are running, unless something else was loaded or is in use. */
function again(view, started) {
  const busy = document.hidden || view.body.contains(document.activeElement);
  if (view.newest !== started || !view.body.isConnected) {
    return;
  }
  if (busy) {
    setTimeout(() => again(view, started), AGAIN_LIST_MS);
  } else {
    load(view);
  }
}

function listOf(view, page) {
  const { state } = view;
  if (page.total === 0) {
    const others = Object.entries(page.statuses).map(([status, count]) => `${count} ${status}`).join(", ");
    return h("p", { class: "note" }, others ? `No run fits. There are: ${others}.` : "No runs yet. A run is in DIR/<project>/models/<name>.");
  }
  const go = (offset) => change(view, { offset: String(offset) });
  const sort = { key: page.sort, reverse: state.reverse === "1", lower: isRising(page.sort, page.directions) };
  return [
    table({
      caption: KINDS[view.kind].title, columns: columnsOf(view, page), rows: page.rows, sort,
      choose: (key) => change(view, { sort: key, reverse: state.sort === key && state.reverse !== "1" ? "1" : "" }).then(() => refocus(view, key)),
    }),
    pager(page.total, page.offset, PAGE, go),
  ];
}

function isRising(key, directions) {
  return ["run", "status", "started", "ended"].includes(key) || directions[key] === "lower";
}

function refocus(view, key) {
  [...view.body.querySelectorAll("button.sort")].find((button) => button.dataset.key === key)?.focus();
}

function columnsOf(view, page) {
  const names = view.state.columns.split(",").filter((name) => page.columns.includes(name));
  return [
    { key: "run", title: "run", sortable: true, cell: (row) => h("a", { href: `#/run/${row.id}/curves` }, row.run) },
    { key: "pick", title: h("span", { class: "sr" }, "compare"), cell: (row) => pickBox(view, row) },
    { key: "status", title: "status", sortable: true, cell: pill },
    ...names.map((name) => ({ key: name, title: TITLES[name] || name, help: name, right: true, sortable: true, cell: (row) => metric(name, row.values[name]) })),
    { key: "ended", title: "last row", sortable: true, right: true, cell: (row) => moment(row.ended) },
  ];
}

/** Return a run's status; the reason is there too if it can't be read. */
export function pill(row) {
  return [h("span", { class: `pill ${row.status}` }, row.status), row.problem ? h("small", { class: "problem" }, ` ${row.problem}`) : null];
}

function pickBox(view, row) {
  const toggle = (event) => {
    view.chosen[event.target.checked ? "add" : "delete"](row.id);
    const ids = [...view.chosen].join(",");
    fill(view.bar, view.chosen.size < 2 ? null : h("a", { class: "button", href: `#/run/${ids}/curves` }, `Overlay ${view.chosen.size} runs`));
  };
  return h("input", { type: "checkbox", checked: view.chosen.has(row.id), "aria-label": `overlay ${row.run}`, onchange: toggle });
}

function fillColumns(view, page) {
  if (!view.columnBox.open) {
    const shown = new Set(view.state.columns.split(","));
    const boxes = page.columns.map((name) => h("label", null, h("input", {
      type: "checkbox", checked: shown.has(name), onchange: (event) => {
        shown[event.target.checked ? "add" : "delete"](name);
        change(view, { columns: page.columns.filter((each) => shown.has(each)).join(","), offset: view.state.offset });
      },
    }), ` ${name}`));
    const narrow = (event) => boxes.forEach((box) => { box.hidden = !box.textContent.includes(event.target.value); });
    fill(view.columnBox, h("summary", null, `Columns (${shown.size} of ${page.columns.length})`),
      h("div", { class: "sheet" }, h("input", { type: "search", placeholder: "find a key", "aria-label": "find a column", oninput: narrow }), boxes));
  }
  if (view.links) {
    const asked = { status: view.state.status, q: view.state.q, sort: view.state.sort, reverse: view.state.reverse };
    fill(view.links, h("a", { href: address("/api/runs.csv", asked), download: "" }, "CSV"), " ",
      h("a", { href: address("/api/runs.csv", { ...asked, form: "long" }), download: "" }, "long CSV"));
    const value = view.state.matrix || "";
    fill(view.matrixBox, ["", ...page.columns].map((name) => h("option", { value: name, selected: name === value }, name || "no matrix")));
  }
}

function matrixOf(cells) {
  const rows = Object.entries(cells.models);
  if (rows.length === 0) {
    return h("p", { class: "note" }, "No run fits.");
  }
  const best = (project) => {
    const values = rows.map(([, row]) => row[project]).filter((value) => value !== undefined && value !== null);
    return cells.direction === "lower" ? Math.min(...values) : Math.max(...values);
  };
  const shown = (project, value) => value === undefined ? number(null)
    : h(value === best(project) ? "strong" : "span", null, metric(cells.key, value));
  return table({
    caption: `${cells.key} of each model and project`, rows,
    columns: [{ key: "model", title: "model", cell: ([model]) => model },
      ...cells.projects.map((project) => ({ key: project, title: project, right: true, cell: ([, row]) => shown(project, row[project]) }))],
  });
}
