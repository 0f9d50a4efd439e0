// Metrics over steps, tokens or time: a line a run, one trace a colour.

const AXES = {
  steps: "optimizer step",
  tokens: "tokens",
  seconds: "training time (s), waits between attempts left out",
};
const MOST_SVG_POINTS = 120000;
/** Raw lines behind the smoothed ones only where they do not bury them. */
const MOST_RAW = 40;
const hiddenGroups = new Set();
let lit = null;

const hasWebGl = (() => {
  try {
    return Boolean(document.createElement("canvas").getContext("webgl"));
  } catch {
    return false;
  }
})();

const metricOf = (name) => report.curves.find((metric) => metric.name === name) ?? report.curves[0];

const decoded = new Map();
/** Return the curves of a metric by run: steps and values, of a thinned one also steps and means. */
function curvesOf(metric) {
  if (decoded.has(metric.id)) return decoded.get(metric.id);
  const { grids, curves } = block(metric.id);
  const steps = grids.map((gaps) => {
    let at = 0;
    return gaps.map((gap) => (at += gap));
  });
  const found = new Map(
    curves.map(([run, grid, values, coarse, means]) => [
      run,
      {
        steps: steps[grid],
        values,
        meanSteps: means ? steps[coarse] : steps[grid],
        means: means ?? values,
      },
    ]),
  );
  decoded.set(metric.id, found);
  return found;
}

/** Return a function from steps to the chosen axis for a run; null where the run did not log it. */
function placing(run, x) {
  if (x === "steps") return (step) => step;
  const axes = block("axes")[run];
  if (!axes?.[x]) return null;
  const from = [0, ...axes.steps],
    to = [0, ...axes[x]];
  let i = 1;
  return (step) => {
    if (step < from[i - 1]) i = 1;
    while (i < from.length - 1 && step > from[i]) i += 1;
    const width = from[i] - from[i - 1];
    return width ? to[i - 1] + ((step - from[i - 1]) / width) * (to[i] - to[i - 1]) : to[i];
  };
}

/** Return the exponential moving average, without its pull towards the start. */
function smoothed(values, weight) {
  let sum = 0,
    norm = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    norm = weight * norm + (1 - weight);
    return sum / norm;
  });
}

/** Return the points of a run as they are drawn, or null where it has none on this axis. */
function lineOf(run, curve, weight) {
  const place = placing(run, view.x);
  if (!place) return null;
  const steps = weight ? curve.meanSteps : curve.steps;
  return { x: steps.map(place), y: weight ? smoothed(curve.means, weight) : curve.values, steps };
}

function drawCurves() {
  const metric = metricOf(view.metric);
  if (!metric) return "No run has logged a metric.";
  const curves = curvesOf(metric),
    weight = Number(view.smooth);
  const chosen = new Set(selection);
  const groups = colouring(colourKey());
  const owners = [],
    traces = [],
    crosses = { x: [], y: [], run: [], colour: [] },
    every = [];
  const raw = weight && selection.length <= MOST_RAW;
  let points = 0;
  for (const group of groups) {
    group.count = group.runs.filter((run) => chosen.has(run) && curves.has(run)).length;
    if (hiddenGroups.has(group.label)) continue;
    const lines = { x: [], y: [], owner: [], steps: [] },
      faint = { x: [], y: [] };
    for (const run of group.runs) {
      const line = chosen.has(run) && curves.has(run) ? lineOf(run, curves.get(run), weight) : null;
      if (!line) continue;
      for (let i = 0; i < line.x.length; i++) {
        lines.x.push(line.x[i]);
        lines.y.push(line.y[i]);
        lines.owner.push(run);
        lines.steps.push(line.steps[i]);
        if (line.y[i] !== null) every.push(line.y[i]);
      }
      lines.x.push(null);
      lines.y.push(null);
      lines.owner.push(run);
      lines.steps.push(null);
      if (raw) {
        const plain = lineOf(run, curves.get(run), 0);
        faint.x.push(...plain.x, null);
        faint.y.push(...plain.y, null);
      }
      if (report.diverged[run]) {
        const last = line.y.findLastIndex((value) => value !== null);
        crosses.x.push(line.x[last]);
        crosses.y.push(line.y[last]);
        crosses.run.push(run);
        crosses.colour.push(group.colour);
      }
    }
    points += lines.x.length;
    if (raw && faint.x.length) {
      traces.push({
        x: faint.x,
        y: faint.y,
        mode: "lines",
        line: { width: 1, color: group.colour },
        opacity: 0.22,
        hoverinfo: "skip",
      });
      owners.push(null);
    }
    if (lines.x.length) {
      const crowded = selection.length > 60;
      traces.push({
        x: lines.x,
        y: lines.y,
        mode: "lines",
        line: { width: crowded ? 1 : 1.6, color: group.colour, dash: group.dash },
        opacity: crowded ? 0.6 : 0.95,
        hoverinfo: "none",
        name: escaped(group.label),
      });
      owners.push(lines);
    }
  }
  for (const trace of traces)
    trace.type = points > MOST_SVG_POINTS && hasWebGl ? "scattergl" : "scatter";
  legend(
    "curve-legend",
    groups.filter((group) => group.count),
    hiddenGroups,
    () => refresh(curveChart),
  );
  noteCurves(metric, curves, chosen);
  if (!traces.length)
    return "Nothing to draw: no run that passes the filter has this metric on this axis.";
  const logy = view.logy && every.some((value) => value > 0);
  const top = metric.name.endsWith("loss") && !logy ? curveBounds(every) : null;
  const below = top
    ? crosses.y.map((y) => Math.min(y, top[1] - 0.02 * (top[1] - top[0])))
    : crosses.y;
  traces.push({
    x: crosses.x,
    y: below,
    mode: "markers",
    type: "scatter",
    marker: { symbol: "x", size: 9, color: crosses.colour, line: { width: 1, color: ink("card") } },
    hoverinfo: "none",
    cliponaxis: false,
  });
  owners.push({ owner: crosses.run, steps: null });
  traces.push({
    x: [],
    y: [],
    mode: "lines",
    type: "scatter",
    line: { width: 3.5, color: ink("ink") },
    hoverinfo: "skip",
  });
  owners.push(null);
  return {
    traces,
    layout: {
      xaxis: axis(AXES[view.x], {
        type: view.logx ? "log" : "linear",
        autorange: true,
        exponentformat: "SI",
      }),
      yaxis: axis(
        metric.label,
        logy
          ? { type: "log", autorange: true }
          : top
            ? { range: top }
            : { autorange: true, exponentformat: "SI" },
      ),
      uirevision: [view.metric, view.x, view.logx, view.logy].join(),
    },
    tip: (point) => {
      const run = owners[point.curveNumber]?.owner[point.pointNumber];
      if (run === undefined) return null;
      highlight(run);
      return [labelOf(run), curveRows(run, point, metric, owners[point.curveNumber].steps)];
    },
    click: (point) => {
      const run = owners[point.curveNumber]?.owner[point.pointNumber];
      if (run !== undefined) showDetails(run);
    },
  };
}

/** Leave the first, high values of a few runs outside, so that the end can be read. */
function curveBounds(values) {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  if (!sorted.length) return null;
  const low = sorted[0],
    high = quantile(sorted, 0.985);
  const room = 0.05 * (high - low) || 0.05 * Math.abs(low) || 1;
  return [low - room, high + room];
}

function curveRows(run, point, metric, steps) {
  const rows = [[metric.name + (Number(view.smooth) ? ", smoothed" : ""), figures(point.y)]];
  if (steps) rows.push(["step", grouped(steps[point.pointNumber])]);
  if (view.x === "tokens") rows.push(["tokens", compact(point.x)]);
  if (view.x === "seconds") rows.push(["time", duration(point.x)]);
  const column = columnOf.get(measure);
  if (column) rows.push([column.label, shown(column, column.values[run])]);
  rows.push([
    "state",
    (stateColumn.values[run] ?? "unknown") +
      (report.diverged[run] && stateColumn.values[run] !== "diverged" ? ", diverged" : ""),
  ]);
  return rows;
}

function noteCurves(metric, curves, chosen) {
  const drawn = [...curves.keys()].filter((run) => chosen.has(run));
  const without = view.x === "steps" ? 0 : drawn.filter((run) => !placing(run, view.x)).length;
  const parts = [
    metric.shown < metric.points
      ? `Showing ${grouped(metric.shown)} of ${grouped(metric.points)} points, the lowest and highest of each stretch; the store has them all.`
      : `All ${grouped(metric.points)} points are shown.`,
  ];
  if (Number(view.smooth))
    parts.push(
      "Smoothed: exponential moving average over the points" +
        (metric.shown < metric.points ? " (the mean of each stretch)." : "."),
    );
  if (without)
    parts.push(
      `${plural(without, "run")} did not log ${view.x === "tokens" ? "tokens" : "times"} and cannot be shown on this axis.`,
    );
  if (drawn.some((run) => report.diverged[run]))
    parts.push("× marks the last finite value of a run that diverged.");
  fill("curve-note", parts.join(" "));
}

/** Draw one run thick, and mark its row; null for none. */
function highlight(run) {
  if (run === lit) return;
  lit = run;
  document.querySelectorAll("#leaderboard tr.lit").forEach((row) => row.classList.remove("lit"));
  if (run !== null)
    document.querySelector(`#leaderboard tr[data-run="${run}"]`)?.classList.add("lit");
  if (!curveChart.drawn || !curveChart.near) return;
  const curve = run === null ? null : curvesOf(metricOf(view.metric)).get(run);
  const line = (curve && lineOf(run, curve, Number(view.smooth))) ?? { x: [], y: [] };
  Plotly.restyle(curveChart.node, { x: [line.x], y: [line.y] }, [
    curveChart.drawn.traces.length - 1,
  ]);
}

function drawCurveControls() {
  const slider = el("input", {
    type: "range",
    min: 0,
    max: 0.98,
    step: 0.02,
    value: view.smooth,
    "aria-label": "Smoothing",
  });
  const said = el("output", {}, view.smooth);
  slider.oninput = () => {
    fill(said, slider.value);
    choose({ smooth: slider.value });
  };
  const keys = [...settings, stateColumn].map((column) => [column.key, column.label]);
  const axes = block("axes");
  const usable = Object.entries({
    steps: "steps",
    tokens: "tokens",
    seconds: "training time",
  }).filter(([key]) => key === "steps" || axes.some((axis) => axis?.[key]));
  fill(
    "curve-controls",
    choice(
      "Metric",
      report.curves.map((metric) => [metric.name, metric.name]),
      view.metric,
      (value) => choose({ metric: value }),
    ),
    choice("over", usable, view.x, (value) => choose({ x: value })),
    choice("Colour by", keys, colourKey(), (value) => {
      hiddenGroups.clear();
      choose({ colour: value });
    }),
    el("label", { class: "field" }, "Smoothing", slider, said),
    checkbox("log x", Boolean(view.logx), (on) => choose({ logx: on ? "1" : "" })),
    checkbox("log y", Boolean(view.logy), (on) => choose({ logy: on ? "1" : "" })),
  );
}

const curveChart = addChart(
  "curve-chart",
  ["filter", "metric", "x", "smooth", "logx", "logy", "colour"],
  drawCurves,
);
byId("curve-chart").addEventListener("pointerleave", () => {
  hideTip();
  highlight(null);
});
