// Elements, made of names and texts only: whatever a model wrote becomes a text node, never markup.

const SVG = "http://www.w3.org/2000/svg";

function put(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, each] of Object.entries(value)) node.style.setProperty(key, each);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined) node.append(child instanceof Node ? child : String(child));
  }
  return node;
}

const el = (tag, attributes, ...children) => put(document.createElement(tag), attributes, children);

const svg = (tag, attributes, ...children) => put(document.createElementNS(SVG, tag), attributes, children);

/** A text in which nobody but its own characters decides on its direction. */
const own = (text, attributes) => el("bdi", attributes, text);

/** A figure: two decimals, or two digits where that would hide it. */
function figure(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 0.001 || size >= 1e5) return value.toExponential(1).replace("e+", "e");
  if (size < 0.1) return String(Number(value.toPrecision(2)));
  return size >= 100 ? value.toFixed(0) : value.toFixed(2);
}

const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "±") + figure(Math.abs(value));

const between = (pair) => (pair ? `[${figure(pair[0])}, ${figure(pair[1])}]` : "");

const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

const swatch = (run) => svg("svg", { class: "swatch", viewBox: "0 0 22 8", "aria-hidden": "true" },
  svg("line", { x1: 1, y1: 4, x2: 21, y2: 4, class: `run-${run % 8} dash-${run % 4}` }));

/** A sign for right and wrong, with a word for who hears the page. */
const verdict = (right) => right < 0 ? null
  : el("span", { class: right ? "right" : "wrong", role: "img", "aria-label": right ? "right" : "wrong" }, right ? "✓" : "✗");

const tip = document.getElementById("tip");

function showTip(event, ...lines) {
  tip.replaceChildren(...lines.map((line) => el("div", {}, line)));
  tip.hidden = false;
  const [width, height] = [tip.offsetWidth, tip.offsetHeight];
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - width - 8))}px`;
  tip.style.top = `${event.clientY + 16 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 16}px`;
}

const hideTip = () => { tip.hidden = true; };
