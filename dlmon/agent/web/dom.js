// Small tools for what changes on the page. Data becomes text only by textContent.

export const $ = (id) => document.getElementById(id);

export function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text; // leaves a selection alone
}

export const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

export function setLabel(node, text) {
  if (node.getAttribute("aria-label") !== text) node.setAttribute("aria-label", text);
}

export function setClass(node, className) {
  if (node.className !== className) node.className = className;
}

// A line with a name, a bar of parts and what they say in words.
export function makeRow(name, parts, className = "bar") {
  const node = make("div", "row");
  const bar = make("div", className);
  bar.setAttribute("role", "img");
  bar.append(...parts.map((part) => make("span", part)));
  const text = make("span", "bar-text");
  node.append(make("span", "row-name", name), bar, text);
  return { node, bar, parts: [...bar.children], text };
}

// Shows a share from 0 to 1 in such a line of one part, or nothing where there is none.
export function setBar(row, shown) {
  row.node.hidden = shown === null;
  if (shown === null) return;
  setClass(row.parts[0], `used ${shown.tone}`.trim());
  row.parts[0].style.width = `${(100 * Math.min(1, Math.max(0, shown.share))).toFixed(1)}%`;
  setText(row.text, shown.text);
  setLabel(row.bar, shown.label);
  row.bar.title = shown.label;
}

const children = new WeakMap();

// Makes the children of `parent` those of `items`, each kept as long as its key is there.
export function sync(parent, items, keyOf, create, update) {
  const known = children.get(parent) ?? new Map();
  const next = new Map();
  let place = null;
  for (const item of items) {
    const key = keyOf(item);
    const child = known.get(key) ?? create(item);
    next.set(key, child);
    const wanted = place ? place.nextSibling : parent.firstChild;
    if (child.node !== wanted) parent.insertBefore(child.node, wanted);
    place = child.node;
    update(child, item);
  }
  for (const [key, child] of known) if (!next.has(key)) child.node.remove();
  children.set(parent, next);
}

export function syncTexts(list, texts) {
  sync(list, texts.map((text, place) => ({ text, place })), (item) => item.place,
    () => ({ node: make("li") }), (child, item) => setText(child.node, item.text));
}

// A table of items: `name` heads the first column, `columns` are [title, hint, text, known].
export function makeTable(name, columns) {
  const table = make("table");
  const head = make("tr");
  for (const [title, hint] of [[name, ""], ...columns]) {
    const cell = make("th", "", title);
    cell.scope = "col";
    if (hint) cell.title = hint;
    head.append(cell);
  }
  const top = make("thead");
  top.append(head);
  const rows = make("tbody");
  table.append(top, rows);
  return { table, titles: [...head.children].slice(1), rows, columns };
}

// Fills it, with a row per item; a column that is known of none is not shown.
export function updateTable(view, items, keyOf, createName, updateName) {
  const shown = view.columns.map(([, , , known]) => items.some(known));
  const hide = (cells) => shown.forEach((is, place) => { cells[place].hidden = !is; });
  hide(view.titles);
  sync(view.rows, items, keyOf, (item) => {
    const node = make("tr");
    const name = make("th");
    name.scope = "row";
    const values = view.columns.map(() => make("td"));
    node.append(name, ...values);
    return { node, values, name: createName(name, item) };
  }, (child, item) => {
    updateName(child.name, item);
    view.columns.forEach(([, , text], place) => setText(child.values[place], text(item)));
    hide(child.values);
  });
}
