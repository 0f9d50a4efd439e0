// The table of runs: every state, sorted by a click on a header, filtered, a row a run.

const FIRST = 100,
  FURTHER = 400;
let rowsShown = FIRST;

function visibleColumns() {
  const toggled = new Set(view.columns ? view.columns.split(",") : []);
  return columns.filter((column) => column.shown !== toggled.has(column.key));
}

function sortedRuns() {
  const column = columnOf.get(view.sort);
  if (!column) return ranked(selection);
  const down = view.down === "1";
  return [...selection].sort(
    (a, b) => compareCells(column.values[a], column.values[b], down) || a - b,
  );
}

function sortBy(column) {
  const current = view.sort || measure;
  const first = column.better === "high";
  const down = current === column.key ? (view.sort ? view.down !== "1" : !first) : first;
  choose({ sort: column.key, down: down ? "1" : "" });
}

function drawTable() {
  const shownColumns = visibleColumns();
  const sorted = view.sort || measure;
  const down = view.sort ? view.down === "1" : columnOf.get(measure)?.better === "high";
  const header = el(
    "tr",
    {},
    el("th", { scope: "col", class: "rank" }, el("span", { class: "unseen" }, "Details")),
    shownColumns.map((column) => {
      const button = el(
        "button",
        { type: "button", title: column.title, onclick: () => sortBy(column) },
        column.label,
      );
      const order = column.key === sorted ? (down ? "descending" : "ascending") : null;
      return el(
        "th",
        { scope: "col", class: column.type === "number" ? "number" : null, "aria-sort": order },
        button,
      );
    }),
  );
  const runs = sortedRuns();
  const best = bestRun();
  const rows = runs
    .slice(0, rowsShown)
    .map((run, place) => rowOf(run, place, shownColumns, run === best));
  const body = rows.length
    ? rows
    : [
        el(
          "tr",
          {},
          el(
            "td",
            { colSpan: shownColumns.length + 1, class: "empty" },
            "No run passes the filter.",
          ),
        ),
      ];
  fill("leaderboard", el("thead", {}, header), el("tbody", {}, body));
  const rest = runs.length - rows.length;
  fill(
    "table-more",
    rest > 0
      ? [
          `The first ${grouped(rows.length)} of ${plural(runs.length, "run")}.`,
          el(
            "button",
            {
              type: "button",
              onclick: () => {
                rowsShown += FURTHER;
                drawTable();
              },
            },
            `Show ${grouped(Math.min(rest, FURTHER))} more`,
          ),
        ]
      : [],
  );
}

/** Return the best run that ended well, of all; null where none did. */
function bestRun() {
  const first = ranked(everyRun.filter(sound))[0];
  return first !== undefined &&
    columnOf.get(measure) &&
    numberIn(columnOf.get(measure), first) !== null
    ? first
    : null;
}

function rowOf(run, place, shownColumns, best) {
  const open = el(
    "button",
    {
      type: "button",
      title: "Details of this run",
      "aria-label": `Details of ${labelOf(run)}`,
      onclick: (event) => {
        event.stopPropagation();
        showDetails(run);
      },
    },
    String(place + 1),
  );
  const row = el(
    "tr",
    { class: best ? "best" : null, onclick: () => showDetails(run) },
    el("td", { class: "rank" }, open),
    shownColumns.map((column) => cellOf(column, run)),
  );
  row.dataset.run = String(run);
  row.addEventListener("pointerenter", () => highlight(run));
  row.addEventListener("pointerleave", () => highlight(null));
  return row;
}

function cellOf(column, run) {
  const value = column.values[run];
  if (column === stateColumn) return el("td", {}, stateMark(run));
  const text = column.key === "steps" ? stepsOf(run) : shown(column, value);
  const kind =
    `${column.type === "number" ? "number" : ""} ${value === null ? "absent" : ""}`.trim();
  return el("td", { class: kind || null, title: text.length > 40 ? text : null }, text);
}

function stepsOf(run) {
  const [done, total] = ["steps", "total_steps"].map((key) => columnOf.get(key).values[run]);
  if (done === null) return "–";
  return total === null || total === done ? grouped(done) : `${grouped(done)}/${grouped(total)}`;
}

/** Return a dot and the state in words; a completed run whose loss is not finite says so. */
function stateMark(run) {
  const state = stateColumn.values[run] ?? "unknown";
  const diverged = report.diverged[run] && state !== "diverged";
  const colour = stateColour(report.diverged[run] ? "diverged" : stateColumn.values[run]);
  return el(
    "span",
    { class: "state" },
    el("i", { style: { background: colour } }),
    state.replaceAll("_", " ") + (diverged ? ", diverged" : ""),
  );
}

function drawColumnMenu() {
  const shownNow = new Set(visibleColumns().map((column) => column.key));
  const boxes = columns.map((column) => {
    const box = el("input", {
      type: "checkbox",
      checked: shownNow.has(column.key),
      onchange: () => {
        const toggled = new Set(view.columns ? view.columns.split(",") : []);
        if (!toggled.delete(column.key)) toggled.add(column.key);
        choose({ columns: [...toggled].join(",") });
      },
    });
    return el("label", {}, box, column.kind === "result" ? column.key : column.label);
  });
  const save = el("button", { type: "button", onclick: saveTable }, "Save as CSV");
  fill(
    "run-controls",
    el("details", { class: "menu" }, el("summary", {}, "Columns"), el("div", {}, boxes)),
    save,
  );
}

/** Save the runs that the filter lets through, in the order and with the columns of the table. */
function saveTable() {
  const shownColumns = visibleColumns();
  const cell = (value) =>
    value === null || value === undefined
      ? ""
      : /[",\n\r]/.test(String(value))
        ? `"${String(value).replaceAll('"', '""')}"`
        : String(value);
  const lines = [
    shownColumns.map((c) => cell(c.key)),
    ...sortedRuns().map((run) => shownColumns.map((c) => cell(c.values[run]))),
  ];
  const link = el("a", {
    download: `${report.title}.csv`,
    href: URL.createObjectURL(
      new Blob([lines.map((l) => l.join(",")).join("\n") + "\n"], { type: "text/csv" }),
    ),
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function startLeaderboard() {
  whenever(["filter"], () => {
    rowsShown = FIRST;
  });
  whenever(["filter", "sort", "down", "columns"], drawTable);
  dark.addEventListener("change", drawTable);
  drawColumnMenu();
  drawTable();
}
