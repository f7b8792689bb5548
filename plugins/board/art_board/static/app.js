// The page: addresses after `#`, navigation, the theme.
import { exported } from "./api.js";
import { forget, redraw } from "./charts.js";
import { fill, h } from "./dom.js";
import { showList } from "./lists.js";
import { showRun } from "./run.js";

const THEMES = ["system", "light", "dark"];
const main = document.getElementById("main");
let leave = null;
let visit = 0;

function readTheme() {
  try {
    return localStorage.getItem("art-board-theme") || "system";
  } catch {
    return "system";
  }
}

function setTheme(name) {
  const root = document.documentElement;
  if (name === "system") {
    root.removeAttribute("data-theme");
  } else {
    root.setAttribute("data-theme", name);
  }
  try {
    localStorage.setItem("art-board-theme", name);
  } catch {
    // a browser may refuse to keep it
  }
  const button = document.getElementById("theme");
  button.textContent = `Theme: ${name}`;
  button.dataset.theme = name;
  redraw();
}

function addressNow() {
  const [path, text] = location.hash.replace(/^#\/?/, "").split("?");
  return { parts: path.split("/").filter(Boolean), query: Object.fromEntries(new URLSearchParams(text || "")) };
}

function showNav(page) {
  const pages = exported ? [] : [["runs", "Runs"], ["leaderboard", "Leaderboard"]];
  fill(document.getElementById("nav"), pages.map(([key, title]) => h("a", { href: `#/${key}`, "aria-current": key === page ? "page" : null }, title)));
}

async function showPage(moved) {
  const mine = ++visit;
  leave?.();
  leave = null;
  forget(main);
  const { parts, query } = addressNow();
  const [page, ids, tab] = exported ? ["run", exported.run, parts[2]] : parts;
  showNav(page || "runs");
  try {
    const ended = page === "run" ? await showRun(main, ids.split(","), tab || "curves", query) : await showList(main, page === "leaderboard" ? "leaderboard" : "runs", query);
    if (mine === visit) {
      leave = ended || null;
    } else {
      ended?.();
    }
  } catch (error) {
    fill(main, h("h1", null, "This can't be shown"), h("p", { class: "problem", role: "alert" }, error.message), exported ? null : h("p", null, h("a", { href: "#/runs" }, "All runs")));
  }
  document.title = `${main.querySelector("h1")?.textContent || "art board"} – art board`;
  if (moved) {
    main.focus({ preventScroll: true });
    window.scrollTo(0, 0);
  }
}

document.getElementById("theme").addEventListener("click", (event) => {
  setTheme(THEMES[(THEMES.indexOf(event.target.dataset.theme || "system") + 1) % THEMES.length]);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
setTheme(readTheme());
window.addEventListener("hashchange", () => showPage(true));
showPage(false);
