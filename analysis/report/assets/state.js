// What the reader has chosen. It stands in the address, so that a link leads to the same view.

const defaults = {
  filter: "",
  sort: "",
  down: "",
  metric: report.curves[0]?.name ?? "",
  x: "steps",
  smooth: "0",
  logx: "",
  logy: "",
  colour: "",
  rate: measure ?? "",
  hx: "",
  hy: "",
  hm: measure ?? "",
  pm: measure ?? "",
  a: "",
  b: "",
  columns: "",
};
const view = { ...defaults };
readAddress();

/** Take the choices from the address; what it does not name is as at first. */
function readAddress() {
  Object.assign(view, defaults);
  for (const [key, value] of new URLSearchParams(location.hash.slice(1)))
    if (key in defaults) view[key] = value;
}

const listeners = [];
/** The runs that the filter lets through. */
let selection = everyRun;

/** Call a function now and whenever one of these choices, or the selection, changes. */
function whenever(keys, draw) {
  listeners.push({ keys, draw });
}

/** Change choices, and redraw what depends on them. */
function choose(changes) {
  Object.assign(view, changes);
  const parts = Object.keys(defaults)
    .filter((key) => view[key] !== defaults[key])
    .map((key) => [key, view[key]]);
  const text = new URLSearchParams(parts).toString();
  try {
    history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  } catch {
    // A frame without an address of its own, as in a notebook, has none to change.
  }
  for (const { keys, draw } of listeners) if (keys.some((key) => key in changes)) draw();
}

/** Apply a filter. Returns what is wrong with it, or null. */
function applyFilter(text) {
  let test;
  try {
    test = parseFilter(text);
  } catch (error) {
    return error.message;
  }
  selection = everyRun.filter(test);
  choose({ filter: text });
  return null;
}
