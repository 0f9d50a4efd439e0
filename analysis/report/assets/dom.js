// Building the page. Texts of runs reach it only through textContent, never as markup.

/** Return a new element; props are properties, `data` and `aria` objects, or a class. */
function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined) continue;
    if (name === "class") node.className = value;
    else if (name.startsWith("aria-") || name === "role" || name === "scope" || name === "for")
      node.setAttribute(name, value);
    else if (name === "style") Object.assign(node.style, value);
    else node[name] = value;
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const byId = (id) => document.getElementById(id);

/** Replace what is in the element with this id, or in this element. */
function fill(target, ...children) {
  const node = typeof target === "string" ? byId(target) : target;
  node.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

function choice(label, options, value, onchange) {
  const select = el("select", { "aria-label": label, onchange: () => onchange(select.value) });
  for (const [key, text] of options)
    select.append(el("option", { value: key, selected: key === value }, text));
  return el("label", { class: "field" }, label, select);
}

function checkbox(label, checked, onchange) {
  const box = el("input", { type: "checkbox", checked, onchange: () => onchange(box.checked) });
  return el("label", { class: "field" }, box, label);
}

/** A command line with a button that copies it. */
function command(text) {
  const said = el("span", {}, "Copy");
  const button = el(
    "button",
    {
      type: "button",
      class: "copy",
      onclick: async () => {
        fill(said, (await copied(text)) ? "Copied" : "Select it and copy");
        setTimeout(() => fill(said, "Copy"), 1500);
      },
    },
    said,
  );
  return el("div", { class: "command" }, el("code", {}, text), button);
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // A browser that gives pages from disk no clipboard still knows the old way.
    const area = el("textarea", { value: text, style: { position: "fixed", opacity: 0 } });
    const place = document.querySelector("dialog[open]") ?? document.body;
    place.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

/** Show a tip beside the pointer: a title and rows of two texts. */
function showTip(at, title, rows) {
  const tip = fill(
    "tip",
    el("b", {}, title),
    el(
      "table",
      {},
      rows.map(([name, value]) => el("tr", {}, el("td", {}, name), el("td", {}, value))),
    ),
  );
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = at.clientX + 16 + width > innerWidth ? at.clientX - width - 16 : at.clientX + 16;
  const top = at.clientY + 16 + height > innerHeight ? at.clientY - height - 12 : at.clientY + 16;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}

const hideTip = () => {
  byId("tip").hidden = true;
};
