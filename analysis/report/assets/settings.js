// How a result depends on the settings: over the learning rate, over any two, over all of them.

const hiddenRates = new Set();
/** Curves shown at first, the best; more would hide each other. */
const MOST_RATES = 7;
let ratesTouched = false;
const rateColumn = settings.find((column) => column.role === "rate");

function drawRates() {
  const curves = report.sensitivity[view.rate];
  if (!curves?.length) return "The runs have no learning rate in their config, so there is no curve to draw.";
  const order = bestFirst(curves, lowerIsBetter(view.rate));
  if (hiddenRates.size === 0 && !ratesTouched) order.slice(MOST_RATES).forEach((curve) => hiddenRates.add(curve.group));
  const groups = order.map((curve, i) => ({ label: curve.group, colour: groupColour(curve.group, i), dash: DASHES[Math.floor(i / 7) % 4], curve }));
  legend("rate-legend", groups, hiddenRates, () => { ratesTouched = true; refresh(rateChart); });
  const shownGroups = groups.filter((group) => !hiddenRates.has(group.label));
  const lower = lowerIsBetter(view.rate);
  const means = shownGroups.flatMap(({ curve }) => curve.mean).filter((value) => value !== null);
  if (!means.length) return "No run of the groups shown has a result.";
  const range = bounds(means, 6, lower);
  // Intervals of two seeds are huge; they may take a third of the height, not all of it.
  const room = 0.35 * (range[1] - range[0]), sides = shownGroups.flatMap(({ curve }) => [...curve.low, ...curve.high]).filter((value) => value !== null);
  range[0] = Math.max(range[0] - room, Math.min(range[0], ...sides.map((side) => side - room / 12)));
  range[1] = Math.min(range[1] + room, Math.max(range[1], ...sides.map((side) => side + room / 12)));
  const edge = (place) => (lower ? range[1] - (0.035 + 0.05 * place) * (range[1] - range[0]) : range[0] + (0.035 + 0.05 * place) * (range[1] - range[0]));
  const traces = [], tips = [], stacked = new Map();
  for (const { curve, colour, dash, label } of shownGroups) {
    const at = curve.lr.map((_, i) => i).filter((i) => curve.mean[i] !== null && curve.lr[i] > 0);
    const best = at.reduce((b, i) => (b === null || (curve.mean[i] - curve.mean[b]) * (lower ? 1 : -1) < 0 ? i : b), null);
    traces.push({
      x: at.map((i) => curve.lr[i]), y: at.map((i) => curve.mean[i]), mode: "lines+markers", hoverinfo: "none", name: escaped(label),
      line: { color: colour, width: 2, dash }, marker: { color: colour, size: at.map((i) => (i === best ? 12 : 7)), line: { width: at.map((i) => (i === best ? 2 : 0)), color: ink("ink") } },
      error_y: { type: "data", symmetric: false, thickness: 1.2, width: 3, color: colour, array: at.map((i) => (curve.high[i] ?? curve.mean[i]) - curve.mean[i]), arrayminus: at.map((i) => curve.mean[i] - (curve.low[i] ?? curve.mean[i])) },
    });
    tips.push({ curve, label, at });
    const lost = curve.lr.map((_, i) => i).filter((i) => curve.diverged[i] > 0 && curve.lr[i] > 0);
    const heights = lost.map((i) => {
      if (curve.mean[i] !== null) return curve.mean[i];
      stacked.set(curve.lr[i], (stacked.get(curve.lr[i]) ?? -1) + 1);
      return edge(stacked.get(curve.lr[i]));
    });
    traces.push({ x: lost.map((i) => curve.lr[i]), y: heights, mode: "markers", hoverinfo: "none", cliponaxis: false, marker: { symbol: "x", size: 10, color: colour, line: { width: 1.5, color: ink("card") } } });
    tips.push({ curve, label, at: lost });
  }
  const rates = [...new Set(shownGroups.flatMap(({ curve }) => curve.lr))].filter((rate) => rate > 0).sort((a, b) => a - b);
  const decades = rates.length ? [...Array(1 + Math.floor(Math.log10(rates[rates.length - 1])) - Math.ceil(Math.log10(rates[0]))).keys()].map((k) => 10 ** (k + Math.ceil(Math.log10(rates[0])))) : [];
  const named = rates.length <= 7 || decades.length < 2 ? rates.slice(0, 12) : decades;
  const ticks = { tickvals: named, ticktext: named.map((rate) => short(rate, 3)) };
  return {
    traces,
    layout: { xaxis: axis("learning rate", { type: "log", ...ticks }), yaxis: axis(columnOf.get(view.rate).label, { range }) },
    tip: (point) => {
      const { curve, label, at } = tips[point.curveNumber];
      return [label, rateRows(curve, at[point.pointNumber])];
    },
  };
}

/** Return the curves by their best mean; those without any come last. */
function bestFirst(curves, lower) {
  const best = (curve) => {
    const means = curve.mean.filter((value) => value !== null);
    return means.length ? (lower ? Math.min(...means) : -Math.max(...means)) : Infinity;
  };
  return [...curves].sort((a, b) => best(a) - best(b) || 0);
}

function rateRows(curve, i) {
  const rows = [["learning rate", short(curve.lr[i])]];
  if (curve.mean[i] !== null) rows.push([curve.n[i] > 1 ? `mean of ${curve.n[i]} runs` : "result of 1 run", figures(curve.mean[i])]);
  if (curve.low[i] !== null) rows.push(["95 % interval", `${figures(curve.low[i])} to ${figures(curve.high[i])}`]);
  if (curve.n[i] > 1) rows.push(["lowest, highest", `${figures(curve.min[i])}, ${figures(curve.max[i])}`]);
  if (curve.diverged[i]) rows.push(["diverged", plural(curve.diverged[i], "run")]);
  if (curve.other[i]) rows.push(["failed or not finished", plural(curve.other[i], "run")]);
  return rows;
}

/** Return the colour that a group has among the curves, where they are coloured by it. */
function groupColour(label, i) {
  const groups = settings.filter((column) => column.role === "group" && column.shown);
  const same = groups.length === 1 ? colouring(groups[0].key).find((group) => group.label === label) : null;
  return same?.colour ?? kinds()[i % 7];
}

/** Return the two settings of the heatmap. */
function heatmapKeys() {
  const usable = settings.filter((column) => column.role !== "seed");
  const x = columnOf.get(view.hx) ?? rateColumn ?? usable[0];
  const y = columnOf.get(view.hy) ?? usable.find((column) => column !== x && column.shown) ?? usable.find((column) => column !== x);
  return [x, y];
}

/** Return the result of each cell: mean over seeds, and of all other settings the best. */
function cellsOf(x, y, key) {
  const across = groupsOf(x, selection), down = groupsOf(y, selection);
  const column = columnOf.get(key), better = lowerIsBetter(key) ? Math.min : Math.max;
  const others = report.telling.map((name) => columnOf.get(name)).filter((c) => c && c.role !== "seed" && c !== x && c !== y);
  const place = (groups) => new Map(groups.flatMap((group, i) => group.runs.map((run) => [run, i])));
  const columnAt = place(across), rowAt = place(down);
  const cells = down.map(() => across.map(() => ({ sums: new Map(), n: 0, diverged: 0, value: null })));
  for (const run of selection) {
    const cell = cells[rowAt.get(run)][columnAt.get(run)];
    const value = numberIn(column, run);
    if (report.diverged[run]) cell.diverged += 1;
    if (!sound(run) || value === null) continue;
    const same = JSON.stringify([x.values[run], y.values[run], ...others.map((c) => c.values[run])]);
    const [sum, n] = cell.sums.get(same) ?? [0, 0];
    cell.sums.set(same, [sum + value, n + 1]);
    cell.n += 1;
  }
  for (const cell of cells.flat()) if (cell.n) cell.value = better(...[...cell.sums.values()].map(([sum, n]) => sum / n));
  return { across, down, cells, others };
}

function drawHeatmap() {
  const [x, y] = heatmapKeys();
  if (!x || !y) return "Fewer than two settings vary, so there is nothing to set against each other.";
  if (!columnOf.get(view.hm)) return "The runs have no result to show.";
  const { across, down, cells, others } = cellsOf(x, y, view.hm);
  const lower = lowerIsBetter(view.hm);
  const values = cells.flat().map((cell) => cell.value).filter((value) => value !== null);
  const range = bounds(values, 3, lower) ?? [0, 1];
  const [zmin, zmax] = values.length ? [Math.max(range[0], Math.min(...values)), Math.min(range[1], Math.max(...values))] : [0, 1];
  const scale = amounts(dark.matches === lower);
  const roomy = byId("heatmap-chart").clientWidth / across.length > 60 && down.length <= 14;
  const marks = cells.flatMap((row, j) => row.flatMap((cell, i) => {
    if (cell.value === null) return cell.diverged ? [{ x: i, y: j, text: "×", showarrow: false, font: { size: 16, color: ink("soft") } }] : [];
    return roomy ? [{ x: i, y: j, text: short(cell.value, 4), showarrow: false, font: { size: 12, color: inkOn(scale, zmax > zmin ? (cell.value - zmin) / (zmax - zmin) : 0) } }] : [];
  }));
  fill("heatmap-note", [
    others.length ? `Of ${others.map((c) => c.label).join(", ")} a cell shows the best; seeds are averaged.` : "Seeds are averaged.",
    "× marks cells where every run diverged; empty ones have no result.",
  ].join(" "));
  const ticks = (groups) => ({ tickmode: "array", tickvals: groups.map((_, i) => i), ticktext: groups.map((group) => escaped(clipped(group.label, 20))), showgrid: false });
  return {
    traces: [{
      type: "heatmap", z: cells.map((row) => row.map((cell) => cell.value)), zmin, zmax, xgap: 2, ygap: 2, hoverinfo: "none",
      colorscale: scale,
      colorbar: { thickness: 11, outlinewidth: 0, tickfont: { color: ink("soft") }, len: 1 },
    }],
    layout: { xaxis: axis(x.label, ticks(across)), yaxis: axis(y.label, ticks(down)), annotations: marks },
    tip: ({ x: i, y: j }) => {
      const cell = cells[j]?.[i];
      return cell ? [`${x.label} ${across[i].label}, ${y.label} ${down[j].label}`, [
        [columnOf.get(view.hm).label, cell.value === null ? "–" : figures(cell.value)],
        ["runs with a result", String(cell.n)], ["diverged", String(cell.diverged)],
      ]] : null;
    },
    click: ({ x: i, y: j }) => narrow([[x, across[i]], [y, down[j]]]),
  };
}

/** Filter the page to one value, or range, of some columns. */
function narrow(pairs) {
  const terms = pairs.map(([column, group]) => rangeTerm(column, group.ends ?? [group.value, group.value]));
  setFilter(terms.join(" "));
}

function rangeTerm(column, [low, high]) {
  if (low === high || typeof low !== "number") return `${column.key}=${low === null ? "null" : quoted(String(low))}`;
  return `${column.key}>=${low} ${column.key}<=${high}`;
}

/** Return an axis of the parallel coordinates: each run's height, ticks, and a range as a filter. */
function dimensionOf(column, runs) {
  const distinct = [...new Set(runs.map((run) => column.values[run]))].sort((a, b) => compareCells(a, b, false));
  const numbers = distinct.filter((value) => typeof value === "number");
  const log = isLog(numbers), span = numbers.length === distinct.length && column.type === "number";
  const place = (value) => (log ? Math.log(value) : value);
  const [low, high] = span ? [place(numbers[0]), place(numbers[numbers.length - 1])] : [0, distinct.length - 1];
  const position = new Map(distinct.map((value, i) => [value, (span ? place(value) : i)]));
  const share = (value) => (high > low ? (position.get(value) - low) / (high - low) : 0.5);
  const most = span ? 6 : 12;
  const every = distinct.length <= most ? distinct : [...Array(most).keys()].map((i) => distinct[Math.round((i * (distinct.length - 1)) / (most - 1))]);
  return {
    label: column.label, shares: runs.map((run) => share(column.values[run])), heights: spread(runs.map((run) => share(column.values[run])), distinct.length),
    ticks: every.map((value) => [share(value), span ? short(value, 3) : clipped(shown(column, value), 13)]),
    term: ([from, to]) => {
      const inside = distinct.filter((value) => share(value) >= from && share(value) <= to);
      if (!inside.length) return null;
      return span ? rangeTerm(column, [inside[0], inside[inside.length - 1]]) : `${column.key}=${inside.map((value) => (value === null ? "null" : quoted(String(value)))).join("|")}`;
    },
  };
}

/** Lay the runs of one value side by side, in the order of their results, so that few hide many. */
function spread(shares, distinct) {
  const width = Math.min(0.05, 0.5 / Math.max(distinct, 1));
  return shares.map((share, i) => share + (shares.length > 1 ? width * (0.5 - i / (shares.length - 1)) : 0));
}

/** Return the last axis: the result, with a place of its own for the runs that have none. */
function resultDimension(column, runs) {
  const has = (run) => sound(run) && numberIn(column, run) !== null;
  const numbers = runs.filter(has).map((run) => numberIn(column, run)).sort((a, b) => a - b);
  if (!numbers.length) return null;
  const lower = lowerIsBetter(column.key), range = bounds(numbers, 4, lower);
  const low = Math.max(range[0], numbers[0]), high = Math.min(range[1], numbers[numbers.length - 1]);
  const missing = runs.some((run) => !has(run)), room = missing ? 0.86 : 1;
  const share = (value) => {
    const part = high > low ? Math.min(1, Math.max(0, (value - low) / (high - low))) : 0.5;
    return lower ? part * room : 1 - (1 - part) * room;
  };
  const off = lower ? 1 : 0;
  const beyond = numbers[lower ? numbers.length - 1 : 0] !== (lower ? high : low);
  const ticks = (high > low ? [0, 0.25, 0.5, 0.75, 1] : [0]).map((part) => low + part * (high - low)).map((value, i, all) => [share(value), (beyond && i === (lower ? all.length - 1 : 0) ? (lower ? "≥ " : "≤ ") : "") + short(value, 4)]);
  const shares = runs.map((run) => (has(run) ? share(numberIn(column, run)) : off));
  return {
    label: column.label, shares, heights: shares,
    quality: runs.map((run) => (has(run) ? (lower ? share(numberIn(column, run)) / room : (1 - share(numberIn(column, run))) / room) : null)),
    ticks: missing ? [...ticks, [off, "no result"]] : ticks,
    term: ([from, to]) => {
      const inside = numbers.filter((value) => share(value) >= from && share(value) <= to);
      return inside.length ? `${column.key}>=${inside[0]} ${column.key}<=${inside[inside.length - 1]}` : null;
    },
  };
}

/** Ranges chosen on the axes, by label of the axis. */
const brushes = new Map();
const SHADES = 12;

function drawParallel() {
  const column = columnOf.get(view.pm), varying = settings.filter((c) => c.shown).slice(0, 14);
  if (!column || !varying.length) return "No setting varies.";
  // The best are drawn last, on top.
  const runs = ranked(selection, view.pm).reverse();
  const result = resultDimension(column, runs);
  if (!result) return "No run that passes the filter has a result.";
  const axes = [...varying.map((c) => dimensionOf(c, runs)), result];
  const ranges = axes.map(({ label }) => brushes.get(label) ?? null);
  const inside = runs.map((_, i) => axes.every(({ shares }, k) => !ranges[k] || (shares[i] >= ranges[k][0] && shares[i] <= ranges[k][1])));
  const traces = [], owners = [];
  const add = (chosen, line, opacity) => {
    const trace = { x: [], y: [], mode: "lines", type: "scatter", hoverinfo: "none", line: { width: runs.length > 200 ? 1 : 1.6, ...line }, opacity };
    const owner = [];
    for (const i of chosen) {
      for (const [k, { heights }] of axes.entries()) { trace.x.push(k); trace.y.push(heights[i]); owner.push(runs[i]); }
      trace.x.push(null); trace.y.push(null); owner.push(null);
    }
    if (chosen.length) { traces.push(trace); owners.push(owner); }
  };
  const all = runs.map((_, i) => i), opacity = runs.length > 200 ? 0.55 : 0.85;
  add(all.filter((i) => !inside[i]), { color: ink("line") }, 0.8);
  add(all.filter((i) => inside[i] && result.quality[i] === null), { color: ink("soft"), dash: "dot" }, opacity);
  for (let shade = SHADES - 1; shade >= 0; shade--) {
    const mine = (i) => result.quality[i] !== null && Math.min(SHADES - 1, Math.floor(result.quality[i] * SHADES)) === shade;
    const part = shade / (SHADES - 1);
    add(all.filter((i) => inside[i] && mine(i)), { color: amount(dark.matches ? 1 - part : part) }, opacity);
  }
  // Plotly lets a range be dragged only where there are markers.
  traces.push({ x: axes.map((_, k) => k), y: axes.map(() => 0.5), mode: "markers", type: "scatter", marker: { opacity: 0 }, hoverinfo: "skip" });
  owners.push(axes.map(() => null));
  byId("parallel-chart").style.minWidth = `${80 * axes.length}px`;
  noteParallel(axes, ranges, runs.filter((_, i) => inside[i]));
  const tick = (k, [height, text]) => ({ x: k, y: height, text: escaped(text), showarrow: false, xanchor: k ? "left" : "right", xshift: k ? 6 : -6, font: { size: 11, color: ink("soft") }, bgcolor: ink("card"), opacity: 0.88, borderpad: 1 });
  const title = (k, text) => ({ x: k, y: 1, yshift: 22, text: escaped(clipped(text, 15)), showarrow: false, font: { size: 12.5, color: ink("ink") } });
  const rule = (k, [from, to], more) => ({ type: "line", x0: k, x1: k, y0: from, y1: to, line: { color: ink("soft"), width: 1, ...more } });
  return {
    traces,
    layout: {
      margin: { l: Math.min(110, 20 + 7 * Math.max(...axes[0].ticks.map(([, text]) => text.length), axes[0].label.length / 2)), r: 78, t: 46, b: 14 }, dragmode: "select", selections: [], newselection: { line: { color: ink("accent"), width: 1, dash: "solid" } },
      xaxis: { visible: false, range: [-0.02, axes.length - 0.98], fixedrange: true }, yaxis: { visible: false, range: [-0.05, 1.05], fixedrange: true },
      annotations: axes.flatMap((a, k) => [title(k, a.label), ...a.ticks.map((t) => tick(k, t))]),
      shapes: axes.flatMap((_, k) => [rule(k, [0, 1]), ...(ranges[k] ? [rule(k, ranges[k], { color: ink("accent"), width: 7 })] : [])]),
    },
    tip: (point) => {
      const run = owners[point.curveNumber][point.pointNumber];
      if (run === null) return null;
      highlight(run);
      return [labelOf(run), [[column.label, shown(column, column.values[run])], ["state", stateColumn.values[run] ?? "unknown"]]];
    },
    click: (point) => {
      const run = owners[point.curveNumber][point.pointNumber];
      if (run !== null) showDetails(run);
    },
    // A narrow drag chooses across the whole width, so the axis is the one that was pressed.
    selected: ({ y }, pressed) => {
      const k = Math.min(axes.length - 1, Math.max(0, Math.round(pressed * (axes.length - 0.96) - 0.02)));
      brushes.set(axes[k].label, [Math.min(...y), Math.max(...y)]);
      refresh(parallelChart);
    },
  };
}

function noteParallel(axes, ranges, inside) {
  const terms = axes.map((a, k) => (ranges[k] ? a.term(ranges[k]) : "")).filter((term) => term !== "");
  const let_go = el("button", { type: "button", onclick: () => { brushes.clear(); refresh(parallelChart); } }, "Let go");
  const keep = el("button", { type: "button", onclick: () => { brushes.clear(); setFilter(terms.join(" ")); } }, "Filter the page to them");
  fill("parallel-note", "A line is a run, the best on top; those without a result are dotted. Drag over an axis to choose a range. ",
    terms.length ? [el("b", {}, plural(inside.length, "run")), " in the ranges chosen. ", inside.length && !terms.includes(null) ? keep : null, " ", let_go] : null);
}

function drawSettingControls() {
  const measures = results.filter((column) => /loss|acc|score|perplexity/.test(column.key) || column.shown);
  const options = (measures.length ? measures : results).map((column) => [column.key, column.key]);
  const keys = settings.map((column) => [column.key, column.label]);
  const rates = Object.keys(report.sensitivity).map((key) => [key, key]);
  if (rates.length) fill("rate-controls", choice("Result", rates, view.rate, (value) => choose({ rate: value })));
  const [x, y] = heatmapKeys();
  if (x && y) {
    fill("heatmap-controls",
      choice("Result", options, view.hm, (value) => choose({ hm: value })),
      choice("across", keys, x.key, (value) => choose({ hx: value })),
      choice("down", keys, y.key, (value) => choose({ hy: value })));
  }
  if (options.length) fill("parallel-controls", choice("Result", options, view.pm, (value) => choose({ pm: value })));
  const lost = Object.values(report.sensitivity[view.rate] ?? []).some((curve) => curve.diverged.some(Boolean));
  fill("rate-note", [
    "A point is the mean over runs that differ only in their seed, with the t interval at 95 %; the best of each group is ringed. All runs, whatever the filter.",
    lost ? "× marks rates at which runs diverged: on the point where some came through, at the edge where none did." : "",
  ].join(" ").trim());
}

const rateChart = addChart("rate-chart", ["rate"], drawRates);
addChart("heatmap-chart", ["filter", "hx", "hy", "hm"], drawHeatmap);
const parallelChart = addChart("parallel-chart", ["filter", "pm"], drawParallel);
