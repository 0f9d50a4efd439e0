// One run in full, and two side by side.

/** Return the facts of a run by dotted key, as JSON texts. */
function factsOf(run) {
  const { common, varying } = block("configs");
  const found = { ...common };
  for (const [key, { values, of }] of Object.entries(varying))
    if (of[run] >= 0) found[key] = values[of[run]];
  return found;
}

/** Return the keys in which two runs differ, each with both values; undefined where a run lacks it. */
function differences(a, b) {
  const { varying } = block("configs");
  return Object.entries(varying)
    .filter(([, { of }]) => of[a] !== of[b])
    .map(([key, { values, of }]) => [key, values[of[a]], values[of[b]]]);
}

const placeOf = (text) => (/^\d+$/.test(text) && Number(text) < runCount ? Number(text) : null);

function comparedRuns() {
  const order = ranked(everyRun);
  const a = placeOf(view.a) ?? order[0];
  const b = placeOf(view.b) ?? order.find((run) => run !== a) ?? a;
  return [a, b];
}

function drawCompare() {
  const [a, b] = comparedRuns();
  const order = ranked(everyRun);
  const options = order.map((run, i) => [String(run), `${i + 1}. ${labelOf(run)}`]);
  fill(
    "compare-controls",
    choice("A", options, String(a), (value) => choose({ a: value })),
    choice("B", options, String(b), (value) => choose({ b: value })),
    el("button", { type: "button", onclick: () => choose({ a: String(b), b: String(a) }) }, "Swap"),
  );
  const { known } = block("configs");
  const heads = el(
    "tr",
    {},
    el("th", { scope: "col" }, ""),
    [a, b].map((run) => el("th", { scope: "col" }, labelOf(run))),
  );
  const outcome = [stateColumn, ...results.filter((column) => column.shown)].map((column) =>
    outcomeRow(column, a, b),
  );
  const rows = differences(a, b).map(([key, ...values]) =>
    el(
      "tr",
      {},
      el("th", { scope: "row", class: "key" }, key),
      values.map((value) =>
        el("td", { class: value === undefined ? "absent" : "mono" }, value ?? "not set"),
      ),
    ),
  );
  const without = [a, b].filter((run) => !known[run]);
  const note =
    a === b
      ? "Both are the same run."
      : without.length
        ? `${without.map(labelOf).join(" and ")} has left no config.`
        : rows.length
          ? `${plural(rows.length, "difference")} in config, code and packages.`
          : "No difference in config, commit, Python or packages.";
  fill(
    "comparison",
    el("table", {}, el("thead", {}, heads), el("tbody", {}, outcome, rows)),
    el("p", { class: "note" }, note),
  );
}

function outcomeRow(column, a, b) {
  const better =
    column.better &&
    [a, b].map((run) => numberIn(column, run)).every((value) => value !== null) &&
    column.values[a] !== column.values[b]
      ? column.values[a] < column.values[b] === (column.better === "low")
        ? a
        : b
      : null;
  return el(
    "tr",
    {},
    el("th", { scope: "row" }, column.label),
    [a, b].map((run) =>
      column === stateColumn
        ? el("td", {}, stateMark(run))
        : el("td", { class: run === better ? "better" : null }, shown(column, column.values[run])),
    ),
  );
}

function showDetails(run) {
  hideTip();
  const dialog = byId("details");
  const facts = [
    ["state", stateMark(run)],
    ["reason", texts.reason[run]],
    ["steps", stepsOf(run)],
  ];
  for (const column of results.filter((c) => c.shown))
    facts.push([column.label, shown(column, column.values[run])]);
  for (const key of ["tokens_per_second", "duration_s", "attempt", "host", "job", "git_sha"])
    facts.push([
      columnOf.get(key).label,
      columnOf.get(key).values[run] === null
        ? null
        : shown(columnOf.get(key), columnOf.get(key).values[run]),
    ]);
  facts.push(
    ["rerun of", texts.rerun_of[run]],
    ["directory", texts.directory[run]],
    ["id", texts.run[run]],
  );
  const close = el(
    "button",
    { type: "button", onclick: () => dialog.close(), "aria-label": "Close" },
    "Close",
  );
  const compareAs = (side) =>
    el(
      "button",
      {
        type: "button",
        onclick: () => {
          dialog.close();
          choose({ [side]: String(run) });
          byId("compare").scrollIntoView();
        },
      },
      `Compare as ${side.toUpperCase()}`,
    );
  fill(
    dialog,
    el(
      "div",
      { class: "head" },
      el("h2", { id: "details-title" }, labelOf(run)),
      el("div", { class: "controls" }, compareAs("a"), compareAs("b"), close),
    ),
    el(
      "dl",
      {},
      facts
        .filter(([, value]) => value !== null && value !== undefined)
        .flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]),
    ),
    report.rerun[run]
      ? [el("h3", {}, "Run it again"), command(report.rerun[run])]
      : [
          el(
            "p",
            { class: "note" },
            "Written by another program; there is no command that repeats it.",
          ),
        ],
    report.overrides[run].length
      ? [el("h3", {}, "Overrides"), el("pre", {}, report.overrides[run].join("\n"))]
      : [],
    el(
      "details",
      {
        ontoggle: (event) => {
          if (event.target.open && event.target.children.length < 2)
            event.target.append(
              el(
                "pre",
                {},
                Object.entries(factsOf(run))
                  .map(([key, value]) => `${key} = ${value}`)
                  .join("\n"),
              ),
            );
        },
      },
      el(
        "summary",
        { style: { marginTop: "1rem", cursor: "pointer" } },
        "Whole config, code and packages",
      ),
    ),
  );
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}
