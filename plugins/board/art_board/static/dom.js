// Elements, made without markup: text becomes text nodes, so nothing that a model wrote is run.

const PROPERTIES = new Set(["id", "title", "type", "value", "checked", "disabled", "open", "tabIndex",
  "htmlFor", "placeholder", "name", "download", "colSpan", "scope", "selected", "min", "max", "step"]);

/** Return an element: `class`, `href`, `role`, `aria-*`, `data-*`, `on*` and simple properties. */
export function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) {
      continue;
    }
    if (name.startsWith("on")) {
      element.addEventListener(name.slice(2), value);
    } else if (name === "class") {
      element.className = value;
    } else if (name === "href") {
      element.setAttribute("href", safeAddress(value));
    } else if (PROPERTIES.has(name)) {
      element[name] = value;
    } else if (name === "role" || name.startsWith("aria-") || name.startsWith("data-")) {
      element.setAttribute(name, String(value));
    } else {
      throw new Error(`no attribute ${name}`);
    }
  }
  add(element, children);
  return element;
}

function safeAddress(value) {
  if (!/^(#|\/(?!\/))/.test(value)) {
    throw new Error("an address of another site");
  }
  return value;
}

function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) {
      continue;
    }
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/** Replace what an element holds. */
export function fill(element, ...children) {
  element.replaceChildren();
  add(element, children);
  return element;
}

/** Say something to screen readers. */
export function announce(text) {
  document.getElementById("status").textContent = text;
}

/** Return a function that runs `work` when it was not called for `wait` milliseconds. */
export function debounced(work, wait) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...given), wait);
  };
}

/** Return a labelled field. */
export function field(label, control) {
  return h("label", { class: "field" }, h("span", null, label), control);
}

/** Return a choice of one value: `options` are [value, text]. */
export function choice(options, value, change) {
  const made = h("select", { onchange: (event) => change(event.target.value) },
    options.map(([key, text]) => h("option", { value: key, selected: key === value }, text)));
  made.value = value;
  return made;
}
