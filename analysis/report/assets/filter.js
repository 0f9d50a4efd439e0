// The filter: words and comparisons, all of which must hold.
//   muon lr<0.1 val.loss<2.5 state!=failed optimizer=adamw|muon "out of memory"
// Quotes hold what has spaces or a | in it; nothing can hold a quote.

const TERM = /([^\s"=!<>]+)(==|!=|<=|>=|=|<|>)((?:"[^"]*"|[^\s"])*)|"[^"]*"|\S+/g;
/** One of the alternatives of a comparison; a | inside quotes belongs to it. */
const ALTERNATIVE = /(?:"[^"]*"|[^|"])+/g;

/** Return a test of runs. Throws an Error that says what is wrong with the text. */
function parseFilter(text) {
  const tests = [...text.matchAll(TERM)].map((match) =>
    match[1] ? comparison(match[1], match[2], match[3]) : containing(unquoted(match[0])),
  );
  return (run) => tests.every((test) => test(run));
}

const unquoted = (text) => text.replaceAll('"', "");
const quoted = (text) => (/[\s"|]/.test(text) ? `"${text.replaceAll('"', "")}"` : text);

function comparison(name, sign, text) {
  const column = findColumn(name);
  const wanted = (text.match(ALTERNATIVE) ?? [""]).map((word) => unquoted(word).toLowerCase());
  if (sign === "=" || sign === "==") return (run) => wanted.some((word) => same(column, run, word));
  if (sign === "!=") return (run) => !wanted.some((word) => same(column, run, word));
  const bound = Number(text);
  if (text === "" || Number.isNaN(bound))
    throw new Error(`${name}${sign}${text}: must be compared with a number`);
  const holds = {
    "<": (v) => v < bound,
    "<=": (v) => v <= bound,
    ">": (v) => v > bound,
    ">=": (v) => v >= bound,
  }[sign];
  return (run) => {
    const value = numberIn(column, run);
    return value !== null && holds(value);
  };
}

function same(column, run, word) {
  const value = column.values[run];
  if (value === null || value === undefined) return ["null", "unknown", ""].includes(word);
  if (typeof value === "number") return word !== "" && Number(word) === value;
  return String(value).toLowerCase() === word;
}

/** Return the column of a full name, a label, or the end of a name; a final value before a best one. */
function findColumn(name) {
  const wanted = name.toLowerCase();
  const tests = [
    (column) => column.key.toLowerCase() === wanted,
    (column) => column.label.toLowerCase() === wanted,
    (column) => column.key.toLowerCase().endsWith(`.${wanted}`),
  ];
  for (const test of tests) {
    const found = columns.find(test);
    if (found) return found;
  }
  const near = columns
    .map((column) => column.key.split(".").pop())
    .map((key) => [distance(wanted, key.toLowerCase()), key])
    .sort((a, b) => a[0] - b[0])[0];
  const hint =
    near && near[0] <= Math.max(1, wanted.length / 3) ? `; did you mean ${near[1]}?` : "";
  throw new Error(`no column ${name}${hint}`);
}

/** Return how many letters to change, add or drop to make one word the other. */
function distance(first, second) {
  let row = [...Array(second.length + 1).keys()];
  for (let i = 1; i <= first.length; i++) {
    const next = [i];
    for (let j = 1; j <= second.length; j++) {
      next.push(
        Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (first[i - 1] !== second[j - 1])),
      );
    }
    row = next;
  }
  return row[second.length];
}

let haystacks = null;
function containing(text) {
  const wanted = text.toLowerCase();
  haystacks ??= everyRun.map((run) =>
    [
      labelOf(run),
      texts.run[run],
      texts.reason[run],
      ...report.overrides[run],
      ...columns.filter((c) => c.type === "text").map((c) => c.values[run]),
    ]
      .join("\n")
      .toLowerCase(),
  );
  return (run) => haystacks[run].includes(wanted);
}
