// Trajectories: the groups of a step with rewards side by side, conversations, failures, search.
import { address, exported, get } from "./api.js";
import { announce, choice, field, fill, h } from "./dom.js";
import { counted, dollars, metric, number } from "./format.js";
import { conversationOf } from "./conversation.js";

const BAR_PX = 44;

/** Show the trajectories of a run in `place`. */
export async function showAttempts(place, about, query) {
  const steps = await get(`/api/run/${about.id}/steps`);
  const splits = Object.keys(steps).filter((split) => steps[split].length);
  if (splits.length === 0) {
    fill(place, h("p", { class: "note" }, "No trajectories are stored."));
    return null;
  }
  const split = splits.includes(query.split) ? query.split : splits.includes("train") ? "train" : splits[0];
  const view = {
    about, steps, split, step: query.step ? Number(query.step) : steps[split].at(-1), only: query.only || "",
    open: query.group === undefined ? null : [Number(query.group), Number(query.place)], pinned: null,
    bar: h("div", { class: "toolbar" }), list: h("div", { class: "groups" }), hits: h("div"), talk: h("div", { class: "talk", tabIndex: -1 }),
  };
  view.splits = splits;
  fill(place, view.bar, view.hits, h("div", { class: "columns" }, view.list, view.talk));
  await loadStep(view);
  return null;
}

function stepBar(view) {
  const known = view.steps[view.split];
  const at = known.indexOf(view.step);
  const go = (step) => { view.step = step; view.open = null; loadStep(view); };
  const seek = h("input", { type: "search", placeholder: "a text in conversations", "aria-label": "search the conversations",
    onkeydown: (event) => { if (event.key === "Enter") { searchFrom(view, event.target.value, null); } } });
  fill(view.bar,
    field("Split", choice(view.splits.map((each) => [each, each]), view.split, (value) => { view.split = value; go(view.steps[value].at(-1)); })),
    field("Step", choice(known.map((step) => [String(step), String(step)]), String(view.step), (value) => go(Number(value)))),
    h("span", { class: "pair" },
      h("button", { type: "button", disabled: at <= 0, "aria-label": "earlier step", onclick: () => go(known[at - 1]) }, "‹"),
      h("button", { type: "button", disabled: at < 0 || at + 1 >= known.length, "aria-label": "later step", onclick: () => go(known[at + 1]) }, "›")),
    field("Show", choice([["", "all groups"], ["failed", "with failures"], ["spread", "with different rewards"]], view.only, (value) => { view.only = value; showGroups(view); })),
    exported ? null : h("span", { class: "field" }, h("span", null, "Search"), h("span", { class: "pair" }, seek, h("button", { type: "button", onclick: () => searchFrom(view, seek.value, null) }, "Find"))),
    exported && exported.left_out ? h("p", { class: "note" }, `This file leaves out ${counted(exported.left_out, "step")}.`) : null);
}

async function loadStep(view) {
  stepBar(view);
  try {
    view.groups = await get(`/api/run/${view.about.id}/groups`, { split: view.split, step: view.step });
  } catch (error) {
    fill(view.list, h("p", { class: "problem", role: "alert" }, error.message));
    fill(view.talk);
    return;
  }
  showGroups(view);
  const first = view.groups.find((group) => group.attempts.length);
  await openAttempt(view, view.open || (first ? [first.group, 0] : null), false);
}

function showGroups(view) {
  const rewards = view.groups.flatMap((group) => group.attempts.map((each) => each.reward)).filter((reward) => reward !== null);
  const scale = { low: Math.min(0, ...rewards), high: Math.max(...rewards, Math.min(0, ...rewards) + 1e-9) };
  const shown = view.groups.filter((group) => view.only === "failed" ? group.failures.length
    : view.only === "spread" ? new Set(group.attempts.map((each) => each.reward)).size > 1 : true);
  fill(view.list, h("p", { class: "note" }, `${counted(shown.length, "group")} of step ${view.step}`), shown.map((group) => groupOf(view, group, scale)));
}

function groupOf(view, group, scale) {
  const metadata = Object.entries(group.metadata).filter(([name]) => name !== "scenario_id");
  return h("section", { class: "group" },
    h("h3", null, group.scenario),
    group.asked ? h("p", { class: "note clip" }, group.asked) : null,
    metadata.length ? h("p", { class: "note clip" }, metadata.map(([name, value]) => `${name}: ${value}`).join("  ·  ")) : null,
    h("div", { class: "strip" }, group.attempts.map((each) => rewardBar(view, group, each, scale))),
    group.failures.map((failure) => h("details", { class: "failure" }, h("summary", null, `failed (${failure.reason}): ${failure.type}: ${failure.message}`),
      h("pre", { class: "text" }, failure.traceback || "no traceback was stored"))));
}

function rewardBar(view, group, each, scale) {
  const height = each.reward === null ? 0 : (each.reward - scale.low) / (scale.high - scale.low);
  const bar = h("span", { class: "column", "aria-hidden": "true" });
  bar.style.height = `${Math.round(4 + BAR_PX * height)}px`;
  const parts = Object.entries(each.metrics).map(([name, value]) => `${name} ${number(value)}`);
  const is = view.open && view.open[0] === group.group && view.open[1] === each.place;
  const title = [`reward ${number(each.reward)}`, ...parts, counted(each.turns, "turn"), each.cut_off ? "cut off" : "", typeof each.usd === "number" ? dollars(each.usd) : ""].filter(Boolean).join(", ");
  return h("button", {
    type: "button", class: "attempt", title, "aria-label": `attempt ${each.place + 1} of ${group.scenario}: ${title}`, "aria-pressed": String(Boolean(is)),
    onclick: () => openAttempt(view, [group.group, each.place], true), "data-at": `${group.group}.${each.place}`,
  }, bar, h("span", { class: "reward" }, number(each.reward)));
}

async function openAttempt(view, at, focus) {
  view.open = at;
  for (const button of view.list.querySelectorAll("button.attempt")) {
    button.setAttribute("aria-pressed", String(at !== null && button.dataset.at === at.join(".")));
  }
  if (at === null) {
    fill(view.talk, h("p", { class: "note" }, "No attempt of this step ended: see the failures."));
    return;
  }
  const where = { split: view.split, step: view.step, group: at[0], place: at[1] };
  history.replaceState(null, "", address(`#/run/${view.about.id}/attempts`, where));
  try {
    const attempt = await get(`/api/run/${view.about.id}/attempt`, where);
    const shown = { title: `${attempt.scenario}, attempt ${at[1] + 1}`, where, attempt };
    showTalk(view, shown);
    if (focus) {
      announce(`${shown.title}, reward ${number(attempt.reward)}`);
    }
  } catch (error) {
    fill(view.talk, h("p", { class: "problem", role: "alert" }, error.message));
  }
}

function showTalk(view, shown) {
  const pin = () => { view.pinned = shown; showTalk(view, shown); };
  const drop = () => { view.pinned = null; showTalk(view, shown); };
  const beside = view.pinned && view.pinned !== shown ? view.pinned : null;
  view.talk.classList.toggle("two", beside !== null);
  fill(view.talk,
    beside ? attemptOf(beside, h("button", { type: "button", onclick: drop }, "Close")) : null,
    attemptOf(shown, beside ? null : h("button", { type: "button", onclick: view.pinned ? drop : pin, "aria-pressed": String(view.pinned === shown) },
      view.pinned === shown ? "Kept: choose another" : "Keep beside the next")));
}

function attemptOf({ title, where, attempt }, action) {
  const measured = Object.entries(attempt.metrics).map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, metric(name, value))));
  const facts = Object.entries(attempt.metadata).map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value)));
  const [from, to] = attempt.policy;
  const policy = from === null ? "" : from === to ? `weights of step ${from}` : `weights of steps ${from} to ${to}`;
  return h("article", { class: "one", "aria-label": title },
    h("div", { class: "head" }, h("h3", null, title), h("span", { class: "pill reward" }, `reward ${number(attempt.reward)}`), action),
    h("p", { class: "note" }, [`${where.split} step ${where.step}`, policy, attempt.tools.length ? `tools: ${attempt.tools.join(", ")}` : ""].filter(Boolean).join(" · ")),
    h("dl", { class: "facts" }, measured),
    conversationOf(attempt.conversation),
    attempt.others.map((other, n) => h("details", { open: true }, h("summary", null, `another conversation of the attempt (${n + 1})`), conversationOf(other))),
    attempt.logs.length ? h("details", { open: true }, h("summary", null, `log (${counted(attempt.logs.length, "line")})`), h("pre", { class: "text" }, attempt.logs.join("\n"))) : null,
    facts.length ? h("details", null, h("summary", null, "metadata"), h("dl", { class: "facts wide" }, facts)) : null);
}

async function searchFrom(view, text, before) {
  if (!text.trim()) {
    fill(view.hits);
    return;
  }
  fill(view.hits, h("p", { class: "note" }, "Searching…"));
  try {
    const found = await get(`/api/run/${view.about.id}/search`, { q: text, split: view.split, before });
    const more = found.next === null ? null : h("button", { type: "button", onclick: () => searchFrom(view, text, found.next) }, `Search step ${found.next} and earlier`);
    fill(view.hits, h("section", { class: "hits", "aria-label": "found" },
      h("p", { class: "note" }, `${counted(found.hits.length, "attempt")} with “${text}”`, " ", h("button", { type: "button", class: "quiet", onclick: () => fill(view.hits) }, "close")),
      h("ul", null, found.hits.map((hit) => h("li", null, hitOf(view, hit)))), more));
    announce(`${counted(found.hits.length, "attempt")} found`);
  } catch (error) {
    fill(view.hits, h("p", { class: "problem", role: "alert" }, error.message));
  }
}

function hitOf(view, hit) {
  const open = () => { view.step = hit.step; view.open = hit.place === null ? null : [hit.group, hit.place]; loadStep(view); };
  return [h("button", { type: "button", class: "link", onclick: open }, `step ${hit.step}, ${hit.place === null ? "failure" : `reward ${number(hit.reward)}`}`), " ", h("span", { class: "clip" }, hit.text)];
}
