// What the server knows; in an exported file, what was written into it.

const embedded = document.getElementById("answers");
export const exported = embedded === null ? null : JSON.parse(embedded.textContent);

/** Return an address with its parameters in the order of their names. */
export function address(path, parameters) {
  const given = Object.entries(parameters || {})
    .filter(([, value]) => value !== "" && value !== null && value !== undefined)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, value]) => `${name}=${encodeURIComponent(value)}`);
  return given.length ? `${path}?${given.join("&")}` : path;
}

/** Ask the server; raises an Error with its message. */
export async function get(path, parameters, signal) {
  if (exported) {
    return stored(path, parameters);
  }
  const answer = await fetch(address(path, parameters), { signal });
  const value = await answer.json();
  if (!answer.ok) {
    throw new Error(value.error || `the server answered ${answer.status}`);
  }
  return value;
}

function stored(path, parameters) {
  // curves are stored whole
  const found = exported[path.endsWith("/curves") ? path : address(path, parameters)];
  if (found === undefined) {
    throw new Error("this file does not have it");
  }
  return found;
}
