// What stands above the questions: verdict, warnings, arms, curves.

const METRICS = [
  ["accuracy", "Accuracy", (v) => fixed(v, 3)],
  ["large_tokens", "Large tokens", count],
  ["share", "Share", (v) => fixed(v, 3)],
  ["pgr", "PGR", (v) => fixed(v, 3)],
  ["ibc", "IBC", (v) => fixed(v, 2)],
  ["cost", "Cost", (v) => (v === null ? "–" : v.toPrecision(3))],
  ["tokens", "Cost in tokens", count],
  ["seconds_median", "Median seconds", (v) => fixed(v, 2)],
];
const MEANINGS = {
  "Accuracy": "Share of right answers, with its exact 95 % interval",
  "Large tokens": "Tokens that the large model writes, mean of a question",
  "Share": "Large tokens as a share of those that the large model alone writes",
  "PGR": "Performance gap recovered: 0 is the small model alone, 1 the large one",
  "IBC": "Incremental benefit per cost, PGR divided by share; 1 is drawing one of the two models for each question",
  "Cost": "By the price table, all models, mean of a question",
  "Cost in tokens": "Tokens that all models read and write, prompts, discarded drafts and the scorer included; there is no price table",
  "Median seconds": "Wall clock of a question, other questions under way; intervals leave out machine load and runs at another time",
  "Accuracy minus large": "Paired by question, with its 95 % score interval, against the large model alone",
  "Over random": "Accuracy minus that of random routing with as many large tokens",
  "Failed": "Runs that failed: they count as wrong",
  "Mean IBC": "Mean of the IBC along the curve; 1 is the straight line from small alone to large alone",
  "CPT": "Cost-performance threshold: the least share of large tokens at which this PGR is reached",
};
const USE = { yes: ["good", "✓ worth it"], no: ["bad", "✗ not worth it"], undecided: ["open", "? undecided"] };

function withInterval(figure, format) {
  if (!figure || figure.value === null) return ["–"];
  const spread = figure.interval;
  const between = spread ? el("span", { class: "spread" }, `${format(spread[0])} to ${format(spread[1])}`) : null;
  return [el("span", {}, format(figure.value)), between];
}

function headOf(name) {
  const meaning = MEANINGS[name.startsWith("CPT") ? "CPT" : name];
  return el("th", { scope: "col" }, meaning ? el("span", { class: "explained", title: meaning }, name) : name);
}

// A tooltip needs a mouse; the legend says the same.
function legend() {
  const pairs = Object.entries(MEANINGS).filter(([name]) => name !== (data.summary.priced ? "Cost in tokens" : "Cost"));
  const entries = pairs.flatMap(([name, meaning]) => [el("dt", {}, name), el("dd", {}, meaning)]);
  return el("details", { class: "legend" }, el("summary", {}, "What the columns mean"), el("dl", {}, entries));
}

function named(arm) {
  const label = arm.label || arm.arm;
  return [inline(label, 60), label === arm.arm ? null : el("span", { class: "spread" }, inline(arm.arm, 60))];
}

function table(caption, heads, rows) {
  const head = el("tr", {}, heads.map(headOf));
  return el(
    "div",
    {},
    el("p", { class: "caption", "aria-hidden": "true" }, caption),
    el(
      "div",
      { class: "scroll", role: "region", tabindex: "0", "aria-label": caption },
      el("table", { "aria-label": caption }, el("thead", {}, head), el("tbody", {}, rows)),
    ),
    el("p", { class: "sideways", "aria-hidden": "true" }, "↔ more columns: scroll sideways"),
  );
}

// A table that is wider than its place says so.
function markWide() {
  for (const place of document.querySelectorAll(".scroll")) {
    place.parentElement.classList.toggle("wide", place.scrollWidth > place.clientWidth + 1);
  }
}
document.addEventListener("toggle", markWide, true);

const signed = (v) => (v > 0 ? "+" : "") + fixed(v, 3);

// Accuracy minus that of random routing at this spend; beyond the last point of its curve nothing is known.
function overRandom(matched) {
  if (matched && matched.curve_ends !== null) return [`beyond ${count(matched.curve_ends)}`];
  return withInterval(matched && matched.difference, signed);
}

function armsTable(summary, arms, caption) {
  const shown = METRICS.filter(([key]) => key !== (summary.priced ? "tokens" : "cost"));
  const failed = arms.some((arm) => arm.errors);
  const rows = arms.map((arm) =>
    el(
      "tr",
      { class: arm.kind === "policy" ? "main" : null },
      el("th", { scope: "row" }, named(arm)),
      shown.map(([key, , format]) => el("td", {}, withInterval(arm.metrics[key], format))),
      el("td", {}, withInterval((arm.differences.large || {}).accuracy, signed)),
      el("td", {}, overRandom((arm.matched_budget || {}).random)),
      failed ? el("td", {}, count(arm.errors)) : null,
    ),
  );
  const heads = ["Arm", ...shown.map(([, name]) => name), "Accuracy minus large", "Over random", ...(failed ? ["Failed"] : [])];
  return table(caption, heads, rows);
}

function curvesTable(curves) {
  const levels = Object.keys(curves[0].cpt);
  const rows = curves.map((curve) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, inline(curve.family, 60)),
      el("td", {}, withInterval(curve.mean_ibc, (v) => fixed(v, 2))),
      levels.map((level) => el("td", {}, withInterval(curve.cpt[level], (v) => fixed(v, 3)))),
    ),
  );
  return table(
    "Curves: mean benefit per cost (1 is the straight line), and the share of large tokens needed for a PGR",
    ["Policy", "Mean IBC", ...levels.map((level) => `CPT ${level} %`)],
    rows,
  );
}

// Net: scorer, discarded drafts and prompts are spent too. Summaries of earlier releases have none.
function savingsTable(arms) {
  const kinds = [
    ["large_tokens", "Large tokens", (v) => fixed(v, 1)],
    ["tokens", "Tokens in all", (v) => fixed(v, 1)],
    ["cost", "Cost", (v) => v.toPrecision(3)],
    ["seconds", "Seconds", (v) => fixed(v, 2)],
  ];
  const rows = arms.map((arm) =>
    el(
      "tr",
      { class: arm.kind === "policy" ? "main" : null },
      el("th", { scope: "row" }, named(arm)),
      kinds.map(([key, , format]) => el("td", {}, withInterval(arm.savings[key], format))),
    ),
  );
  const title = "Net savings per question against the large model alone, with 95 % intervals";
  return table(title, ["Arm", ...kinds.map(([, name]) => name)], rows);
}

// Of a run that has not ended, or of which no summary was made: counts, no intervals.
function countsTable() {
  const rows = data.arms.map((arm, number) => {
    const runs = data.questions.flatMap((question) => question.runs.filter((run) => run.arm === number));
    const right = runs.filter((run) => run.verdict === RIGHT).length;
    const large = runs.reduce((sum, run) => sum + run.large, 0);
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, inline(arm.name, 60)),
      [count(runs.length), count(right), count(runs.length ? large / runs.length : null)].map((v) => el("td", {}, v)),
    );
  });
  return table("Arms so far", ["Arm", "Runs", "Right", "Large tokens a run"], rows);
}

function verdicts(summary) {
  const items = summary.verdicts.map((one) => {
    const [look, word] = USE[one.use] || USE.undecided;
    const named = `${one.arm}: `;
    const text = one.text.startsWith(named) ? one.text.slice(named.length) : one.text;
    return el(
      "li",
      {},
      el("span", { class: `badge ${look}` }, word),
      " ",
      el("strong", {}, inline(one.arm, 60)),
      " ",
      inline(text, 600),
    );
  });
  if (!items.length) return null;
  const list = el("ul", { class: "plain" }, items);
  if (items.length === 1) return list;
  return el("details", {}, el("summary", {}, `What each of ${items.length} arms saves`), list);
}

// Summaries of earlier releases have no headline: the best verdict serves.
function headline(summary) {
  const found = summary.headline || { use: useOf(summary), number: null, text: summary.verdict };
  const [look, word] = USE[found.use] || USE.undecided;
  const undecided = look === USE.undecided[0];
  const figure = undecided ? "Undecided" : found.number === null ? word : inline(found.number, 40);
  return el(
    "div",
    { class: `card headline ${look}` },
    el("p", { class: "figure" }, figure),
    el("h2", {}, inline(found.text, 200)),
  );
}

function useOf(summary) {
  const uses = summary.verdicts.map((one) => one.use);
  return ["yes", "undecided", "no"].find((use) => uses.includes(use)) || "undecided";
}

// A button over each point of the plot of accuracies; the plot is a picture.
function showSpots() {
  const picture = document.querySelector("#plot-accuracy picture");
  if (!picture || !data.spots.length) return;
  const place = el("div", { class: "spots" });
  picture.replaceWith(place);
  place.append(picture);
  const arms = new Map(data.summary.arms.map((arm) => [arm.arm, arm]));
  for (const [number, x, y] of data.spots) {
    const { name } = data.arms[number];
    const { label, metrics } = arms.get(name);
    const figures = `accuracy ${fixed(metrics.accuracy.value, 3)}, share ${fixed(metrics.share.value, 3)}`;
    const text = readable(`${(label || name).slice(0, 60)}: ${figures}. Show its questions`);
    const spot = el("button", { type: "button", class: "spot", title: text, "aria-label": text });
    [spot.style.left, spot.style.top] = [`${100 * x}%`, `${100 * y}%`];
    place.append(on(spot, "click", () => openArm(number)));
  }
}

function showMade() {
  const commands = data.made.map((command) => el("code", {}, readable(command)));
  document.getElementById("made").append("Made by", ...commands);
}

function showSummary() {
  const { summary, title, about } = data;
  document.title = `${readable(title)} – trim-graph report`;
  document.getElementById("title").append(inline(title));
  document.getElementById("about").append(inline(about, 400));
  const place = document.getElementById("summary");
  if (summary) place.append(headline(summary));
  for (const warning of data.warnings) {
    place.append(el("p", { class: "card warning" }, "⚠ ", inline(warning, 1000)));
  }
  if (!summary) {
    place.append(el("div", { class: "card" }, countsTable()));
    return;
  }
  place.append(el("div", { class: "card verdict" }, el("p", {}, inline(summary.verdict, 1000)), verdicts(summary), legend()));
  const random = summary.arms.filter((arm) => arm.kind === "random");
  const others = summary.arms.filter((arm) => arm.kind !== "random");
  const tables = el("div", { class: "card" }, armsTable(summary, others, "Metrics per question, with 95 % intervals"));
  if (random.length) {
    const title = "Random routing";
    tables.append(el("details", {}, el("summary", {}, title), armsTable(summary, random, title)));
  }
  const saving = others.filter((arm) => arm.savings && arm.arm !== "large");
  if (saving.length) tables.append(savingsTable(saving));
  if (summary.curves.length) tables.append(curvesTable(summary.curves));
  place.append(tables);
}
