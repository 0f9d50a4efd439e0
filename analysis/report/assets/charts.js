// What all charts share: drawn when they come near the screen, in the colours of the page, with tips.

const charts = [];
// Plotly's own set of buttons holds one that uploads the chart to its makers; the page names its own.
const CONFIG = {
  responsive: true,
  displaylogo: false,
  showSendToCloud: false,
  plotlyServerURL: "",
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
};

/**
 * Add a chart. `draw` returns { traces, layout, tip, click }, or a text where nothing can be drawn;
 * `tip(point)` returns [title, rows], `click(point)` does what a click means.
 */
function addChart(id, keys, draw) {
  const chart = { node: byId(id), draw, near: false, stale: true, drawn: null, pressed: 0 };
  charts.push(chart);
  chart.node.addEventListener(
    "pointerdown",
    (event) => {
      const box = chart.node.querySelector(".nsewdrag")?.getBoundingClientRect();
      if (box) chart.pressed = (event.clientX - box.x) / box.width;
    },
    true,
  );
  whenever(keys, () => refresh(chart));
  return chart;
}

function startCharts() {
  const observer = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        const chart = charts.find(({ node }) => node === entry.target);
        chart.near = entry.isIntersecting;
        if (chart.near && chart.stale) refresh(chart);
      }
    },
    { rootMargin: "400px" },
  );
  for (const { node } of charts) observer.observe(node);
  // What is far down is drawn too, one chart at a time once the page rests, and before it is printed.
  const rest = [...charts];
  const drawNext = () => {
    const chart = rest.shift();
    if (!chart) return;
    if (chart.stale) refresh(chart, true);
    whenIdle(drawNext);
  };
  whenIdle(drawNext);
  addEventListener("beforeprint", () => {
    for (const chart of charts) if (chart.stale) refresh(chart, true);
  });
  dark.addEventListener("change", () => charts.forEach((chart) => refresh(chart)));
}

const whenIdle = window.requestIdleCallback ?? ((act) => setTimeout(act, 200));

function refresh(chart, far = false) {
  chart.stale = true;
  if (!(chart.near || far) || typeof Plotly === "undefined") return;
  chart.stale = false;
  const made = chart.draw();
  if (typeof made === "string") {
    if (chart.drawn) Plotly.purge(chart.node);
    chart.drawn = null;
    delete chart.node.dataset.listens;
    chart.node.classList.add("void");
    fill(chart.node, el("p", { class: "empty" }, made));
    return;
  }
  chart.drawn = made;
  chart.node.classList.remove("void");
  if (!chart.node.classList.contains("js-plotly-plot")) fill(chart.node);
  Plotly.react(chart.node, made.traces, { ...layoutOf(), ...made.layout }, CONFIG);
  if (!chart.node.dataset.listens) listen(chart);
  document.documentElement.dataset.drawn = String(Math.round(performance.now()));
}

function listen(chart) {
  chart.node.dataset.listens = "yes";
  const on = (event, act) => chart.node.on?.(event, act);
  on("plotly_hover", ({ points, event }) => {
    const said = chart.drawn?.tip?.(points[0]);
    if (said) showTip(event, ...said);
  });
  on("plotly_unhover", hideTip);
  on("plotly_click", ({ points }) => chart.drawn?.click?.(points[0]));
  on(
    "plotly_selected",
    (found) => found?.range && chart.drawn?.selected?.(found.range, chart.pressed),
  );
}

function layoutOf() {
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    showlegend: false,
    hovermode: "closest",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink("ink") },
    margin: { l: 58, r: 14, t: 14, b: 46 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: ink("soft"), activecolor: ink("accent") },
  };
}

/** Return an axis in the page's colours; the title is a text, not markup. */
function axis(title, more = {}) {
  return {
    title: { text: escaped(title), standoff: 8, font: { size: 12.5, color: ink("soft") } },
    automargin: true,
    zeroline: false,
    gridcolor: ink("grid"),
    linecolor: ink("line"),
    tickfont: { color: ink("soft") },
    ...more,
  };
}

/** Return a text that Plotly, which reads some HTML, shows as it is. */
function escaped(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

const clipped = (text, most = 28) => (text.length <= most ? text : `${text.slice(0, most - 1)}…`);

/**
 * Return bounds that keep a few wild values from flattening the others: up to `reach` times as far
 * beyond the worse quarter as that is from the best.
 */
function bounds(values, reach, lower = true) {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  if (!sorted.length) return null;
  let [low, high] = [sorted[0], sorted[sorted.length - 1]];
  if (lower) {
    const worse = quantile(sorted, 0.75);
    high = Math.min(high, worse + reach * Math.max(worse - low, 1e-3 * Math.abs(worse), 1e-12));
  } else {
    const worse = quantile(sorted, 0.25);
    low = Math.max(low, worse - reach * Math.max(high - worse, 1e-3 * Math.abs(worse), 1e-12));
  }
  const room = 0.06 * (high - low) || 0.05 * Math.abs(low) || 1;
  return [low - room, high + room];
}

/** A legend of buttons that show and hide groups; `hidden` is a set of labels. */
function legend(id, groups, hidden, redraw, line = true) {
  if (groups.length < 2) return fill(id);
  return fill(
    id,
    groups.map((group) => {
      const mark = line
        ? el("i", {
            class: "stroke",
            style: {
              borderTopColor: group.colour,
              borderTopStyle:
                group.dash === "solid" ? "solid" : group.dash === "dot" ? "dotted" : "dashed",
            },
          })
        : el("i", { style: { background: group.colour } });
      const press = () => {
        if (!hidden.delete(group.label)) hidden.add(group.label);
        redraw();
      };
      const count =
        group.count === undefined ? null : el("span", { class: "n" }, grouped(group.count));
      return el(
        "button",
        {
          type: "button",
          class: "chip",
          "aria-pressed": String(!hidden.has(group.label)),
          onclick: press,
        },
        mark,
        group.label,
        count,
      );
    }),
  );
}
