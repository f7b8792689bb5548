// Numbers, dollars, times and durations as people read them.

export const NONE = "–";

/** Return a number with four digits that count. */
export function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) {
    return NONE;
  }
  if (Number.isInteger(value) && Math.abs(value) < 1e15) {
    return value.toLocaleString("en-US");
  }
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e7)) {
    return value.toExponential(3);
  }
  return Number(value.toPrecision(4)).toLocaleString("en-US", { maximumFractionDigits: 8 });
}

/** Return US dollars. */
export function dollars(value) {
  if (value === null || value === undefined) {
    return NONE;
  }
  const size = Math.abs(value);
  const digits = size === 0 || size >= 100 ? 2 : size >= 0.01 ? 4 : 6;
  return `$${value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits })}`;
}

/** Return seconds as a duration. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) {
    return NONE;
  }
  const s = Math.abs(seconds);
  if (s < 60) {
    return `${Number(s.toPrecision(3))} s`;
  }
  if (s < 3600) {
    return `${Math.floor(s / 60)} min${s % 60 >= 1 ? ` ${Math.floor(s % 60)} s` : ""}`;
  }
  const minutes = Math.floor((s % 3600) / 60);
  return `${Math.floor(s / 3600)} h${minutes ? ` ${minutes} min` : ""}`;
}

/** Return a moment in the time zone of the browser. */
export function moment(text) {
  if (!text) {
    return NONE;
  }
  const when = new Date(text);
  const two = (n) => String(n).padStart(2, "0");
  return Number.isNaN(when.getTime()) ? text : `${when.getFullYear()}-${two(when.getMonth() + 1)}-`
    + `${two(when.getDate())} ${two(when.getHours())}:${two(when.getMinutes())}`;
}

/** Return a count with its noun. */
export function counted(count, noun) {
  return `${count.toLocaleString("en-US")} ${noun}${count === 1 ? "" : "s"}`;
}

/** Return a share as percent. */
export function percent(value) {
  return value === null || value === undefined ? NONE : `${(100 * value).toFixed(1)} %`;
}

/** Return a metric's value by its key. */
export function metric(key, value) {
  if (/^(val\/|test\/)?costs\//.test(key) || key.includes("usd")) {
    return dollars(value);
  }
  return number(value);
}
