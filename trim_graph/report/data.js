const [WRONG, RIGHT, UNKNOWN] = [0, 1, 2];
const data = JSON.parse(document.getElementById("data").textContent);
// The index is packed to keep the page small; `page.py` says how.
for (const question of data.questions) {
  [question.id, question.opening] = [question.i, question.q];
  question.runs = question.r.map(([arm, sample, verdict, large, flags, writers]) => ({
    arm,
    sample,
    verdict,
    large,
    failed: Boolean(flags & 1),
    limited: Boolean(flags & 2),
    differs: Boolean(flags & 4),
    writers,
  }));
}
