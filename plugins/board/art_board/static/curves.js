// The curves of one or several runs: axis, smoothing, which metrics, zoom; drawn again while a run logs.
import { address, exported, get } from "./api.js";
import { AXES, chart, forget, runColour } from "./charts.js";
import { announce, choice, debounced, field, fill, h } from "./dom.js";
import { counted, moment } from "./format.js";
import { follow } from "./live.js";

const FIRST = ["reward/mean", "val/reward", "test/reward", "loss/train", "loss/entropy", "loss/grad_norm", "reward/std_dev",
  "reward/exception_rate", "time/step_wall_s", "costs/cum/all", "data/step_actor_tokens"];
const DRAWN = 9;
const AGAIN_MS = 2000;
const EXAMINED_MS = 30000; // the rules read the whole log

/** Show curves in `place`; return what to do when the page is left. */
export async function showCurves(place, runs, query) {
  const every = [...new Set(runs.flatMap((run) => Object.keys(run.metrics)))].sort();
  const own = every.filter((key) => key.startsWith("reward/") && !FIRST.includes(key));
  const known = [...FIRST.filter((key) => every.includes(key)), ...own];
  const view = {
    place, runs, every, axis: query.axis || "step", smoothing: Number(query.smooth || 0),
    keys: (query.keys ? query.keys.split(",").filter((key) => every.includes(key)) : known.slice(0, DRAWN)),
    zoom: new Map(), findings: [], examined: 0, doctor: h("div", { class: "findings" }), charts: h("div", { class: "charts" }), note: h("p", { class: "note" }),
  };
  fill(place, curveBar(view), runs.length > 1 ? keyOf(runs) : null, view.doctor, view.note, view.charts);
  await loadCurves(view);
  const again = debounced(() => loadCurves(view), AGAIN_MS);
  const ends = runs.filter((run) => run.status === "running").map((run) => follow(run.id, { row: again, status: again }));
  return () => ends.forEach((end) => end());
}

function keyOf(runs) {
  return h("ul", { class: "legend" }, runs.map((run, n) => {
    const dot = h("span", { class: "dot", "aria-hidden": "true" });
    dot.style.background = runColour(n);
    return h("li", null, dot, h("a", { href: `#/run/${run.id}/curves` }, run.run));
  }));
}

function curveBar(view) {
  const weight = h("output", null, String(view.smoothing));
  const slide = h("input", {
    id: "smoothing", type: "range", min: "0", max: "0.99", step: "0.01", oninput: (event) => {
      view.smoothing = Number(event.target.value);
      weight.textContent = event.target.value;
      keepAddress(view);
      drawCurves(view);
    },
  });
  slide.value = String(view.smoothing);
  const turn = (value) => {
    view.axis = value;
    view.zoom.clear();
    keepAddress(view);
    drawCurves(view);
    announce(`curves over ${value}`);
  };
  const boxes = view.every.map((key) => h("label", null, h("input", {
    type: "checkbox", checked: view.keys.includes(key), onchange: (event) => chooseKey(view, key, event.target.checked),
  }), ` ${key}`));
  const narrow = (event) => boxes.forEach((box) => { box.hidden = !box.textContent.includes(event.target.value); });
  return h("div", { class: "toolbar" },
    field("Over", choice(AXES, view.axis, turn)),
    h("span", { class: "field" }, h("span", null, h("label", { htmlFor: slide.id }, "Smoothing"), " ", weight), slide),
    h("details", { class: "menu" }, h("summary", null, `Metrics (${view.every.length})`), h("div", { class: "sheet" },
      h("input", { type: "search", placeholder: "find a key", "aria-label": "find a metric", oninput: narrow }), boxes)));
}

function keepAddress(view) {
  const ids = view.runs.map((run) => run.id).join(",");
  history.replaceState(null, "", address(`#/run/${ids}/curves`, { axis: view.axis, smooth: view.smoothing || "", keys: view.keys.join(",") }));
}

async function chooseKey(view, key, is) {
  view.keys = is ? [...view.keys, key] : view.keys.filter((each) => each !== key);
  keepAddress(view);
  await loadCurves(view);
}

async function loadCurves(view) {
  try {
    view.found = await Promise.all(view.runs.map((run) => get(`/api/run/${run.id}/curves`, { keys: view.keys.join(",") })));
    if (view.runs.length === 1 && Date.now() > view.examined + EXAMINED_MS) {
      view.examined = Date.now();
      view.findings = await get(`/api/run/${view.runs[0].id}/findings`);
      fill(view.doctor, view.findings.map(findingOf));
    }
    drawCurves(view);
  } catch (error) {
    fill(view.charts, h("p", { class: "problem", role: "alert" }, error.message));
  }
}

function findingOf(found) {
  return h("p", { class: "note" }, h("strong", null, found.heading), ` ${found.problem}. ${found.change} See ${found.metric}.`);
}

function drawCurves(view) {
  const rows = view.found.reduce((sum, each) => sum + each.rows, 0);
  fill(view.note, `${counted(rows, "row")}${view.runs.length === 1 && view.runs[0].ended ? `, the last of ${moment(view.runs[0].ended)}` : ""}. Drag in a curve to zoom, double-click for all.`);
  forget(view.charts);
  const made = view.keys.map((key) => one(view, key)).filter(Boolean);
  fill(view.charts, made.length ? made : h("p", { class: "note" }, "No curve to draw: choose metrics."));
}

function one(view, key) {
  const found = view.zoom.get(key) || view.found;
  const drawn = view.runs.map((run, n) => ({ label: run.run, key, colour: n, curve: found[n].curves[key] }))
    .filter((run) => run.curve && run.curve[view.axis].some((x) => x !== null));
  if (drawn.length === 0) {
    return null;
  }
  const about = view.runs.map((run) => run.metrics[key]).find(Boolean) || {};
  const thinned = !exported && view.axis === "step" && drawn.some((run) => run.curve.total > run.curve.y.length);
  const total = drawn.reduce((sum, run) => sum + run.curve.total, 0);
  return chart({
    title: key, help: about.help, axis: view.axis, smoothing: view.smoothing, runs: drawn, sync: "curves",
    note: [about.unit, drawn.some((run) => run.curve.total > run.curve.y.length) ? `lowest and highest of ${total.toLocaleString("en-US")} values` : ""].filter(Boolean).join(" · "),
    marks: view.axis === "step" ? view.findings.filter((each) => each.metric === key).map((each) => [each.onset, each.rule]) : [],
    bands: view.runs.length === 1 ? bandsOf(found[0].attempts, view.axis) : null,
    zoom: thinned || view.zoom.has(key) ? (low, high) => zoomCurve(view, key, low, high) : null,
    reset: view.zoom.has(key) ? () => { view.zoom.delete(key); drawCurves(view); } : null,
  });
}

async function zoomCurve(view, key, low, high) {
  const asked = { keys: key, first: Math.floor(low), last: Math.ceil(high) };
  view.zoom.set(key, await Promise.all(view.runs.map((run) => get(`/api/run/${run.id}/curves`, asked))));
  drawCurves(view);
}

function bandsOf(attempts, axis) {
  const placedOnes = attempts.filter((each) => each[axis] !== null);
  return placedOnes.map((each, n) => ({
    label: `attempt ${each.attempt}`, from: each[axis], to: n + 1 < placedOnes.length ? placedOnes[n + 1][axis] : null,
  }));
}
