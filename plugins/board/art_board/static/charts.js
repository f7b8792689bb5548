// Curves, drawn by uPlot: several runs, smoothing, bands of attempts, intervals.
import { h } from "./dom.js";
import { counted, duration, metric, number } from "./format.js";

export const AXES = [["step", "step"], ["wall", "wall time"], ["tokens", "tokens"], ["usd", "dollars"]];
const HEIGHT = 190;
const live = new Set();

/** Return the colour of a CSS variable. */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Return the colour of the nth run. */
export function runColour(n) {
  return colour(`--run-${n % 8}`);
}

/** Return an exponential mean without the bias to its start. */
export function smoothed(values, weight) {
  let mean = 0;
  let total = 0;
  return values.map((value) => {
    mean = weight * mean + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return mean / total;
  });
}

function ticks(axis) {
  const form = { wall: duration, usd: (value) => `$${short(value)}` }[axis] || ((value) => short(value));
  return (_, values) => values.map((value) => (value === null ? "" : form(value)));
}

function short(value) {
  const size = Math.abs(value);
  return size >= 1e6 ? `${number(value / 1e6)}M` : size >= 1e4 ? `${number(value / 1e3)}k` : number(value);
}

/** Return the points of a curve that have a place on an axis. */
function placed(curve, axis) {
  const xs = curve[axis] || [];
  const kept = xs.map((x, n) => n).filter((n) => xs[n] !== null && curve.y[n] !== null);
  kept.sort((a, b) => xs[a] - xs[b]); // uPlot wants them rising, and clocks may have been set back
  return { xs: kept.map((n) => xs[n]), ys: kept.map((n) => curve.y[n]), low: pick(curve.low, kept), high: pick(curve.high, kept) };
}

function pick(values, kept) {
  return values ? kept.map((n) => values[n]) : null;
}

function linesOf(runs, axis, smoothing) {
  const tables = [];
  const series = [];
  runs.forEach((run, n) => {
    const { xs, ys } = placed(run.curve, axis);
    const stroke = runColour(run.colour ?? n);
    const many = xs.length > 40;
    const value = (_, v) => metric(run.key, v);
    const points = { show: !many, size: 5, fill: stroke };
    if (smoothing > 0 && xs.length > 2) {
      tables.push([xs, smoothed(ys, smoothing), ys]);
      series.push({ label: run.label, stroke, width: 2, points: { show: false }, value, spanGaps: true });
      series.push({ label: `${run.label} as logged`, class: "as-logged", stroke: `${stroke}55`, width: 1, points: { show: false }, value, spanGaps: true });
    } else {
      tables.push([xs, ys]);
      series.push({ label: run.label, stroke, width: many ? 1.25 : 1.75, points, value, spanGaps: true });
    }
  });
  return { data: tables.length === 1 ? tables[0] : window.uPlot.join(tables), series };
}

function drawBands(bands) {
  return (plot) => {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.font = `${11 * devicePixelRatio}px system-ui`;
    bands.forEach((band, n) => {
      const left = plot.valToPos(band.from, "x", true);
      const right = band.to === null ? bbox.left + bbox.width : plot.valToPos(band.to, "x", true);
      ctx.fillStyle = colour(n % 2 ? "--band-b" : "--band-a");
      ctx.fillRect(left, bbox.top, right - left, bbox.height);
      ctx.fillStyle = colour("--soft");
      ctx.fillText(band.label, Math.max(left, bbox.left) + 4 * devicePixelRatio, bbox.top + 12 * devicePixelRatio);
    });
    ctx.restore();
  };
}

function drawMarks(marks) {
  return (plot) => {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = colour("--soft");
    ctx.lineWidth = 1.5 * devicePixelRatio;
    ctx.textAlign = "left";
    ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
    ctx.font = `${11 * devicePixelRatio}px system-ui`;
    marks.forEach(([step, name]) => {
      const left = plot.valToPos(step, "x", true);
      ctx.beginPath();
      ctx.moveTo(left, bbox.top);
      ctx.lineTo(left, bbox.top + bbox.height);
      ctx.stroke();
      ctx.fillText(name, left + 4 * devicePixelRatio, bbox.top + 12 * devicePixelRatio);
    });
    ctx.restore();
  };
}

function drawIntervals(runs, axis) {
  return (plot) => {
    const { ctx } = plot;
    ctx.save();
    runs.forEach((run, n) => {
      const { xs, low, high } = placed(run.curve, axis);
      ctx.strokeStyle = runColour(run.colour ?? n);
      ctx.lineWidth = 1.5 * devicePixelRatio;
      xs.forEach((x, at) => {
        if (!low || low[at] === null) {
          return;
        }
        const left = plot.valToPos(x, "x", true);
        ctx.beginPath();
        ctx.moveTo(left, plot.valToPos(low[at], "y", true));
        ctx.lineTo(left, plot.valToPos(high[at], "y", true));
        ctx.stroke();
      });
    });
    ctx.restore();
  };
}

function range(runs) {
  const ends = runs.flatMap((run) => [...(run.curve.low || []), ...(run.curve.high || [])]).filter((v) => v !== null);
  return ends.length === 0 ? undefined : (_, low, high) => {
    const all = [low, high, ...ends].filter((v) => v !== null);
    const pad = (Math.max(...all) - Math.min(...all) || 1) * 0.06;
    return [Math.min(...all) - pad, Math.max(...all) + pad];
  };
}

function options(spec, series, width) {
  const { axis, runs, bands } = spec;
  const grid = { stroke: colour("--grid"), width: 1 };
  const look = { stroke: colour("--soft"), grid, ticks: grid, font: "11px system-ui" };
  return {
    width, height: HEIGHT, series: [{ label: axis, value: (_, v) => (v === null ? "" : ticks(axis)(null, [v])[0]) }, ...series],
    scales: { x: { time: false }, y: { range: range(runs) } },
    axes: [{ ...look, values: ticks(axis), size: 28, space: axis === "step" ? 50 : 80 }, { ...look, size: 58, values: (_, vs) => vs.map((v) => (v === null ? "" : short(v))) }],
    cursor: { sync: { key: spec.sync || null }, drag: { x: true, y: false, setScale: true } },
    legend: { live: true },
    hooks: {
      drawClear: bands && bands.length > 1 ? [drawBands(bands)] : [],
      draw: [drawIntervals(runs, axis), drawMarks(spec.marks || [])],
      setSelect: spec.zoom ? [(plot) => zoomed(plot, spec.zoom)] : [],
    },
  };
}

function zoomed(plot, zoom) {
  if (plot.select.width > 2) {
    zoom(plot.posToVal(plot.select.left, "x"), plot.posToVal(plot.select.left + plot.select.width, "x"));
  }
}

function summary(run) {
  const { y, step } = run.curve;
  const high = Math.max(...y);
  return `${run.label}: ${counted(run.curve.total ?? y.length, "value")}, first ${metric(run.key, y[0])}, `
    + `last ${metric(run.key, y.at(-1))} at step ${step.at(-1)}, lowest ${metric(run.key, Math.min(...y))}, highest ${metric(run.key, high)}`;
}

/**
 * Return a figure. `spec` is {title, help, axis, smoothing, runs, bands, zoom, reset, sync}; a run is {label, key,
 * colour, curve}, a curve {y, step, wall, tokens, usd, total} and perhaps {low, high}.
 */
export function chart(spec) {
  const box = h("div", { class: "plot", role: "img", "aria-label": [spec.title, ...spec.runs.map(summary), ...(spec.marks || []).map(([step, name]) => `${name} from step ${step}`)].join(". ") });
  const figure = h("figure", { class: "chart" },
    h("figcaption", { title: spec.help }, spec.title, spec.note ? h("small", null, ` ${spec.note}`) : null,
      spec.reset ? h("button", { type: "button", class: "quiet", onclick: spec.reset }, "whole curve") : null), box, valuesOf(spec));
  const one = { box, spec, plot: null, width: 0 };
  live.add(one);
  one.watch = new ResizeObserver(() => draw(one));
  one.watch.observe(box);
  return figure;
}

function draw(one, again = false) {
  const width = Math.floor(one.box.clientWidth);
  if (!one.box.isConnected || width < 50) {
    return;
  }
  if (one.plot && !again) {
    if (width !== one.width) {
      one.width = width;
      one.plot.setSize({ width, height: HEIGHT });
    }
    return;
  }
  const { data, series } = linesOf(one.spec.runs, one.spec.axis, one.spec.smoothing || 0);
  one.width = width;
  one.plot?.destroy();
  one.plot = new window.uPlot(options(one.spec, series, width), data, one.box);
}

/** Draw all figures again, in the colours of today. */
export function redraw() {
  live.forEach((one) => draw(one, true));
}

/** Forget the figures of a page that is left. */
export function forget(within) {
  live.forEach((one) => {
    if (!one.box.isConnected || within.contains(one.box)) {
      one.watch.disconnect();
      one.plot?.destroy();
      live.delete(one);
    }
  });
}

function valuesOf(spec) {
  const details = h("details", { class: "values" }, h("summary", null, "Values"));
  details.addEventListener("toggle", () => {
    if (!details.open || details.childElementCount > 1) {
      return;
    }
    const rows = spec.runs.flatMap((run) => {
      const stride = Math.ceil(run.curve.y.length / 200);
      return run.curve.y.map((y, n) => [run, n, y]).filter(([, n]) => n % stride === 0);
    });
    details.append(h("div", { class: "scroll small", tabIndex: 0, role: "region", "aria-label": `${spec.title} as a table` }, h("table", null,
      h("thead", null, h("tr", null, ["run", "step", spec.title].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", null, rows.map(([run, n, y]) => h("tr", null, h("td", null, run.label),
        h("td", { class: "right" }, number(run.curve.step[n])), h("td", { class: "right" }, metric(run.key, y))))))));
  });
  return details;
}
