// Results over the learning rate, a line a group of settings.

const hiddenRates = new Set();
/** Curves shown at first, the best; more would hide each other. */
const MOST_RATES = 7;
let ratesTouched = false;
const rateColumn = settings.find((column) => column.role === "rate");

function drawRates() {
  const curves = report.sensitivity[view.rate];
  if (!curves?.length)
    return "The runs have no learning rate in their config, so there is no curve to draw.";
  const order = bestFirst(curves, lowerIsBetter(view.rate));
  if (hiddenRates.size === 0 && !ratesTouched)
    order.slice(MOST_RATES).forEach((curve) => hiddenRates.add(curve.group));
  const groups = order.map((curve, i) => ({
    label: curve.group,
    colour: groupColour(curve.group, i),
    dash: DASHES[Math.floor(i / 7) % 4],
    curve,
  }));
  legend("rate-legend", groups, hiddenRates, () => {
    ratesTouched = true;
    refresh(rateChart);
  });
  const shownGroups = groups.filter((group) => !hiddenRates.has(group.label));
  const lower = lowerIsBetter(view.rate);
  const means = shownGroups.flatMap(({ curve }) => curve.mean).filter((value) => value !== null);
  if (!means.length) return "No run of the groups shown has a result.";
  const range = bounds(means, 1.5, lower);
  // The best point of every group shown is in view.
  for (const { curve } of shownGroups) {
    const known = curve.mean.filter((value) => value !== null);
    const best = lower ? Math.min(...known) : Math.max(...known);
    const edge = 0.06 * (range[1] - range[0]);
    if (known.length && best > range[1]) range[1] = best + edge;
    if (known.length && best < range[0]) range[0] = best - edge;
  }
  // Intervals of two seeds are huge; they may take a third of the height, not all of it.
  const room = 0.35 * (range[1] - range[0]),
    sides = shownGroups
      .flatMap(({ curve }) => [...curve.low, ...curve.high])
      .filter((value) => value !== null);
  range[0] = Math.max(
    range[0] - room,
    Math.min(range[0], ...sides.map((side) => side - room / 12)),
  );
  range[1] = Math.min(
    range[1] + room,
    Math.max(range[1], ...sides.map((side) => side + room / 12)),
  );
  const edge = (place) =>
    lower
      ? range[1] - (0.035 + 0.05 * place) * (range[1] - range[0])
      : range[0] + (0.035 + 0.05 * place) * (range[1] - range[0]);
  const traces = [],
    tips = [],
    stacked = new Map();
  for (const { curve, colour, dash, label } of shownGroups) {
    const at = curve.lr.map((_, i) => i).filter((i) => curve.mean[i] !== null && curve.lr[i] > 0);
    const best = at.reduce(
      (b, i) => (b === null || (curve.mean[i] - curve.mean[b]) * (lower ? 1 : -1) < 0 ? i : b),
      null,
    );
    traces.push({
      x: at.map((i) => curve.lr[i]),
      y: at.map((i) => curve.mean[i]),
      mode: "lines+markers",
      hoverinfo: "none",
      name: escaped(label),
      line: { color: colour, width: 2, dash },
      marker: {
        color: colour,
        size: at.map((i) => (i === best ? 12 : 7)),
        line: { width: at.map((i) => (i === best ? 2 : 0)), color: ink("ink") },
      },
      error_y: {
        type: "data",
        symmetric: false,
        thickness: 1.2,
        width: 3,
        color: colour,
        array: at.map((i) => (curve.high[i] ?? curve.mean[i]) - curve.mean[i]),
        arrayminus: at.map((i) => curve.mean[i] - (curve.low[i] ?? curve.mean[i])),
      },
    });
    tips.push({ curve, label, at });
    const lost = curve.lr.map((_, i) => i).filter((i) => curve.diverged[i] > 0 && curve.lr[i] > 0);
    const heights = lost.map((i) => {
      if (curve.mean[i] !== null) return curve.mean[i];
      stacked.set(curve.lr[i], (stacked.get(curve.lr[i]) ?? -1) + 1);
      return edge(stacked.get(curve.lr[i]));
    });
    traces.push({
      x: lost.map((i) => curve.lr[i]),
      y: heights,
      mode: "markers",
      hoverinfo: "none",
      cliponaxis: false,
      marker: { symbol: "x", size: 10, color: colour, line: { width: 1.5, color: ink("card") } },
    });
    tips.push({ curve, label, at: lost });
  }
  const rates = [...new Set(shownGroups.flatMap(({ curve }) => curve.lr))]
    .filter((rate) => rate > 0)
    .sort((a, b) => a - b);
  const decades = rates.length
    ? [
        ...Array(
          1 + Math.floor(Math.log10(rates[rates.length - 1])) - Math.ceil(Math.log10(rates[0])),
        ).keys(),
      ].map((k) => 10 ** (k + Math.ceil(Math.log10(rates[0]))))
    : [];
  const named = rates.length <= 7 || decades.length < 2 ? rates.slice(0, 12) : decades;
  const ticks = { tickvals: named, ticktext: named.map((rate) => short(rate, 3)) };
  return {
    traces,
    layout: {
      xaxis: axis("learning rate", { type: "log", ...ticks }),
      yaxis: axis(columnOf.get(view.rate).label, { range }),
    },
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
  if (curve.mean[i] !== null)
    rows.push([
      curve.n[i] > 1 ? `mean of ${curve.n[i]} runs` : "result of 1 run",
      figures(curve.mean[i]),
    ]);
  if (curve.low[i] !== null)
    rows.push(["95 % interval", `${figures(curve.low[i])} to ${figures(curve.high[i])}`]);
  if (curve.n[i] > 1)
    rows.push(["lowest, highest", `${figures(curve.min[i])}, ${figures(curve.max[i])}`]);
  if (curve.diverged[i]) rows.push(["diverged", plural(curve.diverged[i], "run")]);
  if (curve.other[i]) rows.push(["failed or not finished", plural(curve.other[i], "run")]);
  return rows;
}

/** Return the colour that a group has among the curves, where they are coloured by it. */
function groupColour(label, i) {
  const groups = settings.filter((column) => column.role === "group" && column.shown);
  const same =
    groups.length === 1 ? colouring(groups[0].key).find((group) => group.label === label) : null;
  return same?.colour ?? kinds()[i % 7];
}

const rateChart = addChart("rate-chart", ["rate"], drawRates);
