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

const MATHML = "http://www.w3.org/1998/Math/MathML";

// Trees are `[tag, attributes, text or trees]`; `formulas.py` says which tags and attributes there are.
function mathOf([tag, attributes, content]) {
  const node = document.createElementNS(MATHML, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (typeof content === "string") node.append(readable(content));
  else node.append(...content.map(mathOf));
  return node;
}

function formula(tree, raw) {
  const node = el("span", { class: "formula", title: readable(raw) });
  node.append(mathOf(tree));
  return node;
}

// A text with its formulas drawn, unless the reader wants it as it was written.
function written(text, formulas) {
  if (state.raw || !formulas) return [readable(text)];
  const parts = [];
  let place = 0;
  for (const [start, end, tree] of formulas) {
    if (end > text.length) break;
    parts.push(readable(text.slice(place, start)), formula(tree, text.slice(start, end)));
    place = end;
  }
  return [...parts, readable(text.slice(place))];
}

// An answer within a line; it is LaTeX without signs around it.
function answerOf(text, trees) {
  const tree = trees[text];
  return tree && !state.raw ? formula(tree, text) : inline(text, 200);
}

// A text of any length; what is beyond a preview is put there when asked for.
function block(text, formulas = null) {
  const body = el("div", { class: "text", dir: "auto" }, written(text.slice(0, PREVIEW), formulas));
  if (text.length <= PREVIEW) return body;
  const more = el("button", { type: "button", class: "more" }, `Show all ${NUMBER.format(text.length)} characters`);
  on(more, "click", () => {
    body.replaceChildren(...written(text, formulas));
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
