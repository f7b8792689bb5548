// Tables whose headings sort and whose cells are elements or text.
import { h } from "./dom.js";

/**
 * Return a table. `columns` are {key, title, cell(row), right, sortable, help}; `sort` is {key,
 * reverse, lower}, where `lower` means that lower values come first; `choose(key)` sorts by a column.
 */
export function table({ caption, columns, rows, sort, choose, mark }) {
  return h("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": caption },
    h("table", null,
      h("caption", { class: "sr" }, caption),
      h("thead", null, h("tr", null, columns.map((column) => heading(column, sort, choose)))),
      h("tbody", null, rows.map((row) => h("tr", { class: mark ? mark(row) : "" },
        columns.map((column, n) => cellOf(column, row, n)))))));
}

function cellOf(column, row, n) {
  const inside = column.cell(row);
  return n === 0 && !column.right
    ? h("th", { scope: "row" }, inside)
    : h("td", { class: column.right ? "right" : "" }, inside);
}

function heading(column, sort, choose) {
  const is = sort && sort.key === column.key;
  const rising = is && sort.reverse !== Boolean(sort.lower);
  const attributes = { scope: "col", class: column.right ? "right" : "", title: column.help };
  if (!column.sortable || !choose) {
    return h("th", attributes, column.title);
  }
  const order = is ? (rising ? "ascending" : "descending") : "none";
  return h("th", { ...attributes, "aria-sort": order },
    h("button", { type: "button", class: "sort", onclick: () => choose(column.key), "data-key": column.key },
      column.title, h("span", { "aria-hidden": "true", class: "arrow" }, is ? (rising ? " ▲" : " ▼") : "")));
}

/** Return buttons for the pages of a list. */
export function pager(total, offset, limit, go) {
  if (total <= limit) {
    return null;
  }
  const end = Math.min(offset + limit, total);
  return h("nav", { class: "pager", "aria-label": "Pages of the list" },
    h("button", { type: "button", disabled: offset === 0, onclick: () => go(0) }, "First"),
    h("button", { type: "button", disabled: offset === 0, onclick: () => go(Math.max(0, offset - limit)) }, "Previous"),
    h("span", null, `${(offset + 1).toLocaleString()}–${end.toLocaleString()} of ${total.toLocaleString()}`),
    h("button", { type: "button", disabled: end >= total, onclick: () => go(offset + limit) }, "Next"));
}
