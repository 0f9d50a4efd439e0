// The filter: the language of `python -m analysis table --where`, and words to search for.
//   lr < 0.1 and (optimizer = muon or not state in (failed, lost)) "out of memory"
// What --where takes means the same here, nulls and NaN included. Beyond it, a text without a
// comparison is looked for in all that is known of a run, and `and` may be left out.

const TOKEN =
  /(?<space>\s+)|(?<sign>==|!=|<=|>=|[=<>~])|(?<mark>[(),])|(?<quoted>'[^']*'|"[^"]*")|(?<word>[^\s=!<>~(),'"]+)/y;
const RESERVED = new Set(["and", "or", "not", "in", "null", "none"]);
const DEEPEST = 100;

/** Return a test of runs. Throws an Error that says what is wrong with the text, and where. */
function parseFilter(text) {
  if (!text.trim()) return () => true;
  const tokens = cut(text);
  let next = 0,
    depth = 0;
  const isWord = (token, ...words) =>
    token.kind === "word" && words.includes(token.text.toLowerCase());
  const isText = (token) => token.kind === "word" || token.kind === "quoted";

  function either() {
    const parts = [both()];
    while (isWord(tokens[next], "or")) next += 1, parts.push(both());
    return parts.length === 1 ? parts[0] : (run) => strongest(parts, run, true);
  }

  function both() {
    const parts = [single()];
    for (;;) {
      if (isWord(tokens[next], "and")) next += 1;
      else if (tokens[next].text === ")" || tokens[next].kind === "end") break;
      else if (isWord(tokens[next], "or")) break;
      parts.push(single());
    }
    return parts.length === 1 ? parts[0] : (run) => strongest(parts, run, false);
  }

  function single() {
    if (++depth > DEEPEST) fail("is nested too deeply", tokens[next].at);
    let test;
    if (isWord(tokens[next], "not")) {
      next += 1;
      const inner = single();
      test = (run) => {
        const answer = inner(run);
        return answer === null ? null : !answer;
      };
    } else if (tokens[next].text === "(") {
      next += 1;
      test = either();
      expected(tokens[next].text === ")", "')'");
      next += 1;
    } else test = comparison();
    depth -= 1;
    return test;
  }

  function comparison() {
    const token = tokens[next];
    expected(isText(token) && !isWord(token, "and", "or"), "a column or a word");
    const after = tokens[next + 1];
    const oneOf = isWord(after, "in");
    next += 1;
    if (!oneOf && after.kind !== "sign") return containing(unquoted(token));
    const column = findColumn(unquoted(token));
    next += 1;
    if (!oneOf) return compared(column, unquoted(token), after.text, value());
    expected(tokens[next].text === "(", "'(' and the values");
    const tests = [];
    while (tokens[next].text !== ")") {
      next += 1;
      tests.push(compared(column, unquoted(token), "=", value()));
      expected([",", ")"].includes(tokens[next].text), "',' or ')'");
    }
    next += 1;
    return (run) => strongest(tests, run, true);
  }

  function value() {
    expected(isText(tokens[next]), "a value");
    return tokens[next++];
  }

  function expected(holds, wanted) {
    if (holds) return;
    const { kind, text: found, at } = tokens[next];
    fail(`must have ${wanted} where ${kind === "end" ? "the end" : `'${found}'`} is`, at);
  }

  const test = either();
  expected(tokens[next].kind === "end", "'and', 'or' or the end");
  return (run) => test(run) === true;
}

function fail(fault, at) {
  throw new Error(`${fault}, at character ${at}`);
}

function cut(text) {
  const tokens = [];
  TOKEN.lastIndex = 0;
  let at = 0;
  while (at < text.length) {
    TOKEN.lastIndex = at;
    const match = TOKEN.exec(text);
    if (!match) fail(`has '${text[at]}' that begins nothing`, at + 1);
    const [kind] = Object.entries(match.groups).find(([, found]) => found !== undefined);
    if (kind !== "space") tokens.push({ kind, text: match[0], at: at + 1 });
    at = TOKEN.lastIndex;
  }
  const end = { kind: "end", text: "", at: at + 1 };
  return [...tokens, end, end];
}

/** Join answers by or (`wanted` true) or and (false); null, unknown, yields to a certain answer. */
function strongest(tests, run, wanted) {
  let unknown = false;
  for (const test of tests) {
    const answer = test(run);
    if (answer === wanted) return wanted;
    unknown ||= answer === null;
  }
  return unknown ? null : !wanted;
}

const unquoted = ({ kind, text }) => (kind === "quoted" ? text.slice(1, -1) : text);

const SIGNS = {
  "=": (a, b) => a === b,
  "==": (a, b) => a === b,
  "!=": (a, b) => a !== b,
  "<": (a, b) => a < b,
  "<=": (a, b) => a <= b,
  ">": (a, b) => a > b,
  ">=": (a, b) => a >= b,
};

function compared(column, name, sign, token) {
  const text = unquoted(token);
  const valueOf = (run) => column.values[run] ?? null;
  if (token.kind === "word" && ["null", "none"].includes(text.toLowerCase())) {
    if (sign === "=" || sign === "==") return (run) => valueOf(run) === null;
    if (sign === "!=") return (run) => valueOf(run) !== null;
  }
  if (sign === "~") {
    const wanted = text.toLowerCase();
    return (run) =>
      valueOf(run) === null ? null : String(valueOf(run)).toLowerCase().includes(wanted);
  }
  const holds = SIGNS[sign];
  let read = String,
    bound = text;
  if (column.type === "flag") {
    if (!["true", "false"].includes(text.toLowerCase()))
      fail(`must compare ${name} with true or false`, token.at);
    [read, bound] = [Boolean, text.toLowerCase() === "true"];
  } else if (column.type === "number") {
    [read, bound] = [Number, numberOf(text)];
    if (bound === null) fail(`must compare ${name} with a number`, token.at);
  }
  return (run) => (valueOf(run) === null ? null : holds(read(valueOf(run)), bound));
}

/** Return the number that a text is, null if it is none. */
function numberOf(written) {
  const text = written.trim();
  const word = /^([+-]?)(?:(inf(?:inity)?)|nan)$/i.exec(text);
  if (word) return word[2] ? (word[1] === "-" ? -Infinity : Infinity) : NaN;
  return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) ? Number(text) : null;
}

/** Return a condition that holds where a column has one of some values. */
function condition(column, values) {
  const name = quoted(column.key) ?? column.key;
  const written = values.map((value) => (value === null ? "null" : quoted(String(value))));
  if (written.length > 1 && written.every((text) => text !== null))
    return `${name} in (${written.join(", ")})`;
  const terms = written.map((text, i) =>
    text === null ? `${name} ~ ${longest(String(values[i]))}` : `${name} = ${text}`,
  );
  return terms.length > 1 ? `(${terms.join(" or ")})` : terms[0];
}

/** Return a text as the filter reads it back; null if it has both kinds of quotes. */
function quoted(text) {
  if (/^[^\s=!<>~(),'"]+$/.test(text) && !RESERVED.has(text.toLowerCase())) return text;
  if (!text.includes('"')) return `"${text}"`;
  return text.includes("'") ? null : `'${text}'`;
}

/** Return the longest part of a text that can stand between quotes. */
function longest(text) {
  const parts = text.split('"').sort((a, b) => b.length - a.length);
  return `"${parts[0]}"`;
}

/** Return the column of a full name, a label, or the end of a name; a final value before others. */
function findColumn(name) {
  const exact = columnOf.get(name);
  if (exact) return exact;
  const ends = columns.filter((column) => column.key.endsWith(`.${name}`));
  if (ends.length === 1) return ends[0];
  const final = ends.find((column) => column.key === `final.${name}`);
  if (final) return final;
  if (ends.length)
    throw new Error(`column = ${name}; must be one of: ${ends.map((c) => c.key).join(", ")}`);
  const labelled = columns.find((column) => column.label === name);
  if (labelled) return labelled;
  const wanted = name.toLowerCase();
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
