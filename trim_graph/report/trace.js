// One question: what every arm made of it, and the steps of one of them.

const MARKS = { [WRONG]: ["bad", "✗", "wrong"], [RIGHT]: ["good", "✓", "right"], [UNKNOWN]: ["open", "–", "not graded"] };

// The text of a question is parsed when it is looked at.
function readQuestion(position) {
  return JSON.parse(document.getElementById(`row-${position}`).textContent);
}

function mark(run) {
  const [look, sign, word] = run.failed ? ["bad", "!", "failed"] : MARKS[run.verdict];
  return el("span", { class: `mark ${look}` }, el("span", { "aria-hidden": "true" }, sign), el("span", { class: "only-read" }, word));
}

function scoreBar(score) {
  if (score === null) return el("span", { class: "score none" }, "no score");
  const fill = el("span", { class: `fill ${score < 0.5 ? "low" : ""}` });
  fill.style.width = `${Math.round(score * 100)}%`;
  return el(
    "span",
    { class: "score" },
    el("span", { class: "only-read" }, "score "),
    el("span", { class: "bar", "aria-hidden": "true" }, fill),
    score.toFixed(2),
  );
}

function label(right) {
  if (right === null || right === undefined) return null;
  return el("span", { class: `badge ${right ? "good" : "bad"}` }, right ? "✓ right" : "✗ wrong");
}

function draftOf({ texts, formulas }, draft) {
  return el(
    "details",
    { class: "draft" },
    el(
      "summary",
      {},
      el("span", {}, "discarded draft"),
      " ",
      scoreBar(draft.score),
      " ",
      label(draft.label),
      " ",
      el("span", { class: "muted" }, plural(draft.tokens, "token")),
    ),
    block(texts[draft.text], formulas[draft.text]),
  );
}

function stepOf(question, step, number) {
  const decided = step.decision && step.decision !== "accept" ? el("span", { class: "badge" }, inline(step.decision)) : null;
  return el(
    "li",
    { class: `step ${step.writer}` },
    el(
      "p",
      { class: "step-head" },
      el("span", { class: "number" }, `${number}`),
      el("span", { class: `writer ${step.writer}` }, step.writer),
      scoreBar(step.score),
      label(step.label),
      decided,
      step.part === "reasoning" ? el("span", { class: "badge" }, "reasoning") : null,
      el("span", { class: "muted" }, plural(step.tokens, "token")),
    ),
    block(question.texts[step.text], question.formulas[step.text]),
    step.discarded ? draftOf(question, step.discarded) : null,
  );
}

function factsOf(question, run) {
  const facts = [
    run.answer === null ? "no answer in a box" : ["answer ", answerOf(run.answer, question.answers)],
    `${plural(run.large_tokens, "large token")}, ${plural(run.small_tokens, "small token")}`,
    run.stopped && run.stopped !== "finished" ? ["stopped: ", inline(run.stopped)] : null,
    run.seconds === null ? null : `${run.seconds.toFixed(1)} s`,
    run.cost ? `cost ${run.cost.toPrecision(3)}` : null,
  ];
  return facts.filter((fact) => fact !== null).map((fact) => el("li", {}, fact));
}

function chips(runs, chosen, choose) {
  const several = new Set(runs.map((run) => run.sample)).size > 1;
  return el(
    "div",
    { class: "chips", role: "group", "aria-label": "Arms" },
    runs.map((run) => {
      const name = data.arms[run.arm].name + (several ? `, sample ${run.sample + 1}` : "");
      const chip = el(
        "button",
        { type: "button", class: "chip", "aria-pressed": run === chosen ? "true" : "false", "data-key": `run ${run.arm} ${run.sample}` },
        mark(run),
        " ",
        inline(name, 40),
        " ",
        el("span", { class: "muted" }, count(run.large_tokens)),
      );
      return on(chip, "click", () => choose(run));
    }),
  );
}

function runOf(question, run) {
  const { texts, formulas } = question;
  return [
    el("ul", { class: "facts" }, el("li", {}, mark(run), " ", el("strong", {}, inline(data.arms[run.arm].name, 60))), factsOf(question, run)),
    run.error === null ? null : el("div", { class: "warning inner" }, el("strong", {}, "Failed: "), block(run.error)),
    run.notes.length ? el("ul", { class: "notes muted" }, run.notes.map((note) => el("li", {}, inline(note, 600)))) : null,
    run.steps.length
      ? el("ol", { class: "steps" }, run.steps.map((step, at) => stepOf(question, step, at + 1)))
      : el("p", { class: "muted" }, "No steps."),
    run.solution === null ? null : block(texts[run.solution], formulas[run.solution]),
  ];
}
