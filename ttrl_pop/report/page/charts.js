// Curves: one chart for each figure. All of them point to the same step.

const charts = { runs: [], at: null, drawn: [], readouts: [] };

/** Figures that are measured every few steps: a line leads from one to the next. */
const SPARSE = /^holdout\//;

function pointsOf(runs, name) {
  return runs.flatMap((run, index) => (run.figures[name] || []).map((value, place) => {
    const pair = (run.intervals[name] || [])[place];
    return { run: String(index), step: place + 1, value, low: pair ? pair[0] : null, high: pair ? pair[1] : null };
  })).filter((point) => point.value !== null || !SPARSE.test(name));
}

const alarmsOf = (runs) => runs.flatMap((run) => run.alarms.map(([step]) => ({ step })));

const lastStep = () => Math.max(0, ...charts.runs.map((run) => run.done));

/** What a chart's head says: the figure of each run at the step that is pointed to, else the last one that there is. */
function readout(name) {
  return charts.runs.map((run, index) => {
    const values = run.figures[name];
    if (!values) return null;
    const step = charts.at === null ? values.findLastIndex((value) => value !== null) + 1 : charts.at;
    const pair = (run.intervals[name] || [])[step - 1];
    return el("span", { class: `value ink-${index % 8}`, title: run.name }, figure(values[step - 1]),
      pair && charts.at !== null && charts.runs.length < 3 ? el("small", {}, ` ${between(pair)}`) : null);
  });
}

function pointTo(step) {
  if (step === charts.at) return;
  charts.at = step;
  for (const [node, name] of charts.readouts) node.replaceChildren(...readout(name).filter(Boolean));
  for (const place of charts.drawn) cross(place);
  const line = document.getElementById("at");
  if (line) line.textContent = step === null ? "last step" : `step ${step}`;
}

/** A line through the step that is pointed to. */
function cross(place) {
  const line = place.line;
  line.hidden = charts.at === null;
  if (line.hidden) return;
  line.style.left = `${place.view.origin()[0] + place.view.scale("x")(charts.at)}px`;
  line.style.top = `${place.view.origin()[1]}px`;
  line.style.height = `${place.view.height()}px`;
}

const within = (step) => Math.max(1, Math.min(lastStep(), step));

function plot(chart) {
  const place = el("div", {
    class: "plot", tabindex: 0, role: "img",
    "aria-label": `${chart.name} by step; arrow keys point to a step`,
    onkeydown: (event) => {
      const from = charts.at === null ? lastStep() : charts.at;
      const to = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 1, End: lastStep() }[event.key];
      if (event.key === "Escape") pointTo(null);
      else if (to !== undefined) { pointTo(within(to)); event.preventDefault(); }
    },
    onpointermove: (event) => {
      const view = place.view;
      if (!view) return;
      const left = place.querySelector("svg").getBoundingClientRect().left + view.origin()[0];
      pointTo(within(Math.round(view.scale("x").invert(event.clientX - left))));
    },
    onpointerleave: () => pointTo(null),
    onblur: () => pointTo(null),
  }, el("div", {}), el("span", { class: "cross", hidden: true }));
  place.line = place.lastChild;
  return place;
}

const OPTIONS = {
  // The interpreter, as the policy lets no code be made of texts; and none of the embedder's menu and styles.
  ast: true, actions: false, defaultStyle: false, renderer: "svg", tooltip: false,
  // A figure that no run has yet is no warning.
  logLevel: 1,
};

async function draw(place, chart) {
  const spec = structuredClone(chart.spec);
  spec.datasets = { points: pointsOf(charts.runs, chart.figure), alarms: alarmsOf(charts.runs) };
  const { view } = await vegaEmbed(place.firstChild, spec, OPTIONS);
  place.view = view;
  charts.drawn.push(place);
  cross(place);
}

/** Draw the charts that are looked at first, and the others when there is time. */
async function drawAll(figures) {
  const waiting = [...figures];
  const seen = (place) => place.getBoundingClientRect().top < innerHeight;
  waiting.sort(([a], [b]) => seen(b) - seen(a));
  for (const [place, chart] of waiting) {
    if (!place.isConnected) return;
    await draw(place, chart);
    await new Promise((done) => setTimeout(done));
  }
}

function legend(runs) {
  if (runs.length < 2) return null;
  return el("ul", { class: "legend" }, runs.map((run, index) => el("li", {}, swatch(index), own(run.name))));
}

function curves(data) {
  const section = document.getElementById("curves");
  section.hidden = data.charts.length === 0;
  for (const place of charts.drawn) place.view.finalize();
  Object.assign(charts, { runs: data.runs, at: null, drawn: [], readouts: [] });
  const figures = data.charts.map((chart) => {
    const values = el("span", { class: "readout" }, readout(chart.figure));
    charts.readouts.push([values, chart.figure]);
    const place = plot(chart);
    return [place, chart, el("figure", { class: "chart" },
      el("figcaption", {}, el("b", {}, chart.name), values, el("small", { class: "meaning" }, chart.meaning)), place)];
  });
  const alarms = data.runs.flatMap((run, index) => run.alarms.map(([step, text]) =>
    el("li", {}, data.runs.length > 1 ? swatch(index) : null, el("span", {}, data.runs.length > 1 ? [own(run.name), ", "] : null, `step ${step}: `, own(text)))));
  section.querySelector(".body").replaceChildren(
    el("div", { class: "key" }, legend(data.runs), el("p", { class: "soft" }, "values at the ", el("span", { id: "at" }, "last step"),
      Object.keys(data.runs.reduce((all, run) => Object.assign(all, run.intervals), {})).length
        ? ", bands: 95 % of samples of the step’s problems" : "")),
    ...(alarms.length ? [el("div", { class: "alarms" }, el("b", {}, "Looks like a collapse"), el("ul", {}, alarms))] : []),
    el("div", { class: data.runs.length > 2 ? "charts many" : "charts" }, figures.map(([, , node]) => node)),
    numbers(data));
  return drawAll(figures);
}

/** Every step in numbers, for who cannot point at a curve; made when it is opened. */
function numbers(data) {
  const details = el("details", { class: "numbers" }, el("summary", {}, "Every step in numbers"));
  details.addEventListener("toggle", () => {
    if (details.childElementCount > 1) return;
    data.runs.forEach((run, index) => {
      const shown = data.charts.filter((chart) => run.figures[chart.figure]);
      details.append(el("div", { class: "scroll" }, el("table", {},
        data.runs.length > 1 ? el("caption", {}, swatch(index), own(run.name)) : null,
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "step"), shown.map((chart) => el("th", { scope: "col" }, chart.name)))),
        el("tbody", {}, Array.from({ length: run.done }, (_, place) => el("tr", {}, el("th", { scope: "row" }, place + 1),
          shown.map((chart) => el("td", {}, figure(run.figures[chart.figure][place]))))))))); 
    });
  });
  return details;
}

/** Where the texts of each run lie: the two directions in which answers to one question differ most. */
function texts(data) {
  const section = document.getElementById("texts");
  section.hidden = !data.texts;
  if (!data.texts) return null;
  const place = el("div", { class: "plot", role: "img", "aria-label": "texts as dots; those that mean the same lie together" });
  section.querySelector(".body").replaceChildren(legend(data.runs) || "",
    el("p", { class: "soft note" }, "Each dot is an answer. Answers that mean the same lie together: first and second principal component of their embeddings, each less the mean of its question."),
    place);
  const spec = structuredClone(data.texts.spec);
  spec.datasets = { points: data.texts.places.flatMap((own, index) => own.map(([x, y]) => ({ run: String(index), x, y }))) };
  return vegaEmbed(place, spec, OPTIONS);
}
