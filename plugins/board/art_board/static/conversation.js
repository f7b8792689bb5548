// A conversation: messages, calls of tools, and the sampled tokens with their log-probs.
import { fill, h } from "./dom.js";
import { counted, number } from "./format.js";

const MANY = 4000;

/** Return a conversation as a list of messages. */
export function conversationOf(messages) {
  return h("ol", { class: "messages" }, messages.map((message) => h("li", { class: `message ${kindOf(message.role)}` }, messageHead(message), messageBody(message))));
}

function kindOf(role) {
  return ["system", "developer", "user", "assistant", "tool"].includes(role) ? role : "other";
}

function messageHead(message) {
  const marks = [message.sampled ? "sampled" : "", message.cut_off ? "cut off" : "", typeof message.reward === "number" ? `reward ${number(message.reward)}` : "",
    typeof message.policy === "number" ? `step ${message.policy}` : ""].filter(Boolean);
  return h("div", { class: "who" }, h("strong", null, message.role), message.name ? ` ${message.name}` : "", marks.map((mark) => h("span", { class: "mark" }, mark)));
}

function messageBody(message) {
  const inside = h("div");
  const plain = () => fill(inside,
    message.thoughts ? h("details", { class: "thoughts", open: true }, h("summary", null, "thoughts"), h("pre", { class: "text" }, message.thoughts)) : null,
    message.text ? h("pre", { class: "text" }, message.text) : null,
    callsOf(message));
  plain();
  if (!message.tokens || message.tokens.length === 0) {
    return inside;
  }
  const readout = h("p", { class: "readout", role: "status" });
  const show = (is) => {
    readout.textContent = meanOf(message.tokens);
    if (is) {
      fill(inside, tokensOf(message.tokens, readout), callsOf(message));
    } else {
      plain();
    }
  };
  // Tokens that spell the message replace its text; others, such as those of calls, are there on demand.
  const spelled = message.tokens.map(([text]) => text).join("").trim().startsWith(message.text.trim());
  const is = message.text !== "" && spelled && message.tokens.length <= MANY;
  show(is);
  return [inside, h("div", { class: "token-bar" }, h("label", null, h("input", { type: "checkbox", checked: is, onchange: (event) => show(event.target.checked) }), ` ${counted(message.tokens.length, "token")}`), readout)];
}

function callsOf(message) {
  return message.calls.map((call) => h("pre", { class: "text call" }, `${call.name}(${call.arguments})`));
}

function meanOf(tokens) {
  const known = tokens.map(([, logprob]) => logprob).filter((logprob) => logprob !== null);
  return known.length ? `mean log-prob ${(known.reduce((sum, each) => sum + each, 0) / known.length).toFixed(3)}` : "";
}

/** Return tokens in colours of their probability; one is told by the pointer or the arrow keys. */
function tokensOf(tokens, readout) {
  let at = -1;
  const tell = (n) => {
    const [text, logprob, id, teacher] = tokens[n];
    spans[at]?.classList.remove("at");
    at = n;
    spans[n].classList.add("at");
    readout.textContent = [JSON.stringify(text), id === null ? "" : `id ${id}`, logprob === null ? "" : `log-prob ${logprob.toFixed(4)} (${(100 * Math.exp(logprob)).toFixed(2)} %)`,
      teacher === null ? "" : `teacher ${Number(teacher).toFixed(4)}`].filter(Boolean).join(", ");
  };
  const spans = tokens.map(([text, logprob], n) => h("span", { class: `token p${levelOf(logprob)}`, onpointerenter: () => tell(n) }, text));
  const move = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) {
      event.preventDefault();
      tell(Math.max(0, Math.min(tokens.length - 1, at + by)));
    }
  };
  return h("pre", { class: "text tokens", tabIndex: 0, role: "application", "aria-label": "sampled tokens; the arrow keys go through them", onkeydown: move }, spans);
}

function levelOf(logprob) {
  if (logprob === null) {
    return "x";
  }
  return [-0.1, -0.7, -1.6, -3].filter((limit) => logprob < limit).length;
}
