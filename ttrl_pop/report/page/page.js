// The page: a section for each kind of thing that the data tell. What comes later is another function in SECTIONS.

const byId = (id) => document.getElementById(id);

function head(data) {
  byId("version").textContent = data.version;
  byId("title").replaceChildren(...data.runs.flatMap((run, index) => [index ? el("span", { class: "soft" }, " · ") : null, own(run.name)]).filter(Boolean));
  const choice = data.choice || [];
  byId("choice").replaceChildren(...choice.map((run) => el("a", { href: run.href, "aria-current": run.shown ? "true" : null }, own(run.name))));
}

function notices(data) {
  const told = data.runs.flatMap((run, index) => run.notices.map((text) =>
    el("li", {}, data.runs.length > 1 ? [swatch(index), own(run.name), ": "] : null, own(text))));
  if (data.trouble) told.push(el("li", {}, own(data.trouble)));
  byId("notices").hidden = told.length === 0;
  byId("notices").replaceChildren(el("ul", {}, told));
}

const state = (run) => run.finished ? "finished" : run.done >= run.steps ? "trained, not answered yet" : `step ${run.done} of ${run.steps}`;

/** Before and after on a line from 0 to 1, each with its interval. */
function range(row) {
  const mark = (kind, value, pair) => value === null ? [] : [
    pair ? el("span", { class: `interval ${kind}`, style: { left: `${100 * pair[0]}%`, width: `${100 * (pair[1] - pair[0])}%` } }) : null,
    el("span", { class: `point ${kind}`, style: { left: `${100 * value}%` } })];
  return el("span", { class: "range", "aria-hidden": "true" },
    mark("before", row.values[0], row.intervals[0]), mark("after", row.values[1], row.intervals[1]));
}

function runs(data) {
  const cards = data.runs.map((run, index) => el("article", { class: "card", style: { "--mine": `var(--run-${index % 8})` } },
    data.runs.length > 1 ? el("h3", {}, swatch(index), own(run.name)) : null,
    el("p", { class: "soft about" }, el("span", { class: "state" }, state(run)), own(run.model), ` · ${count(run.problems, "problem")}`, run.rollouts === null ? "" : ` · ${count(run.rollouts, "rollout")} each`,
      run.finished ? ` · ${count(run.done, "step")}` : "", run.alarms.length ? el("span", { class: "alarmed" }, ` · ▼ looks like a collapse from step ${run.alarms[0][0]}`) : ""),
    run.summary.length ? el("table", { class: "summary" },
      el("thead", {}, el("tr", {}, el("td", {}), el("th", { scope: "col" }, run.heads[0]), el("td", { class: "wide" }), el("th", { scope: "col" }, run.heads[1]), el("th", { scope: "col" }, "change"))),
      el("tbody", {}, run.summary.map((row) => el("tr", {}, el("th", { scope: "row" }, row.name),
        el("td", {}, figure(row.values[0]), el("small", {}, between(row.intervals[0]))), el("td", { class: "wide" }, range(row)),
        el("td", { class: "strong" }, figure(row.values[1]), el("small", {}, between(row.intervals[1]))),
        el("td", {}, row.change ? [signed(row.change[0]), el("small", {}, between(row.change.slice(1)))] : "")))))
      : el("p", { class: "soft" }, "no step is done yet"),
    run.outcomes ? outcomes(run) : null,
    run.elected ? el("p", { class: "soft" }, "Labels of this run were elected by others (vote.labels); what is shown below as label is the minds’ own majority.") : null));
  document.querySelector("#runs .body").replaceChildren(el("div", { class: "cards" }, cards),
    data.runs.some((run) => run.summary.length) ? el("p", { class: "soft note" }, "In brackets 95 % intervals over problems, of the change in pairs. The minds vote without gold, which is only measured against.") : "");
}

function outcomes(run) {
  const total = OUTCOMES.reduce((sum, name) => sum + run.outcomes[name], 0);
  return el("div", { class: "outcomes" },
    el("div", { class: "stack", "aria-hidden": "true" }, OUTCOMES.filter((name) => run.outcomes[name]).map((name) =>
      el("span", { class: name, style: { width: `${(100 * run.outcomes[name]) / total}%` } }))),
    el("ul", {}, OUTCOMES.map((name) => el("li", {}, el("span", { class: `chip ${name}`, "aria-hidden": "true" }), el("b", {}, run.outcomes[name]), ` ${name}`))));
}

function settings(data) {
  const section = byId("settings");
  const several = data.runs.length > 1;
  const table = (rows, columns) => el("div", { class: "scroll" }, el("table", { class: "settings" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "setting"), columns.map(([name]) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, el("th", { scope: "row" }, row.key),
      columns.map(([, value]) => el("td", {}, value(row) === "" ? el("span", { class: "soft" }, "not set") : own(value(row)))))))));
  const differing = data.settings.filter((row) => row.differ);
  const own_ = data.settings.filter((row) => !row.differ);
  const byDefault = ["default", (row) => row.default];
  const perRun = data.runs.map((run, index) => [[several ? swatch(index) : null, own(run.name)], (row) => row.values[index]]);
  section.hidden = data.settings.length === 0;
  section.querySelector("h2").textContent = several ? "What differs in their settings" : "Settings";
  section.querySelector(".body").replaceChildren(
    !several ? "" : differing.length ? table(differing, perRun) : el("p", { class: "soft" }, "Nothing: their settings are the same."),
    own_.length ? el("details", {}, el("summary", {}, several ? `${count(own_.length, "setting")} that they share and that ${own_.length === 1 ? "is" : "are"} not the default` : `${count(own_.length, "setting")} that ${own_.length === 1 ? "is" : "are"} not the default`),
      table(own_, [[several ? "all runs" : "this run", (row) => row.values[0]], byDefault])) : "");
}

const SECTIONS = [head, notices, runs, settings, texts, problems, curves];

function show(data) {
  hideTip();
  const focus = document.activeElement?.closest("details.problem")?.querySelector(".id")?.textContent;
  const drawn = Promise.all(SECTIONS.map((section) => section(data)));
  if (focus) [...document.querySelectorAll(".problem .id")].find((node) => node.textContent === focus)?.parentElement.focus();
  return drawn;
}

const data = JSON.parse(byId("data").textContent);

const THEMES = ["system", "light", "dark"];

let theme = 0;

byId("theme").addEventListener("click", () => {
  theme = (theme + 1) % THEMES.length;
  byId("theme").textContent = `theme: ${THEMES[theme]}`;
  document.documentElement.style.colorScheme = theme ? THEMES[theme] : "";
});

// For who waits for the page, as its tests do.
show(data).then(() => { document.documentElement.dataset.drawn = "true"; });

if (data.live) {
  const source = new EventSource(`events${location.search}`);
  source.addEventListener("open", () => { byId("live").textContent = "live"; });
  source.addEventListener("error", () => { byId("live").textContent = "not connected"; });
  let shown = JSON.stringify(data);
  source.addEventListener("runs", (event) => {
    const newer = { ...JSON.parse(event.data), live: true };
    // The first event tells what the page came with.
    if (JSON.stringify(newer) !== shown) show(newer);
    shown = JSON.stringify(newer);
  });
}
