// What a run cost: the tree, the purchases, the cost of the reward.
import { get } from "./api.js";
import { fill, h } from "./dom.js";
import { counted, dollars, number, percent } from "./format.js";
import { table } from "./table.js";

/** Show the costs of a run. */
export function showCosts(place, about) {
  const bought = h("div", null, h("p", { class: "note" }, "Reading the purchases…"));
  fill(place, about.costs.length === 0 ? h("p", { class: "note" }, "No costs were recorded.") : treeOf(about.costs), about.signal.length ? signalOf(about.signal) : null, h("h2", null, "Purchases"), bought);
  get(`/api/run/${about.id}/purchases`).then((found) => fill(bought, purchasesOf(found)),
    (error) => fill(bought, h("p", { class: "problem" }, error.message)));
}

function treeOf(rows) {
  return table({
    caption: "Cost tree", rows, columns: [
      { key: "name", title: "cost", cell: (row) => indented(row) },
      { key: "usd", title: "US dollars", right: true, cell: (row) => dollars(row.usd) },
      { key: "share", title: "share", right: true, cell: (row) => percent(row.share) },
      { key: "bar", title: h("span", { class: "sr" }, "share as a bar"), cell: (row) => costBar(row.share || 0) },
    ],
  });
}

function signalOf(rows) {
  return [h("h2", null, "What the dollars taught"), table({
    caption: "Dollars of signal", rows, columns: [
      { key: "name", title: "signal", cell: (row) => row.name },
      { key: "usd", title: "US dollars", right: true, cell: (row) => dollars(row.usd) },
      { key: "share", title: "share", right: true, cell: (row) => percent(row.share) },
      { key: "bar", title: h("span", { class: "sr" }, "share as a bar"), cell: (row) => costBar(row.share || 0) },
    ],
  })];
}

function indented(row) {
  const name = h("span", { class: "branch", title: row.path }, row.name);
  name.style.paddingInlineStart = `${row.depth * 1.25}rem`;
  return name;
}

function costBar(share) {
  const inner = h("span", { class: "fill" });
  inner.style.width = `${Math.max(0.5, 100 * share)}%`;
  return h("span", { class: "bar", "aria-hidden": "true" }, inner);
}

function purchasesOf(found) {
  const facts = [];
  if (found.per_step !== null) {
    facts.push(["per trained step", dollars(found.per_step)]);
  }
  if (found.reward !== null) {
    facts.push([`per point of ${found.reward.key}`, found.reward.per_point_best === null ? "no gain" : dollars(found.reward.per_point_best)]);
  }
  if (found.unpriced_calls > 0) {
    facts.push(["calls without a price", number(found.unpriced_calls)]);
  }
  const dated = Object.entries(found.old_prices).map(([item, date]) => h("p", { class: "note" }, `The prices of ${item} are of ${date}.`));
  return [
    h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value)))),
    found.items.length === 0 ? h("p", { class: "note" }, "No receipt is in the log.") : table({
      caption: `${counted(found.items.length, "purchase")}`, rows: found.items, columns: [
        { key: "item", title: "item", cell: (row) => row.item },
        { key: "path", title: "booked as", cell: (row) => row.path },
        { key: "calls", title: "calls", right: true, cell: (row) => number(row.calls) },
        { key: "tokens", title: "tokens", right: true, cell: (row) => number(row.tokens) },
        { key: "usd", title: "US dollars", right: true, cell: (row) => (row.usd === null ? "no price" : dollars(row.usd)) },
      ],
    }), dated,
  ];
}
