// Follows a run that logs: rows and status as they come; the browser connects again by itself.
import { exported } from "./api.js";

/** Follow a run; `on` is {row, status, state}. Return a function that stops. */
export function follow(id, on) {
  if (exported) {
    return () => {};
  }
  const source = new EventSource(`/api/run/${id}/events`);
  source.addEventListener("row", (event) => on.row?.(JSON.parse(event.data)));
  source.addEventListener("status", (event) => on.status?.(JSON.parse(event.data).status));
  source.onopen = () => on.state?.("connected");
  source.onerror = () => on.state?.(source.readyState === EventSource.CLOSED ? "closed" : "reconnecting");
  return () => source.close();
}
