// Everything that comes from a model or a file becomes a text node: there is no markup to make.

const PREVIEW = 6000;
const NUMBER = new Intl.NumberFormat("en");

// Characters that are not seen and change how others are: controls, overrides of direction, halves of surrogates.
const UNSEEN =
  /([\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|\p{Cs})\1*/gu;

function readable(text) {
  return text.replaceAll("\r\n", "\n").replace(UNSEEN, (run, first) => {
    const code = first.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    const times = run.length / first.length;
    return times > 1 ? `⟨U+${code} ×${times}⟩` : `⟨U+${code}⟩`;
  });
}

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) node.append(child);
  }
  return node;
}

function on(node, event, action) {
  node.addEventListener(event, action);
  return node;
}

// A name or an answer within a line: what it does to direction ends with it.
function inline(text, longest = 120) {
  const shown = text.length > longest ? `${text.slice(0, longest)}…` : text;
  return el("bdi", {}, readable(shown));
}

// A text of any length; what is beyond a preview is put there when asked for.
function block(text) {
  const body = el("div", { class: "text", dir: "auto" }, readable(text.slice(0, PREVIEW)));
  if (text.length <= PREVIEW) return body;
  const more = el("button", { type: "button", class: "more" }, `Show all ${NUMBER.format(text.length)} characters`);
  on(more, "click", () => {
    body.textContent = readable(text);
    more.remove();
    body.tabIndex = -1;
    body.focus();
  });
  return el("div", {}, body, more);
}

function fixed(value, digits) {
  return value === null || value === undefined ? "–" : value.toFixed(digits);
}

function count(value) {
  return value === null || value === undefined ? "–" : NUMBER.format(Math.round(value * 10) / 10);
}

function plural(n, one, many = `${one}s`) {
  return `${NUMBER.format(n)} ${n === 1 ? one : many}`;
}
