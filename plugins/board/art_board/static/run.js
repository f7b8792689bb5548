// One run, or several over each other: its facts and the tabs.
import { address, exported, get } from "./api.js";
import { showCosts } from "./costs.js";
import { showCurves } from "./curves.js";
import { fill, h } from "./dom.js";
import { showEvaluations } from "./evaluations.js";
import { counted, dollars, moment, number } from "./format.js";
import { pill } from "./lists.js";
import { showRows } from "./rows.js";
import { showAttempts } from "./talk.js";

const TABS = [["curves", "Curves"], ["costs", "Costs"], ["attempts", "Trajectories"], ["evaluations", "Evaluations"], ["live", "Live"], ["about", "About"]];

/** Show a run's tab in `main`; return what to do when the page is left. */
export async function showRun(main, ids, tab, query) {
  const runs = await Promise.all(ids.map((id) => get(`/api/run/${id}`)));
  const place = h("div", { id: "tab" });
  fill(main, runs.length === 1 ? headOf(runs[0]) : h("h1", null, `${runs.length} runs`), tabsOf(ids, tab), place);
  const [first] = runs;
  if (tab === "costs") {
    runs.length === 1 ? showCosts(place, first) : fill(place, runs.map((run) => section(run, (inside) => showCosts(inside, run))));
  } else if (tab === "attempts") {
    return showAttempts(place, first, query);
  } else if (tab === "evaluations") {
    await showEvaluations(place, runs);
  } else if (tab === "live") {
    return showRows(place, first);
  } else if (tab === "about") {
    fill(place, runs.map((run) => section(run, (inside) => fill(inside, aboutOf(run)))));
  } else {
    return showCurves(place, runs, query);
  }
  return null;
}

function section(run, show) {
  const inside = h("div");
  show(inside);
  return h("section", null, h("h2", null, run.run), inside);
}

function headOf(about) {
  const facts = [
    ["step", number(about.step)], ["rows", number(about.rows)], ["attempts", number(about.attempts)],
    ["cost", dollars(about.costs[0]?.usd)], ["reward per dollar", number(about.per_dollar)], ["last row", moment(about.ended)],
  ];
  return [
    h("div", { class: "head" }, h("h1", null, about.run), h("span", { id: "run-status" }, pill(about)),
      exported ? null : h("a", { class: "button", href: `/api/run/${about.id}/export.html`, download: "" }, "Export as HTML")),
    about.reason ? h("p", { class: "problem" }, about.reason) : null,
    h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value)))),
  ];
}

function tabsOf(ids, tab) {
  const several = ids.length > 1;
  const shown = TABS.filter(([key]) => !(exported && key === "live") && !(several && ["attempts", "live"].includes(key)));
  return h("nav", { class: "tabs", "aria-label": "Parts of the run" }, shown.map(([key, title]) => h("a", {
    href: address(`#/run/${ids.join(",")}/${key}`, {}), "aria-current": key === tab ? "page" : null,
  }, title)));
}

function aboutOf(about) {
  const parents = about.parents.map((each) => `${each.run} at step ${each.step}`).join(", ");
  const rows = [["directory", about.path], ["base model", about.base_model || "not named"], ["started", moment(about.started)],
    ["last row", moment(about.ended)], ["metrics", counted(Object.keys(about.metrics).length, "key")], ["forked from", parents]];
  return [
    h("dl", { class: "facts wide" }, rows.filter(([, value]) => value).map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value)))),
    h("h3", null, "Config"), h("pre", { class: "text" }, JSON.stringify(about.config, null, 2)),
  ];
}
