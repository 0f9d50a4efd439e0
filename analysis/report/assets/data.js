// What the page is about: the blocks of JSON in the document, read when they are needed.

const read = (id) => JSON.parse(byId(id).textContent);
const report = read("report");
const { columns, texts } = report;
const runCount = columns[0].values.length;
const everyRun = [...Array(runCount).keys()];
const columnOf = new Map(columns.map((column) => [column.key, column]));
const settings = columns.filter((column) => column.kind === "setting");
const results = columns.filter((column) => column.kind === "result");
const stateColumn = columnOf.get("state");
/** The result that ranks the runs, unless the reader sorts by another. */
const measure = report.measures[0] ?? null;

const blocks = new Map();
/** Return a block of JSON, parsed once. */
function block(id) {
  if (!blocks.has(id)) blocks.set(id, read(id));
  return blocks.get(id);
}

/** Return a run's finite number in a column, else null. */
function numberIn(column, run) {
  const value = column.values[run];
  return typeof value === "number" ? value : null;
}

/** Say whether a run ended well: completed, or written by another program, and not diverged. */
const sound = (run) =>
  !report.diverged[run] && (stateColumn.values[run] ?? "completed") === "completed";

/** Say whether a run may still become, or is, a result. */
const hopeful = (run) =>
  !report.diverged[run] &&
  ["completed", "running", "planned", "pending", null].includes(stateColumn.values[run]);

const lowerIsBetter = (key) => columnOf.get(key)?.better !== "high";

/** Return a number with at most so many significant digits, and no zeros that say nothing. */
function short(value, digits = 6) {
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return String(value);
  const text = String(Number(value.toPrecision(digits)));
  return text.replace("-", "−").replace("e−", "e-");
}

const grouped = (value) => Math.round(value).toLocaleString("en-US");

/** Return a count in a short form: 4.6M. */
function compact(value) {
  for (const [size, unit] of [
    [1e12, "T"],
    [1e9, "B"],
    [1e6, "M"],
    [1e3, "k"],
  ]) {
    if (Math.abs(value) >= size) return `${Number((value / size).toPrecision(3))}${unit}`;
  }
  return short(value, 3);
}

/** Return seconds as people say them: 42 s, 3:05, 1:02:03. */
function duration(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const two = (number) => String(number).padStart(2, "0");
  const hours = Math.floor(whole / 3600),
    minutes = Math.floor(whole / 60) % 60;
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

/** Return a cell's value as text. */
function shown(column, value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (column.key === "duration_s") return duration(value);
  if (column.key === "tokens_per_second") return grouped(value);
  if (column.kind === "result") return figures(value);
  return short(value);
}

/** Return a measured value with five figures, so that a column lines up. */
function figures(value) {
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (size >= 1e5) return compact(value);
  const text =
    size !== 0 && size < 1e-3
      ? value.toExponential(2)
      : size >= 1000
        ? value.toFixed(0)
        : value.toPrecision(5);
  return text.replace(/^-/, "−");
}

/** Return `muon, lr 0.03`: values, with their names unless a value is a word. */
function described(run, names) {
  const words = [];
  for (const name of names) {
    const value = columnOf.get(name)?.values[run];
    if (value === null || value === undefined) continue;
    words.push(
      typeof value === "string" && columnOf.get(name).type === "text"
        ? value
        : `${name.split(".").pop()} ${short(value)}`,
    );
  }
  return words.join(", ");
}

const labels = new Map();
/** Return what tells a run from the others, for people. */
function labelOf(run) {
  if (!labels.has(run))
    labels.set(run, described(run, report.telling) || texts.name[run] || texts.run[run]);
  return labels.get(run);
}

/** Return the place of a run's value for sorting: numbers, then what is not finite, then nothing. */
function compareCells(first, second, down) {
  const rank = (value) =>
    value === null || value === undefined
      ? 2
      : value === "NaN" || value === "Infinity" || value === "-Infinity"
        ? 1
        : 0;
  const order = rank(first) - rank(second);
  if (order || rank(first)) return order;
  const sign = down ? -1 : 1;
  if (typeof first === "number" && typeof second === "number") return sign * (first - second);
  return sign * String(first).localeCompare(String(second), "en", { numeric: true });
}

/** Return runs, the best first by a result; those that failed or diverged come last. */
function ranked(runs, key = measure) {
  const column = columnOf.get(key);
  if (!column) return [...runs];
  const down = column.better === "high";
  return [...runs].sort(
    (a, b) =>
      hopeful(b) - hopeful(a) || compareCells(column.values[a], column.values[b], down) || a - b,
  );
}

const quantile = (sorted, share) =>
  sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
const plural = (count, noun) => `${grouped(count)} ${noun}${count === 1 ? "" : "s"}`;
