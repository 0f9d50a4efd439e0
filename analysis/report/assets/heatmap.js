// A result over any two settings.

/** Return the two settings of the heatmap. */
function heatmapKeys() {
  const usable = settings.filter((column) => column.role !== "seed");
  const x = columnOf.get(view.hx) ?? rateColumn ?? usable[0];
  const y =
    columnOf.get(view.hy) ??
    usable.find((column) => column !== x && column.shown) ??
    usable.find((column) => column !== x);
  return [x, y];
}

/** Return the result of each cell: mean over seeds, and of all other settings the best. */
function cellsOf(x, y, key) {
  const across = groupsOf(x, selection),
    down = groupsOf(y, selection);
  const column = columnOf.get(key),
    better = lowerIsBetter(key) ? Math.min : Math.max;
  const others = report.telling
    .map((name) => columnOf.get(name))
    .filter((c) => c && c.role !== "seed" && c !== x && c !== y);
  const place = (groups) =>
    new Map(groups.flatMap((group, i) => group.runs.map((run) => [run, i])));
  const columnAt = place(across),
    rowAt = place(down);
  const cells = down.map(() =>
    across.map(() => ({ sums: new Map(), n: 0, diverged: 0, value: null })),
  );
  for (const run of selection) {
    const cell = cells[rowAt.get(run)][columnAt.get(run)];
    const value = numberIn(column, run);
    if (report.diverged[run]) cell.diverged += 1;
    if (!sound(run) || value === null) continue;
    const same = JSON.stringify([
      x.values[run],
      y.values[run],
      ...others.map((c) => c.values[run]),
    ]);
    const [sum, n] = cell.sums.get(same) ?? [0, 0];
    cell.sums.set(same, [sum + value, n + 1]);
    cell.n += 1;
  }
  for (const cell of cells.flat())
    if (cell.n) cell.value = better(...[...cell.sums.values()].map(([sum, n]) => sum / n));
  return { across, down, cells, others };
}

function drawHeatmap() {
  const [x, y] = heatmapKeys();
  if (!x || !y)
    return "Fewer than two settings vary, so there is nothing to set against each other.";
  if (!columnOf.get(view.hm)) return "The runs have no result to show.";
  const { across, down, cells, others } = cellsOf(x, y, view.hm);
  const lower = lowerIsBetter(view.hm);
  const values = cells
    .flat()
    .map((cell) => cell.value)
    .filter((value) => value !== null);
  const range = bounds(values, 1, lower) ?? [0, 1];
  const [zmin, zmax] = values.length
    ? [Math.max(range[0], Math.min(...values)), Math.min(range[1], Math.max(...values))]
    : [0, 1];
  const scale = amounts(dark.matches === lower);
  const roomy = byId("heatmap-chart").clientWidth / across.length > 60 && down.length <= 14;
  const marks = cells.flatMap((row, j) =>
    row.flatMap((cell, i) => {
      if (cell.value === null)
        return cell.diverged
          ? [{ x: i, y: j, text: "×", showarrow: false, font: { size: 16, color: ink("soft") } }]
          : [];
      return roomy
        ? [
            {
              x: i,
              y: j,
              text: short(cell.value, 4),
              showarrow: false,
              font: {
                size: 12,
                color: inkOn(scale, zmax > zmin ? (cell.value - zmin) / (zmax - zmin) : 0),
              },
            },
          ]
        : [];
    }),
  );
  fill(
    "heatmap-note",
    [
      others.length
        ? `Of ${others.map((c) => c.label).join(", ")} a cell shows the best; seeds are averaged.`
        : "Seeds are averaged.",
      "× marks cells where every run diverged; empty ones have no result.",
    ].join(" "),
  );
  const ticks = (groups) => ({
    tickmode: "array",
    tickvals: groups.map((_, i) => i),
    ticktext: groups.map((group) => escaped(clipped(group.label, 20))),
    showgrid: false,
  });
  return {
    traces: [
      {
        type: "heatmap",
        z: cells.map((row) => row.map((cell) => cell.value)),
        zmin,
        zmax,
        xgap: 2,
        ygap: 2,
        hoverinfo: "none",
        colorscale: scale,
        colorbar: { thickness: 11, outlinewidth: 0, tickfont: { color: ink("soft") }, len: 1 },
      },
    ],
    layout: {
      xaxis: axis(x.label, ticks(across)),
      yaxis: axis(y.label, ticks(down)),
      annotations: marks,
    },
    tip: ({ x: i, y: j }) => {
      const cell = cells[j]?.[i];
      return cell
        ? [
            `${x.label} ${across[i].label}, ${y.label} ${down[j].label}`,
            [
              [columnOf.get(view.hm).label, cell.value === null ? "–" : figures(cell.value)],
              ["runs with a result", String(cell.n)],
              ["diverged", String(cell.diverged)],
            ],
          ]
        : null;
    },
    click: ({ x: i, y: j }) =>
      narrow([
        [x, across[i]],
        [y, down[j]],
      ]),
  };
}

/** Filter the page to one value, or range, of some columns. */
function narrow(pairs) {
  const terms = pairs.map(([column, group]) =>
    rangeTerm(column, group.ends ?? [group.value, group.value]),
  );
  setFilter(terms.join(" and "));
}

function rangeTerm(column, [low, high]) {
  if (low === high || typeof low !== "number") return condition(column, [low]);
  const name = quoted(column.key);
  return `${name} >= ${low} and ${name} <= ${high}`;
}

addChart("heatmap-chart", ["filter", "hx", "hy", "hm"], drawHeatmap);
