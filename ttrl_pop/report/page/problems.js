// Problems: a row for each, with a bar for each visit, and behind it votes and texts.

// Places in a visit; see data.py.
const STEP = 0, LABEL = 1, RIGHT = 2, FLIPPED = 3, AGREEMENT = 4, ABSTAINED = 5, OTHERS = 6, VOTES = 7;

const OUTCOMES = ["learned", "kept", "lost", "never"];

/** What a reader has opened and chosen, which newer data leave as it is. */
const open = new Map();

const rowKey = (problem) => `${problem.id}\n${problem.prompt}`;

const runRows = (data, index) => data.runs.map((run, place) => [place, run, run.rows[index]]).filter(([, , row]) => row);

const agreementOf = (visit) => visit[AGREEMENT] / 1000;

const labelOf = (row, visit) => visit[LABEL] < 0 ? null : row.answers[visit[LABEL]];

const answerNode = (text) => text === null ? el("span", { class: "none" }, "no answer") : own(text, { class: "answer" });

/** Bars of agreement by visit, right and wrong apart, with a mark below where the label flipped. */
function strip(row, onpick) {
  const shapes = { right: "", wrong: "", unknown: "", flip: "" };
  row.visits.forEach((visit, index) => {
    const height = Math.max(0.6, 10 * agreementOf(visit));
    const kind = visit[RIGHT] < 0 ? "unknown" : visit[RIGHT] ? "right" : "wrong";
    shapes[kind] += `M${index + 0.08} 10v${-height}h.84v${height}z`;
    if (visit[FLIPPED]) shapes.flip += `M${index + 0.08} 11.2v2.4h.84v-2.4z`;
  });
  const total = row.visits.length;
  const flips = row.visits.filter((visit) => visit[FLIPPED]).length;
  const visitAt = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    return Math.max(0, Math.min(total - 1, Math.floor(((event.clientX - box.left) / box.width) * total)));
  };
  return svg("svg", {
    class: "strip", viewBox: `0 0 ${Math.max(1, total)} 14`, preserveAspectRatio: "none", role: "img",
    style: { "max-width": `${Math.max(1, total) * 14}px` },
    "aria-label": `agreement at ${count(total, "visit")}, label flipped at ${flips}`,
    onpointermove: total ? (event) => showTip(event, ...tellVisit(row, row.visits[visitAt(event)])) : null,
    onpointerleave: hideTip,
    onclick: total && onpick ? (event) => onpick(visitAt(event)) : null,
  }, Object.entries(shapes).filter(([, path]) => path).map(([kind, path]) => svg("path", { class: `bar ${kind}`, d: path })));
}

function tellVisit(row, visit) {
  const label = labelOf(row, visit);
  const sign = visit[RIGHT] < 0 ? "" : visit[RIGHT] ? " ✓" : " ✗";
  return [`step ${visit[STEP]}, agreement ${figure(agreementOf(visit))}`, [label === null ? "no answer" : own(label), sign],
    ...(visit[FLIPPED] ? ["the label has changed"] : [])];
}

/** Votes at a visit as bars, the majority first. */
function votes(row, visit) {
  const pairs = [];
  for (let place = VOTES; place < visit.length; place += 2) pairs.push([row.answers[visit[place]], visit[place + 1]]);
  const all = pairs.reduce((sum, [, number]) => sum + number, visit[ABSTAINED] + visit[OTHERS]);
  const bar = (kind, name, number, sign) => number === 0 ? null : el("li", { class: `vote ${kind}` },
    el("span", { class: "name" }, sign, name), el("span", { class: "track" },
      el("span", { class: "length", style: { width: `${(100 * number) / all}%` } }), el("span", { class: "number" }, number)));
  return el("ul", { class: "votes", "aria-label": "votes" },
    pairs.map(([answer, number], place) => bar(place === 0 ? `first ${visit[RIGHT] < 0 ? "unknown" : visit[RIGHT] ? "right" : "wrong"}` : "rival",
      answerNode(answer), number, place === 0 ? verdict(visit[RIGHT]) : null)),
    bar("rest", "other answers", visit[OTHERS]), bar("rest", answerNode(null), visit[ABSTAINED]));
}

/** Texts of two minds beside each other. */
function voices(row, index) {
  const texts = row.texts[index];
  if (!texts) {
    return el("p", { class: "soft" }, `What minds wrote at this visit is in rollouts/step_${String(row.visits[index][STEP]).padStart(4, "0")}.jsonl.zst.`);
  }
  const label = labelOf(row, row.visits[index]);
  return el("div", { class: "voices" }, texts.map(([mind, text, answer, finished], place) => el("figure", { class: "voice" },
    el("figcaption", {}, el("b", {}, place === 0 && label !== null ? "with the majority" : answer === label && answer !== null ? "with it, too" : answer === null ? "without an answer" : "against it"),
      " ", answerNode(answer), finished ? null : el("span", { class: "soft" }, " cut off"),
      el("small", { class: "mind" }, `mind ${mind}`)),
    el("pre", { dir: "auto", tabindex: 0, "aria-label": "what the mind wrote" }, text))));
}

function panel(place, run, row, several, state) {
  const last = row.visits.length - 1;
  const body = el("div", {});
  const output = el("output", {});
  const slider = el("input", { type: "range", min: 0, max: Math.max(0, last), step: 1, "aria-label": "visit", oninput: () => pick(+slider.value) });
  function pick(index) {
    state.set(place, index === last ? null : index);
    slider.value = index;
    const visit = row.visits[index];
    output.replaceChildren(`visit ${index + 1} of ${last + 1} · step ${visit[STEP]} · agreement ${figure(agreementOf(visit))}`,
      visit[FLIPPED] ? el("span", { class: "flipped" }, " · label flipped") : "");
    body.replaceChildren(votes(row, visit), voices(row, index));
  }
  const head = several ? el("h3", {}, swatch(place), own(run.name)) : null;
  if (last < 0) return [el("div", { class: "panel" }, head, el("p", { class: "soft" }, "not visited yet")), () => {}];
  const chosen = state.get(place);
  pick(chosen === null || chosen === undefined ? last : Math.min(last, chosen));
  return [el("div", { class: "panel" }, head,
    el("div", { class: "scrub" }, last > 0 ? slider : null, output), body), pick];
}

function problemRow(data, index) {
  const problem = data.problems[index];
  const key = rowKey(problem);
  const several = data.runs.length > 1;
  const picks = new Map();
  const rows = runRows(data, index);
  const details = el("details", { class: "problem" });
  const body = el("div", { class: "inside" });
  const fill = () => {
    if (body.childElementCount) return;
    if (!open.has(key)) open.set(key, new Map());
    body.append(el("div", { class: "question" }, el("pre", { dir: "auto" }, problem.prompt),
      problem.gold === undefined ? null : el("p", {}, el("span", { class: "soft" }, "gold "), own(problem.gold, { class: "answer" }))));
    for (const [place, run, row] of rows) {
      const [node, pick] = panel(place, run, row, several, open.get(key));
      picks.set(place, pick);
      body.append(node);
    }
  };
  const cells = rows.map(([place, , row]) => {
    const end = row.ends[1] || row.ends[0];
    const strips = strip(row, (visit) => { details.open = true; fill(); picks.get(place)(visit); });
    return el("span", { class: "cell" }, several ? swatch(place) : null, el("span", { class: "strip-place" }, strips),
      el("span", { class: "label" }, end ? [verdict(end[2]), end[0] < 0 ? answerNode(null) : answerNode(row.answers[end[0]])] : null),
      el("span", { class: `outcome ${row.outcome || ""}` }, row.outcome || ""));
  });
  details.append(el("summary", {},
    el("span", { class: "id" }, own(problem.id)), el("span", { class: "prompt" }, own(problem.prompt.slice(0, 300))),
    el("span", { class: "cells" }, cells)), body);
  details.addEventListener("toggle", () => { if (details.open) fill(); else open.delete(key); });
  if (open.has(key)) { details.open = true; fill(); }
  return details;
}

const flipsOf = (row) => row.visits.reduce((sum, visit) => sum + visit[FLIPPED], 0);

const ORDERS = {
  "as in the input": null,
  "most flips": (data, index) => -Math.max(...runRows(data, index).map(([, , row]) => flipsOf(row))),
  "least agreement": (data, index) => Math.min(...runRows(data, index).map(([, , row]) => (row.ends[1] || row.ends[0] || [0, 2])[1])),
  "outcome": (data, index) => Math.max(...runRows(data, index).map(([, , row]) => ["kept", "learned", "never", "lost"].indexOf(row.outcome))) * -1,
};

const chosen = { order: "as in the input", outcome: "all", search: "" };

function problems(data) {
  const section = document.getElementById("problems");
  section.hidden = data.problems.length === 0;
  const rows = data.problems.map((problem, index) => problemRow(data, index));
  const has = (index, what) => what === "all" || runRows(data, index).some(([, , row]) => what === "flipped" ? flipsOf(row) > 0 : row.outcome === what);
  const texts = data.problems.map((problem, index) => [problem.id, problem.prompt, problem.gold || "",
    ...runRows(data, index).flatMap(([, , row]) => row.answers)].join("\n").toLowerCase());
  const list = el("div", { class: "list" });
  const told = el("p", { class: "soft", role: "status" });
  function show() {
    const order = ORDERS[chosen.order];
    const indices = data.problems.map((_, index) => index)
      .filter((index) => has(index, chosen.outcome) && texts[index].includes(chosen.search.toLowerCase()));
    if (order) indices.sort((a, b) => order(data, a) - order(data, b) || a - b);
    list.replaceChildren(...indices.map((index) => rows[index]));
    told.textContent = indices.length === data.problems.length ? count(indices.length, "problem") : `${indices.length} of ${count(data.problems.length, "problem")}`;
  }
  const kinds = ["all", ...OUTCOMES, "flipped"].map((kind) => [kind, data.problems.filter((_, index) => has(index, kind)).length])
    .filter(([kind, number]) => kind === "all" || number > 0);
  if (!kinds.some(([kind]) => kind === chosen.outcome)) chosen.outcome = "all";
  const search = el("input", { type: "search", id: "search", placeholder: "search", "aria-label": "search problems and answers", value: chosen.search,
    oninput: () => { chosen.search = search.value; show(); } });
  const order = el("select", { "aria-label": "order of problems", onchange: () => { chosen.order = order.value; show(); } },
    Object.keys(ORDERS).map((name) => el("option", { value: name, selected: name === chosen.order }, name)));
  const filter = el("div", { class: "filter", role: "radiogroup", "aria-label": "which problems" }, kinds.map(([kind, number]) => el("label", {},
    el("input", { type: "radio", name: "outcome", value: kind, checked: kind === chosen.outcome, onchange: () => { chosen.outcome = kind; show(); } }),
    el("span", {}, kind, el("small", {}, ` ${number}`)))));
  const gold = data.problems.some((problem) => problem.gold !== undefined);
  section.querySelector(".body").replaceChildren(
    el("p", { class: "soft explain" }, "A bar for each visit, as high as minds agree", gold ? [": ", key("right"), "the label is right, ", key("wrong"), "it is wrong"] : "",
      "; ", key("flip"), "below, it has changed."),
    el("div", { class: "choose" }, filter, order, search), told, list);
  show();
}

const key = (kind) => el("span", { class: `chip ${kind}`, "aria-hidden": "true" });

document.addEventListener("keydown", (event) => {
  const inField = event.target.matches("input, select, textarea");
  if (event.key === "/" && !inField) { document.getElementById("search")?.focus(); event.preventDefault(); }
  const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (move && event.target.matches(".problem > summary")) {
    const all = [...document.querySelectorAll(".problem > summary")];
    all[all.indexOf(event.target) + move]?.focus();
    event.preventDefault();
  }
});
