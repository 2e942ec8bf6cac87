// The list of questions, its filters, and the keys.

const ROW_HEIGHT = 58;
const SPARE = 8;
const LONGEST_STRIP = 40;

const state = { arm: data.chosen, shown: [], at: -1, wrong: false, over: false, differs: false, failed: false, words: "", limit: data.limit, raw: false };
const list = document.getElementById("list");
const inner = el("div", { class: "inner", role: "presentation" });
const detail = document.getElementById("detail");

function runsOf(position) {
  return data.questions[position].runs.filter((run) => run.arm === state.arm);
}

function passes(position) {
  const question = data.questions[position];
  const runs = runsOf(position);
  if (!runs.length) return false;
  if (state.wrong && !runs.some((run) => run.verdict === WRONG)) return false;
  if (state.over && !runs.some((run) => run.large > state.limit || run.limited)) return false;
  if (state.differs && !runs.some((run) => run.differs)) return false;
  if (state.failed && !runs.some((run) => run.failed)) return false;
  return !state.words || `${question.id} ${question.opening}`.toLowerCase().includes(state.words);
}

function strip(writers) {
  const squares = [...writers.slice(0, LONGEST_STRIP)].map((writer) => el("i", { class: writer === "l" ? "large" : "small" }));
  return el("span", { class: "strip", "aria-hidden": "true" }, squares);
}

function rowOf(at) {
  const position = state.shown[at];
  const question = data.questions[position];
  const runs = runsOf(position);
  const large = runs.reduce((sum, run) => sum + run.large, 0) / runs.length;
  const right = runs.filter((run) => run.verdict === RIGHT).length;
  const row = el(
    "div",
    {
      role: "option",
      id: `option-${position}`,
      class: "row",
      "aria-selected": at === state.at ? "true" : "false",
      "aria-setsize": state.shown.length,
      "aria-posinset": at + 1,
    },
    el(
      "div",
      { class: "row-head" },
      mark(runs.find((run) => run.verdict === WRONG) || runs[0]),
      runs.length > 1 ? el("span", {}, `${right}/${runs.length}`) : null,
      el("strong", {}, inline(question.id, 40)),
      strip(runs[0].writers),
      el("span", { class: "muted" }, `${count(large)} large`),
    ),
    el("div", { class: "row-text", dir: "auto" }, readable(question.opening)),
  );
  row.style.top = `${at * ROW_HEIGHT}px`;
  return on(row, "click", () => choose(at));
}

// Only what can be seen is in the document.
function draw() {
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - SPARE);
  const last = Math.min(state.shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_HEIGHT) + SPARE);
  inner.style.height = `${state.shown.length * ROW_HEIGHT}px`;
  const rows = [];
  for (let at = first; at < last; at += 1) rows.push(rowOf(at));
  inner.replaceChildren(...rows);
  const chosen = state.shown[state.at];
  if (chosen !== undefined && document.getElementById(`option-${chosen}`)) {
    list.setAttribute("aria-activedescendant", `option-${chosen}`);
  } else {
    list.removeAttribute("aria-activedescendant");
  }
}

function refresh() {
  const before = state.shown[state.at];
  state.shown = data.questions.map((_, position) => position).filter(passes);
  const total = data.questions.length;
  document.getElementById("count").textContent =
    state.shown.length === total ? plural(total, "question") : `${NUMBER.format(state.shown.length)} of ${plural(total, "question")}`;
  const kept = state.shown.indexOf(before);
  choose(kept >= 0 ? kept : 0, false);
}

function choose(at, scrollPage = true) {
  state.at = state.shown.length ? Math.min(Math.max(at, 0), state.shown.length - 1) : -1;
  if (state.at >= 0) {
    const top = state.at * ROW_HEIGHT;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW_HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW_HEIGHT - list.clientHeight;
  }
  draw();
  showDetail();
  if (scrollPage && detail.getBoundingClientRect().top > window.innerHeight * 0.8) detail.scrollIntoView();
  else if (scrollPage && detail.getBoundingClientRect().top < 0) detail.scrollIntoView();
}

function move(by) {
  choose(state.at + by);
}

function showDetail(wanted = null) {
  const position = state.shown[state.at];
  if (position === undefined) {
    detail.replaceChildren(el("p", { class: "muted" }, "No question passes these filters."));
    return;
  }
  const question = readQuestion(position);
  const runs = question.runs;
  const chosen = wanted === null ? runs.find((run) => run.arm === state.arm) || runs[0] : runs[wanted];
  const held = detail.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const moves = el("span", { class: "moves" }, rawButton(), moveButton("Previous question", "↑ k", -1), moveButton("Next question", "↓ j", 1));
  const expected =
    question.expected === null
      ? null
      : el("p", {}, el("span", { class: "muted" }, "expected "), answerOf(question.expected, question.answers));
  detail.replaceChildren(
    el("div", { class: "detail-head" }, el("h3", {}, inline(question.id, 80)), moves),
    block(question.question, question.question_formulas),
    ...[expected].filter(Boolean),
    chips(runs, chosen, (run) => showDetail(runs.indexOf(run))),
    ...runOf(question, chosen).filter(Boolean),
  );
  detail.dataset.position = position;
  // On a phone arms stand in one row, which is moved to the chosen one.
  const row = detail.querySelector(".chips");
  row.scrollLeft = row.querySelector("[aria-pressed=true]").offsetLeft - row.offsetLeft - 16;
  const verdict = chosen.failed ? "failed" : MARKS[chosen.verdict][2];
  document.getElementById("status").textContent = `Question ${state.at + 1} of ${state.shown.length}: ${verdict}`;
  // What had the focus was replaced by its like.
  if (held) [...detail.querySelectorAll("[data-key]")].find((node) => node.dataset.key === held && !node.disabled)?.focus();
}

function rawButton() {
  const pressed = state.raw ? "true" : "false";
  const attributes = { type: "button", "aria-pressed": pressed, "data-key": "raw", title: "Formulas as the models wrote them (key r)" };
  return on(el("button", attributes, "Raw text"), "click", showRaw);
}

function showRaw() {
  const run = [...detail.querySelectorAll(".chip")].findIndex((chip) => chip.getAttribute("aria-pressed") === "true");
  state.raw = !state.raw;
  showDetail(run < 0 ? null : run);
}

// The questions of an arm, from a point of a plot.
function openArm(arm) {
  const arms = document.getElementById("arm");
  arms.value = arm;
  arms.dispatchEvent(new Event("change"));
  document.getElementById("questions").scrollIntoView();
  list.focus({ preventScroll: true });
}

function moveButton(name, sign, by) {
  const disabled = state.shown[state.at + by] === undefined;
  return on(el("button", { type: "button", "aria-label": name, disabled, "data-key": name }, sign), "click", () => move(by));
}

function toggle(key, text) {
  const box = on(el("input", { type: "checkbox" }), "change", (event) => {
    state[key] = event.target.checked;
    refresh();
  });
  return el("label", { class: "toggle" }, box, " ", text);
}

function tools() {
  const arms = el("select", { id: "arm" }, data.arms.map((arm, number) => el("option", { value: number, selected: number === state.arm }, readable(arm.name))));
  on(arms, "change", () => {
    state.arm = Number(arms.value);
    refresh();
  });
  const limit = el("input", { type: "number", min: "0", step: "any", value: state.limit, "aria-label": "Budget in large tokens a question" });
  on(limit, "input", () => {
    state.limit = limit.value === "" ? Infinity : Number(limit.value);
    refresh();
  });
  const words = el("input", { type: "search", id: "words", placeholder: "id or question", "aria-label": "Search in id and question" });
  on(words, "input", () => {
    state.words = words.value.toLowerCase();
    refresh();
  });
  const keys = [["j", "k"], ["o"], ["r"], ["[", "]"], ["/"]];
  const meanings = [" next, previous ", " all drafts ", " raw text ", " other arm ", " search"];
  document.getElementById("tools").append(
    el("label", {}, "Arm ", arms),
    el("div", { class: "toggles", role: "group", "aria-label": "Filters" },
      toggle("wrong", "Wrong"),
      el("span", { class: "pair" }, toggle("over", "Over budget of"), limit, el("span", { class: "muted" }, "large tokens")),
      toggle("differs", "Disagrees with large alone"),
      toggle("failed", "Failed"),
    ),
    words,
    el("p", { class: "keys muted" }, keys.map((names, at) => [names.map((name) => el("kbd", {}, name)), meanings[at]]).flat(2)),
  );
}

function otherArm(by) {
  const arms = document.getElementById("arm");
  arms.value = (state.arm + by + data.arms.length) % data.arms.length;
  arms.dispatchEvent(new Event("change"));
}

function allDrafts() {
  const drafts = [...detail.querySelectorAll("details")];
  const open = drafts.some((draft) => !draft.open);
  for (const draft of drafts) draft.open = open;
}

const KEYS = {
  j: () => move(1),
  k: () => move(-1),
  ArrowRight: () => move(1),
  ArrowLeft: () => move(-1),
  o: allDrafts,
  r: showRaw,
  "]": () => otherArm(1),
  "[": () => otherArm(-1),
  "/": () => document.getElementById("words").focus(),
};

const page = () => Math.max(1, Math.floor(list.clientHeight / ROW_HEIGHT) - 1);
const LIST_KEYS = {
  ArrowDown: () => move(1),
  ArrowUp: () => move(-1),
  PageDown: () => move(page()),
  PageUp: () => move(-page()),
  Home: () => choose(0),
  End: () => choose(state.shown.length - 1),
};

function keyed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  if (event.key.startsWith("Arrow") && event.target.closest(".scroll, .chips")) return;
  const action = (event.target === list && LIST_KEYS[event.key]) || KEYS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

list.append(inner);
on(list, "scroll", () => requestAnimationFrame(draw));
on(window, "resize", () => requestAnimationFrame(() => { draw(); markWide(); }));
on(document, "keydown", keyed);
showSummary();
showSpots();
showMade();
tools();
refresh();
markWide();
