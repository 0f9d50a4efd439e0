// What the reader can choose of the charts over settings.

function drawSettingControls() {
  const measures = results.filter(
    (column) => /loss|acc|score|perplexity/.test(column.key) || column.shown,
  );
  const options = (measures.length ? measures : results).map((column) => [column.key, column.key]);
  const keys = settings.map((column) => [column.key, column.label]);
  const rates = Object.keys(report.sensitivity).map((key) => [key, key]);
  if (rates.length)
    fill(
      "rate-controls",
      choice("Result", rates, view.rate, (value) => choose({ rate: value })),
    );
  const [x, y] = heatmapKeys();
  if (x && y) {
    fill(
      "heatmap-controls",
      choice("Result", options, view.hm, (value) => choose({ hm: value })),
      choice("across", keys, x.key, (value) => choose({ hx: value })),
      choice("down", keys, y.key, (value) => choose({ hy: value })),
    );
  }
  if (options.length)
    fill(
      "parallel-controls",
      choice("Result", options, view.pm, (value) => choose({ pm: value })),
    );
  const lost = Object.values(report.sensitivity[view.rate] ?? []).some((curve) =>
    curve.diverged.some(Boolean),
  );
  fill(
    "rate-note",
    [
      "A point is the mean over runs that differ only in their seed, with the t interval at 95 %; the best of each group is ringed. All runs, whatever the filter.",
      lost
        ? "× marks rates at which runs diverged: on the point where some came through, at the edge where none did."
        : "",
    ]
      .join(" ")
      .trim(),
  );
}
