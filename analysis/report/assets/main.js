// The page from top to bottom.

const SECTIONS = [
  ["overview", "Overview"],
  ["runs", "Runs"],
  ["curves", "Curves"],
  ["rates", "Learning rate"],
  ["heatmap", "Two settings"],
  ["parallel", "All settings"],
  ["compare", "Compare"],
  ["problems", "Problems"],
  ["provenance", "Provenance"],
];

let filterInput = null;
/** Put a text into the filter, and apply it. */
function setFilter(text) {
  filterInput.value = text;
  filterInput.dispatchEvent(new Event("input"));
}

function startFilter() {
  const count = el("span", { class: "count", role: "status" }),
    wrong = el("span", { class: "error", role: "alert" });
  const rate = settings.find((column) => column.type === "number"),
    kind = settings.find((column) => column.type === "text");
  const value = kind?.values.find((v) => v !== null && String(v).length < 24);
  const examples = [
    value ? condition(kind, [value]) : null,
    rate
      ? `${rate.key} < ${short(Math.max(...everyRun.map((run) => numberIn(rate, run) ?? 0)))}`
      : null,
    columnOf.has("final.val.loss") ? "val.loss < 2.5" : null,
    "state != failed",
  ].filter(Boolean);
  filterInput = el("input", {
    type: "search",
    id: "filter",
    placeholder: `Filter: ${examples.slice(0, 3).join(" and ")}`,
    "aria-label": "Filter runs",
    autocomplete: "off",
    spellcheck: false,
    value: view.filter,
  });
  const apply = () => {
    const error = applyFilter(filterInput.value);
    filterInput.setAttribute("aria-invalid", String(Boolean(error)));
    fill(wrong, error ?? "");
    clear.hidden = !filterInput.value;
    fill(
      count,
      selection.length === runCount
        ? plural(runCount, "run")
        : `${grouped(selection.length)} of ${plural(runCount, "run")}`,
    );
  };
  const clear = el(
    "button",
    { type: "button", class: "quiet", hidden: true, onclick: () => setFilter("") },
    "Clear",
  );
  filterInput.addEventListener("input", apply);
  fill("filterbar", el("div", { class: "line" }, filterInput, count, clear), wrong);
  fill(
    "filter-hint",
    `${examples.slice(0, 2).join(" and ")}: the language of --where, with = != < <= > >= ~ in (…), and, or, not, null; a word alone is looked for everywhere. Table, curves, heatmap and parallel coordinates follow it.`,
  );
  apply();
}

/** Show the view that the address, changed by the reader, asks for. */
function followAddress() {
  readAddress();
  hiddenGroups.clear();
  hiddenRates.clear();
  ratesTouched = false;
  brushes.clear();
  startFilter();
  drawCurveControls();
  drawSettingControls();
  drawColumnMenu();
  choose({ ...view });
}

function start() {
  byId("scriptless").remove();
  fill(
    "nav",
    SECTIONS.map(([id, name]) =>
      el(
        "a",
        {
          href: `#${id}`,
          onclick: (event) => {
            event.preventDefault();
            byId(id).scrollIntoView();
          },
        },
        name,
      ),
    ),
  );
  startFilter();
  drawTiles();
  drawVerdicts();
  startLeaderboard();
  drawCurveControls();
  drawSettingControls();
  drawImportance();
  drawCompare();
  drawProblems();
  drawProvenance();
  noteThinning();
  whenever(["a", "b"], drawCompare);
  whenever(["hx", "hy", "hm", "rate", "pm"], drawSettingControls);
  dark.addEventListener("change", () => {
    drawTiles();
    drawCompare();
    drawProblems();
  });
  byId("details").addEventListener("click", (event) => {
    if (event.target === byId("details")) byId("details").close();
  });
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
  // A section's own address, as that of the link to the report's beginning, holds no choices.
  addEventListener("hashchange", () => {
    if (!location.hash || location.hash.includes("=")) followAddress();
  });
  // Plotly's script comes after this one.
  document.addEventListener("DOMContentLoaded", startCharts);
}

start();
