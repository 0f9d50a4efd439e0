// Parallel coordinates: an axis a setting, a line a run.

/** Return an axis of the parallel coordinates: each run's height, ticks, and a range as a filter. */
function dimensionOf(column, runs) {
  const distinct = [...new Set(runs.map((run) => column.values[run]))].sort((a, b) =>
    compareCells(a, b, false),
  );
  const numbers = distinct.filter((value) => typeof value === "number");
  const log = isLog(numbers),
    span = numbers.length === distinct.length && column.type === "number";
  const place = (value) => (log ? Math.log(value) : value);
  const [low, high] = span
    ? [place(numbers[0]), place(numbers[numbers.length - 1])]
    : [0, distinct.length - 1];
  const position = new Map(distinct.map((value, i) => [value, span ? place(value) : i]));
  const share = (value) => (high > low ? (position.get(value) - low) / (high - low) : 0.5);
  const most = span ? 6 : 12;
  const every =
    distinct.length <= most
      ? distinct
      : [...Array(most).keys()].map(
          (i) => distinct[Math.round((i * (distinct.length - 1)) / (most - 1))],
        );
  return {
    label: column.label,
    shares: runs.map((run) => share(column.values[run])),
    heights: spread(
      runs.map((run) => share(column.values[run])),
      distinct.length,
    ),
    ticks: every.map((value) => [
      share(value),
      span ? short(value, 3) : clipped(shown(column, value), 13),
    ]),
    term: ([from, to]) => {
      const inside = distinct.filter((value) => share(value) >= from && share(value) <= to);
      if (!inside.length) return null;
      return span
        ? rangeTerm(column, [inside[0], inside[inside.length - 1]])
        : condition(column, inside);
    },
  };
}

/** Lay the runs of one value side by side, in the order of their results, so that few hide many. */
function spread(shares, distinct) {
  const width = Math.min(0.05, 0.5 / Math.max(distinct, 1));
  return shares.map(
    (share, i) => share + (shares.length > 1 ? width * (0.5 - i / (shares.length - 1)) : 0),
  );
}

/** Return the last axis: the result, with a place of its own for the runs that have none. */
function resultDimension(column, runs) {
  const has = (run) => sound(run) && numberIn(column, run) !== null;
  const numbers = runs
    .filter(has)
    .map((run) => numberIn(column, run))
    .sort((a, b) => a - b);
  if (!numbers.length) return null;
  const lower = lowerIsBetter(column.key),
    range = bounds(numbers, 1, lower);
  const low = Math.max(range[0], numbers[0]),
    high = Math.min(range[1], numbers[numbers.length - 1]);
  const missing = runs.some((run) => !has(run)),
    room = missing ? 0.86 : 1;
  const share = (value) => {
    const part = high > low ? Math.min(1, Math.max(0, (value - low) / (high - low))) : 0.5;
    return lower ? part * room : 1 - (1 - part) * room;
  };
  const off = lower ? 1 : 0;
  const beyond = numbers[lower ? numbers.length - 1 : 0] !== (lower ? high : low);
  const ticks = (high > low ? [0, 0.25, 0.5, 0.75, 1] : [0])
    .map((part) => low + part * (high - low))
    .map((value, i, all) => [
      share(value),
      (beyond && i === (lower ? all.length - 1 : 0) ? (lower ? "≥ " : "≤ ") : "") + short(value, 4),
    ]);
  const shares = runs.map((run) => (has(run) ? share(numberIn(column, run)) : off));
  return {
    label: column.label,
    shares,
    heights: shares,
    quality: runs.map((run) =>
      has(run)
        ? lower
          ? share(numberIn(column, run)) / room
          : (1 - share(numberIn(column, run))) / room
        : null,
    ),
    ticks: missing ? [...ticks, [off, "no result"]] : ticks,
    term: ([from, to]) => {
      const inside = numbers.filter((value) => share(value) >= from && share(value) <= to);
      return inside.length ? rangeTerm(column, [inside[0], inside[inside.length - 1]]) : null;
    },
  };
}

/** Ranges chosen on the axes, by label of the axis. */
const brushes = new Map();
const SHADES = 12;

function drawParallel() {
  const column = columnOf.get(view.pm),
    varying = settings.filter((c) => c.shown).slice(0, 14);
  if (!column || !varying.length) return "No setting varies.";
  // The best are drawn last, on top.
  const runs = ranked(selection, view.pm).reverse();
  const result = resultDimension(column, runs);
  if (!result) return "No run that passes the filter has a result.";
  const axes = [...varying.map((c) => dimensionOf(c, runs)), result];
  const ranges = axes.map(({ label }) => brushes.get(label) ?? null);
  const inside = runs.map((_, i) =>
    axes.every(
      ({ shares }, k) => !ranges[k] || (shares[i] >= ranges[k][0] && shares[i] <= ranges[k][1]),
    ),
  );
  const traces = [],
    owners = [];
  const add = (chosen, line, opacity) => {
    const trace = {
      x: [],
      y: [],
      mode: "lines",
      type: "scatter",
      hoverinfo: "none",
      line: { width: runs.length > 200 ? 1 : 1.6, ...line },
      opacity,
    };
    const owner = [];
    for (const i of chosen) {
      for (const [k, { heights }] of axes.entries()) {
        trace.x.push(k);
        trace.y.push(heights[i]);
        owner.push(runs[i]);
      }
      trace.x.push(null);
      trace.y.push(null);
      owner.push(null);
    }
    if (chosen.length) {
      traces.push(trace);
      owners.push(owner);
    }
  };
  const all = runs.map((_, i) => i),
    opacity = runs.length > 200 ? 0.55 : 0.85;
  add(
    all.filter((i) => !inside[i]),
    { color: ink("line") },
    0.8,
  );
  add(
    all.filter((i) => inside[i] && result.quality[i] === null),
    { color: ink("soft"), dash: "dot" },
    opacity,
  );
  for (let shade = SHADES - 1; shade >= 0; shade--) {
    const mine = (i) =>
      result.quality[i] !== null &&
      Math.min(SHADES - 1, Math.floor(result.quality[i] * SHADES)) === shade;
    const part = shade / (SHADES - 1);
    add(
      all.filter((i) => inside[i] && mine(i)),
      { color: amount(dark.matches ? 1 - part : part) },
      opacity,
    );
  }
  // Plotly lets a range be dragged only where there are markers.
  traces.push({
    x: axes.map((_, k) => k),
    y: axes.map(() => 0.5),
    mode: "markers",
    type: "scatter",
    marker: { opacity: 0 },
    hoverinfo: "skip",
  });
  owners.push(axes.map(() => null));
  byId("parallel-chart").style.minWidth = `${80 * axes.length}px`;
  noteParallel(
    axes,
    ranges,
    runs.filter((_, i) => inside[i]),
  );
  const tick = (k, [height, text]) => ({
    x: k,
    y: height,
    text: escaped(text),
    showarrow: false,
    xanchor: k ? "left" : "right",
    xshift: k ? 6 : -6,
    font: { size: 11, color: ink("soft") },
    bgcolor: ink("card"),
    opacity: 0.88,
    borderpad: 1,
  });
  const title = (k, text) => ({
    x: k,
    y: 1,
    yshift: 22,
    text: escaped(clipped(text, 15)),
    showarrow: false,
    font: { size: 12.5, color: ink("ink") },
  });
  const rule = (k, [from, to], more) => ({
    type: "line",
    x0: k,
    x1: k,
    y0: from,
    y1: to,
    line: { color: ink("soft"), width: 1, ...more },
  });
  return {
    traces,
    layout: {
      margin: {
        l: Math.min(
          110,
          20 +
            7 * Math.max(...axes[0].ticks.map(([, text]) => text.length), axes[0].label.length / 2),
        ),
        r: 78,
        t: 46,
        b: 14,
      },
      dragmode: "select",
      selections: [],
      newselection: { line: { color: ink("accent"), width: 1, dash: "solid" } },
      xaxis: { visible: false, range: [-0.02, axes.length - 0.98], fixedrange: true },
      yaxis: { visible: false, range: [-0.05, 1.05], fixedrange: true },
      annotations: axes.flatMap((a, k) => [title(k, a.label), ...a.ticks.map((t) => tick(k, t))]),
      shapes: axes.flatMap((_, k) => [
        rule(k, [0, 1]),
        ...(ranges[k] ? [rule(k, ranges[k], { color: ink("accent"), width: 7 })] : []),
      ]),
    },
    tip: (point) => {
      const run = owners[point.curveNumber][point.pointNumber];
      if (run === null) return null;
      highlight(run);
      return [
        labelOf(run),
        [
          [column.label, shown(column, column.values[run])],
          ["state", stateColumn.values[run] ?? "unknown"],
        ],
      ];
    },
    click: (point) => {
      const run = owners[point.curveNumber][point.pointNumber];
      if (run !== null) showDetails(run);
    },
    // A narrow drag chooses across the whole width, so the axis is the one that was pressed.
    selected: ({ y }, pressed) => {
      const k = Math.min(
        axes.length - 1,
        Math.max(0, Math.round(pressed * (axes.length - 0.96) - 0.02)),
      );
      brushes.set(axes[k].label, [Math.min(...y), Math.max(...y)]);
      refresh(parallelChart);
    },
  };
}

function noteParallel(axes, ranges, inside) {
  const terms = axes
    .map((a, k) => (ranges[k] ? a.term(ranges[k]) : ""))
    .filter((term) => term !== "");
  const letGo = el(
    "button",
    {
      type: "button",
      onclick: () => {
        brushes.clear();
        refresh(parallelChart);
      },
    },
    "Let go",
  );
  const keep = el(
    "button",
    {
      type: "button",
      onclick: () => {
        brushes.clear();
        setFilter(terms.join(" and "));
      },
    },
    "Filter the page to them",
  );
  fill(
    "parallel-note",
    "A line is a run, the best on top; those without a result are dotted. Drag over an axis to choose a range. ",
    terms.length
      ? [
          el("b", {}, plural(inside.length, "run")),
          " in the ranges chosen. ",
          inside.length && !terms.includes(null) ? keep : null,
          " ",
          letGo,
        ]
      : null,
  );
}

const parallelChart = addChart("parallel-chart", ["filter", "pm"], drawParallel);
