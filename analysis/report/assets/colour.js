// Colours that colour-blind readers tell apart: Okabe and Ito's for kinds, viridis for amounts.

const dark = matchMedia("(prefers-color-scheme: dark)");
const KINDS_LIGHT = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b07800", "#56b4e9", "#444444"];
const KINDS_DARK = ["#56b4e9", "#e8743b", "#2bbf95", "#d991b9", "#f0e442", "#c9ced4", "#a07be6"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const VIRIDIS = [
  "#440154",
  "#482878",
  "#3e4a89",
  "#31688e",
  "#26838f",
  "#1f9d8a",
  "#6cce5a",
  "#b6de2b",
  "#fee825",
];
const MOST_GROUPS = 10;

const STATES = {
  completed: ["#00795a", "#45c79b"],
  running: ["#0072b2", "#56b4e9"],
  pending: ["#7d8a99", "#8d99a8"],
  planned: ["#aab4bf", "#5d6875"],
  unknown: ["#7d8a99", "#8d99a8"],
  diverged: ["#cc79a7", "#d991b9"],
  failed: ["#c44a00", "#e8743b"],
};
const kinds = () => (dark.matches ? KINDS_DARK : KINDS_LIGHT);
const stateColour = (state) =>
  (STATES[state ?? "unknown"] ?? ["#b07800", "#e6b422"])[dark.matches ? 1 : 0];
const ink = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** Return viridis at a share between 0 and 1, without the end that fades into the background. */
function amount(share) {
  const at = (dark.matches ? 0.25 + 0.75 * share : 0.9 * share) * (VIRIDIS.length - 1);
  const low = Math.min(VIRIDIS.length - 2, Math.floor(at));
  const parts = [1, 3, 5].map((i) => {
    const [a, b] = [VIRIDIS[low], VIRIDIS[low + 1]].map((hex) => parseInt(hex.slice(i, i + 2), 16));
    return Math.round(a + (b - a) * (at - low));
  });
  return `rgb(${parts.join(",")})`;
}

/** Return viridis as a scale of Plotly's. */
function amounts(reversed) {
  return [...Array(9).keys()].map((i) => [i / 8, amount(reversed ? 1 - i / 8 : i / 8)]);
}

/** Return black or white, whichever reads better on a colour scale at a share of it. */
function inkOn(scale, share) {
  const [, colour] = scale[Math.round(Math.min(1, Math.max(0, share)) * (scale.length - 1))];
  const [r, g, b] = colour.match(/\d+/g).map(Number);
  return 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#10161c" : "#ffffff";
}

/** Cut runs into at most a few groups by the values of a column. */
function groupsOf(column, runs = everyRun) {
  const byValue = new Map();
  for (const run of runs) {
    const value = column.values[run];
    if (!byValue.has(value)) byValue.set(value, []);
    byValue.get(value).push(run);
  }
  const values = [...byValue.keys()].sort((a, b) => compareCells(a, b, false));
  const numbers = values.filter((value) => typeof value === "number");
  if (column.type !== "number" || numbers.length <= MOST_GROUPS) {
    return values.map((value) => ({
      value,
      label: shown(column, value),
      runs: byValue.get(value),
    }));
  }
  const log = isLog(numbers);
  const place = (value) => (log ? Math.log(value) : value);
  const low = place(numbers[0]),
    width = (place(numbers[numbers.length - 1]) - low) / MOST_GROUPS;
  const ranges = new Map();
  for (const value of values) {
    const at =
      typeof value === "number"
        ? Math.min(MOST_GROUPS - 1, Math.floor((place(value) - low) / width))
        : -1;
    if (!ranges.has(at)) ranges.set(at, { value, runs: [], ends: [value, value] });
    const range = ranges.get(at);
    range.runs.push(...byValue.get(value));
    range.ends[1] = value;
  }
  return [...ranges.values()].map((range) => {
    const [first, last] = range.ends.map((value) =>
      typeof value === "number" ? short(value, 3) : shown(column, value),
    );
    return { ...range, label: first === last ? first : `${first} – ${last}` };
  });
}

/** Say whether positive numbers, ascending, are better shown on a log scale. */
const isLog = (numbers) =>
  numbers.length > 1 && numbers[0] > 0 && numbers[numbers.length - 1] / numbers[0] > 10;

/** Give every run a colour by a column. The groups are those of all runs, whatever is filtered. */
function colouring(key) {
  const column = columnOf.get(key);
  if (!column) return [{ label: "all runs", runs: everyRun, colour: kinds()[0], dash: "solid" }];
  const groups = groupsOf(column);
  return groups.map((group, i) => {
    if (column.key === "state")
      return { ...group, colour: stateColour(group.value), dash: "solid" };
    if (column.type === "number")
      return {
        ...group,
        colour:
          group.value === null
            ? ink("soft")
            : amount(groups.length > 1 ? i / (groups.length - 1) : 0.4),
        dash: "solid",
      };
    return { ...group, colour: kinds()[i % 7], dash: DASHES[Math.floor(i / 7) % 4] };
  });
}

/** Return the key that the reader, or the page, colours by. */
function colourKey() {
  if (view.colour) return view.colour;
  const groups = settings.filter((column) => column.role === "group" && column.shown);
  return (
    groups[0] ??
    settings.find((column) => column.role === "rate") ??
    settings[0] ??
    stateColumn
  ).key;
}
