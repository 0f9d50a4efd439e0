// The summary, what beats what, what went wrong, and what the runs were made with.

function drawTiles() {
  const best = bestRun(),
    column = columnOf.get(measure);
  const counts = stateCounts();
  const problems = everyRun.filter((run) => !hopeful(run)).length;
  const tiles = [
    best === null
      ? tile("Best run", "none yet", "no run has completed with a result", true)
      : tile(`Best ${column.label}`, figures(column.values[best]), labelOf(best), true, () =>
          showDetails(best),
        ),
    tile(
      "Runs",
      grouped(runCount),
      counts.map(([state, n]) => `${grouped(n)} ${state.replaceAll("_", " ")}`).join(", "),
    ),
    ...useTiles(),
    tile(
      "Problems",
      grouped(problems + report.problems.count),
      problems || report.problems.count
        ? `${plural(problems, "run")} ended badly, ${plural(report.problems.count, "record")} skipped`
        : "every run ended well, every record was read",
    ),
  ];
  fill("tiles", tiles);
  const bar = el(
    "div",
    {
      class: "statebar",
      role: "img",
      "aria-label": counts.map(([state, n]) => `${n} ${state}`).join(", "),
    },
    counts.map(([state, n]) =>
      el("span", {
        style: { flex: String(n), background: stateColour(state) },
        title: `${n} ${state}`,
      }),
    ),
  );
  const chips = counts.map(([state, n]) =>
    el(
      "button",
      {
        type: "button",
        class: "chip",
        title: "Show only these",
        onclick: () => setFilter(condition(stateColumn, [state === "unknown" ? null : state])),
      },
      el("i", { style: { background: stateColour(state) } }),
      state.replaceAll("_", " "),
      el("span", { class: "n" }, grouped(n)),
    ),
  );
  fill(
    "statebar",
    counts.length > 1 ? bar : [],
    el("div", { class: "legend" }, counts.length > 1 ? chips : []),
  );
}

function useTiles() {
  const { tokens, gpu_s: gpu, cpu_s: cpu, restarted } = report.use;
  const [from, to] = report.span;
  const made = [];
  if (tokens)
    made.push(tile("Tokens", compact(tokens), `${compact(tokens / runCount)} a run on average`));
  const last = restarted ? `; of ${plural(restarted, "restarted run")} the earlier attempts up to their last record that stands` : "";
  if (gpu) made.push(tile("GPU-hours", hours(gpu), `on the clock of the runs${last}`));
  if (cpu)
    made.push(
      tile(
        "CPU-hours",
        hours(cpu),
        `threads × time of ${gpu ? "runs without a GPU" : "the runs"}${last}`,
      ),
    );
  if (from !== null && to !== null)
    made.push(tile("From first to last", duration(to - from), `${when(from)} to ${when(to)} UTC`));
  return made;
}

const hours = (seconds) => (seconds < 36 ? short(seconds / 3600, 2) : short(seconds / 3600, 3));
/** Return Unix seconds as a date and time that do not depend on where the page is read. */
const when = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ");

function tile(name, value, more, wide = false, open = null) {
  const link = open
    ? el(
        "button",
        {
          type: "button",
          class: "quiet",
          style: {
            padding: "0",
            minHeight: "0",
            textAlign: "left",
            font: "inherit",
            color: "var(--accent)",
          },
          onclick: open,
        },
        more,
      )
    : more;
  return el(
    "dl",
    { class: wide ? "tile wide" : "tile", style: { margin: "0" } },
    el("dt", {}, name),
    el("dd", {}, value, el("small", {}, link)),
  );
}

function stateCounts() {
  const counts = new Map();
  for (const state of stateColumn.values)
    counts.set(state ?? "unknown", (counts.get(state ?? "unknown") ?? 0) + 1);
  const order = ["completed", "running", "pending", "planned", "diverged"];
  const place = (state) => order.indexOf(state) + 1 || order.length + 1;
  return [...counts].sort((a, b) => place(a[0]) - place(b[0]) || b[1] - a[1]);
}

/** Say of each comparison whether the best setting wins, with what a paper would give for it. */
function drawVerdicts() {
  fill("verdicts", report.verdicts.map(verdictCard));
}

function verdictCard({ per, rows, of, metric, level, method }) {
  const best = rows[0],
    byBest = rows.filter((row) => row.a === best.a),
    groups = [best.a, ...byBest.map((row) => row.b)],
    tested = byBest.some((row) => row.test !== "none");
  const better = (mean) =>
    mean !== null && (lowerIsBetter(metric) ? mean < best.mean_a : mean > best.mean_a);
  // A single run may lead the table, but shows nothing of chance.
  const several = byBest.some((row) => better(row.mean_b)) ? " of two runs or more" : "";
  const head = (per ? `Best ${columnOf.get(per)?.label ?? per}` : "Best setting") + several;
  const against = per
    ? `the best of each other ${columnOf.get(per)?.label ?? per}`
    : "every other setting";
  const wins = byBest.filter((row) => row.beats).length;
  const said = el(
    "p",
    {},
    el("span", { class: "soft" }, `${head}: `),
    el("b", {}, best.a),
    ` with a mean of ${figures(best.mean_a)} over ${plural(best.n_a, "run")}; beats ${grouped(wins)} of ${grouped(of)}${tested ? "" : "; nothing could be tested"}.`,
  );
  const scroll = el("div", { class: "scroll" });
  const show = (group) =>
    fill(
      scroll,
      tableOf(
        ["", "against", "its mean", "difference", "95 % interval", "test", "p"],
        rows
          .filter((row) => row.a === group || row.b === group)
          .map((row) => verdictRow(row.a === group ? row : turned(row))),
      ),
    );
  show(best.a);
  // Without the pairs of the others there is nothing to choose.
  const every = rows.length > byBest.length;
  const choose = every
    ? el(
        "div",
        { class: "controls" },
        choice(
          "Compare",
          groups.map((group) => [group, group]),
          best.a,
          show,
        ),
      )
    : null;
  const rest =
    of > byBest.length ? ` The first ${grouped(byBest.length)} of ${grouped(of)}.` : "";
  const note = el(
    "p",
    { class: "note" },
    `${metric}: beats where p < ${level}; ${method}. Settings chosen by the seeds that judge them look better than they are.${rest}`,
  );
  return tested && (per || byBest.length <= 6)
    ? el("div", { class: "card verdict" }, said, choose, scroll, note)
    : el(
        "div",
        { class: "card verdict" },
        said,
        el("details", {}, el("summary", {}, `Against ${against}`), choose, scroll, note),
      );
}

/** Return a comparison as the worse of its two sides sees it. */
function turned(row) {
  const minus = (value) => (value === null ? null : -value);
  return {
    ...row,
    worse: true,
    b: row.a,
    mean_b: row.mean_a,
    n_a: row.n_b,
    n_b: row.n_a,
    difference: minus(row.difference),
    low: minus(row.high),
    high: minus(row.low),
  };
}

function verdictRow(row) {
  const { low, high, p_adjusted: p } = row;
  const tested = row.test !== "none";
  const over = row.test.startsWith("paired")
    ? plural(row.n_a, "seed")
    : `${row.n_a} and ${plural(row.n_b, "run")}`;
  const sign = row.worse
    ? row.beats
      ? "✗ is beaten"
      : "not shown to be beaten"
    : row.beats
      ? "✓ beats"
      : "not shown to beat";
  return el(
    "tr",
    { class: row.beats && !row.worse ? "wins" : null },
    el("td", { class: "sign" }, sign),
    el("td", {}, row.b),
    el("td", { class: "number" }, figures(row.mean_b)),
    el("td", { class: "number" }, signed(row.difference)),
    el("td", {}, tested ? `${signed(low)} to ${signed(high)}` : "–"),
    el("td", {}, tested ? `${row.test}, ${over}` : row.reason),
    el(
      "td",
      {},
      tested
        ? `${short(p, 2)}${row.beats || !row.reason || row.reason.startsWith("p =") ? "" : `; ${row.reason}`}`
        : "–",
    ),
  );
}

const signed = (value) =>
  value === null || value === undefined ? "–" : (value > 0 ? "+" : "") + short(value, 3);

function drawImportance() {
  const found = report.importance;
  const rows = found?.rows.filter(([, share]) => share !== null).slice(0, 12) ?? [];
  if (rows.length < 2) return;
  const most = Math.max(...rows.map(([, share]) => share), 1e-9);
  fill(
    "importance",
    el("h3", { style: { marginTop: "1rem" } }, `Which settings matter for ${found.metric}`),
    el(
      "div",
      { class: "bars" },
      rows.flatMap(([name, share, also]) => [
        el(
          "span",
          {},
          name,
          also.length ? el("small", { class: "soft" }, ` with ${also.join(", ")}`) : null,
        ),
        el("span", { class: "bar", style: { width: `${(100 * share) / most}%` } }),
        el("span", {}, `${(100 * share).toFixed(0)} %`),
      ]),
    ),
    el(
      "p",
      { class: "note" },
      `${found.method}. Settings that only matter together do not show; those that always change together stand together.`,
    ),
  );
}

function drawProblems() {
  const reasons = new Map();
  for (const run of everyRun) {
    const state = stateColumn.values[run];
    if (hopeful(run)) continue;
    const key = JSON.stringify([
      state ?? "completed",
      texts.reason[run] ?? (report.diverged[run] ? "the last loss is not finite" : ""),
    ]);
    if (!reasons.has(key)) reasons.set(key, []);
    reasons.get(key).push(run);
  }
  const groups = [...reasons].sort((a, b) => b[1].length - a[1].length).slice(0, 60);
  const bad = groups.map(([key, runs]) => {
    const [, reason] = JSON.parse(key);
    const names = runs
      .slice(0, 3)
      .map((run) =>
        el(
          "button",
          { type: "button", class: "quiet", onclick: () => showDetails(run) },
          labelOf(run),
        ),
      );
    return el(
      "tr",
      {},
      el("td", {}, stateMark(runs[0])),
      el("td", { class: "number" }, grouped(runs.length)),
      el("td", { style: { overflowWrap: "anywhere" } }, reason),
      el("td", {}, names, runs.length > 3 ? `and ${grouped(runs.length - 3)} more` : ""),
    );
  });
  const skipped = report.problems.rows.map((row) =>
    el(
      "tr",
      {},
      el("td", {}, row.kind),
      el("td", { class: "key" }, [row.run, row.file].filter(Boolean).join("/")),
      el("td", { class: "number" }, row.offset === null ? "" : grouped(row.offset)),
      el("td", { style: { overflowWrap: "anywhere" } }, row.detail),
    ),
  );
  const parts = [];
  if (bad.length)
    parts.push(
      el("h3", {}, "Runs that ended badly"),
      el("div", { class: "scroll" }, tableOf(["state", "runs", "reason", ""], bad)),
    );
  if (skipped.length)
    parts.push(
      el("h3", { style: { marginTop: "1rem" } }, "Records that could not be read"),
      el("div", { class: "scroll" }, tableOf(["kind", "file", "byte", "what is wrong"], skipped)),
    );
  if (report.problems.count > skipped.length)
    parts.push(
      el(
        "p",
        { class: "note" },
        `The first ${grouped(skipped.length)} of ${grouped(report.problems.count)}; the store has them all.`,
      ),
    );
  fill(
    "problem-list",
    parts.length
      ? parts
      : el(
          "p",
          { class: "empty" },
          "None: no run failed or diverged, and every record could be read.",
        ),
  );
}

const NUMBERS = new Set(["runs", "byte", "its mean", "difference"]);

function tableOf(heads, rows) {
  const cells = heads.map((head) =>
    el("th", { scope: "col", class: NUMBERS.has(head) ? "number" : null }, head),
  );
  return el("table", {}, el("thead", {}, el("tr", {}, cells)), el("tbody", {}, rows));
}

function drawProvenance() {
  const rows = report.provenance.map(({ name, values }) => {
    const some = values
      .slice(0, 24)
      .map(([value, n]) =>
        el(
          "span",
          { class: name === "commit" ? "mono" : null },
          value,
          el("span", { class: "n" }, ` × ${grouped(n)}`),
        ),
      );
    if (values.length > 24)
      some.push(el("span", { class: "n" }, `and ${grouped(values.length - 24)} more`));
    const differs =
      values.length > 1 && !["host", "SLURM job", "GPU"].includes(name)
        ? el("span", { class: "differs" }, `${values.length} differ`)
        : null;
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, name),
      el("td", {}, el("div", { class: "values" }, differs, some)),
    );
  });
  fill(
    "provenance-list",
    rows.length
      ? el("table", {}, el("tbody", {}, rows))
      : el("p", { class: "empty" }, "The runs have left no record of it."),
  );
}

function noteThinning() {
  const shownPoints = report.curves.reduce((sum, metric) => sum + metric.shown, 0),
    all = report.curves.reduce((sum, metric) => sum + metric.points, 0);
  fill(
    "thinning",
    `Curves: showing ${grouped(shownPoints)} of ${grouped(all)} points of ${plural(report.curves.length, "metric")}${shownPoints < all ? "; full data in the store" : ""}. Collected into ${report.store}; times are UTC.`,
  );
}
