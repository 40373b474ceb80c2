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

export function setLabel(node, text) {
  if (node.getAttribute("aria-label") !== text) node.setAttribute("aria-label", text);
}

export function setClass(node, className) {
  if (node.className !== className) node.className = className;
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
