// Evaluations with their intervals: a figure for each split, and a table.
import { get } from "./api.js";
import { chart } from "./charts.js";
import { fill, h } from "./dom.js";
import { dollars, duration, number, percent } from "./format.js";
import { table } from "./table.js";

/** Show the evaluations of runs. */
export async function showEvaluations(place, runs) {
  const found = await Promise.all(runs.map((run) => get(`/api/run/${run.id}/evaluations`)));
  const splits = [...new Set(found.flat().map((each) => each.split))].sort();
  if (splits.length === 0) {
    fill(place, h("p", { class: "note" }, "Nothing was evaluated: `art eval`, or model.log(groups, split=\"val\")."));
    return;
  }
  fill(place, h("p", { class: "note" }, "Lines are intervals of 95 %, clustered by scenario."), splits.map((split) => {
    const drawn = runs.map((run, n) => ({ label: run.run, key: `${split}/reward`, colour: n, curve: curveOf(found[n], split) })).filter((run) => run.curve.y.length);
    const rows = runs.flatMap((run, n) => found[n].filter((each) => each.split === split).map((each) => ({ ...each, run: run.run })));
    return h("section", null, h("h2", null, split), chart({ title: `${split}/reward`, axis: "step", runs: drawn }), evaluationTable(split, rows, runs.length > 1));
  }));
}

function curveOf(all, split) {
  const those = all.filter((each) => each.split === split);
  return { y: those.map((e) => e.reward), step: those.map((e) => e.step), low: those.map((e) => e.low), high: those.map((e) => e.high), total: those.length };
}

function evaluationTable(split, rows, several) {
  const most = Math.max(1, ...rows.flatMap((row) => Object.keys(row.pass_at).map(Number)));
  const ks = [...new Set([1, most])].filter((k) => rows.some((row) => k in row.pass_at));
  const right = (key, title, cell) => ({ key, title, right: true, cell });
  return table({
    caption: `Evaluations on ${split}`, rows, columns: [
      ...(several ? [{ key: "run", title: "run", cell: (row) => row.run }] : []),
      right("step", "step", (row) => number(row.step)), right("reward", "reward", (row) => number(row.reward)),
      right("interval", "interval of 95 %", (row) => (row.low === null ? "not known" : `${number(row.low)} to ${number(row.high)}`)),
      right("scenarios", "scenarios", (row) => number(row.scenarios)),
      ...ks.map((k) => right(`pass@${k}`, `pass@${k}`, (row) => number(row.pass_at[k]))),
      right("usd", "$ / attempt", (row) => dollars(row.usd)), right("seconds", "time / attempt", (row) => duration(row.seconds)),
      right("failed", "failed", (row) => percent(row.failed)),
    ],
  });
}
