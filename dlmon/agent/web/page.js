// The page: asks for a snapshot each second and shows it. Data becomes text only by textContent.

import {
  History, MEMORY_HINTS, bytes, configText, duration, loaderKey, loaderView, number, perSecond, percent,
  rankFacts, rankKey, rankMemory, rankWarnings,
} from "./view.js";
import {
  $, counted, make, makeRow, makeTable, setBar, setClass, setLabel, setText, sync, syncTexts,
  updateTable,
} from "./dom.js";
import { showFindings, wantsHangs } from "./findings.js";
import { showGpus, showUnobserved } from "./node.js";

const POLL_MS = 1000;
const ANSWER_WITHIN_MS = 5000;
const STALE_SECONDS = 10;
const QUEUE_CELLS = 40; // a longer queue is drawn as one bar
const OPEN_WORKERS = 8; // more of them start folded

const always = () => true;

const WORKER_COLUMNS = [
  ["batches/s", "", (worker) => perSecond(worker.batches), always],
  ["CPU", "", (worker) => percent(worker.cpu), always],
  ["RSS", MEMORY_HINTS.RSS, (worker) => bytes(worker.resident), always],
  ["PSS", MEMORY_HINTS.PSS, (worker) => bytes(worker.proportional),
    (worker) => worker.proportional !== null],
  ["USS", MEMORY_HINTS.USS, (worker) => bytes(worker.unique), (worker) => worker.unique !== null],
  ["copied", "what it shared with the training process and has a copy of by now",
    (worker) => bytes(worker.copied), (worker) => worker.copied > 0],
  ["progress", "since it last began or ended a fetch",
    (worker) => (worker.progress === null ? "–" : `${duration(worker.progress)} ago`), always],
];

const history = new History();
const natural = new Intl.Collator("en", { numeric: true }).compare;

// --- runs and ranks ---

function createRun(run) {
  const node = make("section", "run");
  const title = make("h2", "", run.name);
  const about = make("p", "about");
  const head = make("div", "run-head");
  head.append(title, about);
  const ranks = make("div", "ranks");
  node.append(head, ranks);
  return { node, about, ranks };
}

function updateRun(view, run, snapshot) {
  const { info } = run.ranks[0];
  const parts = [info.script, info.user && `by ${info.user}`];
  if (run.ranks.length > 1) parts.push(`${run.ranks.length} ranks here`);
  if (run.superseded > 0) parts.push(`${run.superseded} earlier, replaced`);
  setText(view.about, parts.filter(Boolean).join(" · "));
  sync(view.ranks, run.ranks, rankKey, createRank, (child, rank) =>
    updateRank(child, rank, snapshot));
}

function createRank(rank) {
  const node = make("article", "rank");
  const title = make("h3", "", rank.rank === "" ? "rank" : `rank ${rank.rank}`);
  const state = make("span", "state");
  const head = make("div", "rank-head");
  head.append(title, state);
  const warnings = make("ul", "warnings");
  const facts = make("p", "facts");
  const memory = makeRow("memory", ["used"]);
  const loaders = make("div", "loaders");
  const none = make("p", "verdict calm", "no DataLoader is in use");
  node.append(head, warnings, facts, memory.node, loaders, none);
  return { node, state, warnings, facts, memory, loaders, none };
}

function updateRank(view, rank, snapshot) {
  const now = snapshot.time;
  setClass(view.node, rank.up ? "rank" : "rank gone");
  setText(view.state, rank.up ? "alive" : "dead");
  setClass(view.state, rank.up ? "state up" : "state down");
  sync(view.warnings, rankWarnings(rank, now), (warning) => warning.about,
    () => ({ node: make("li") }), (child, warning) => {
      setText(child.node, warning.text);
      setClass(child.node, warning.tone);
    });
  setText(view.facts, rankFacts(rank, history.before(rankKey(rank)), snapshot.gpus));
  setBar(view.memory, rankMemory(rank, snapshot.cgroups));
  view.none.hidden = rank.loaders.length > 0;
  const items = [...rank.loaders].sort((a, b) => natural(a.name, b.name));
  sync(view.loaders, items, (loader) => loader.name, createLoader, (child, loader) =>
    updateLoader(child, loaderView(rank, loader, history.before(loaderKey(rank, loader)), now), loader));
}

// --- loaders ---

function createLoader(loader) {
  const node = make("section", "loader");
  const head = make("div", "loader-head");
  const phase = make("span", "phase");
  head.append(make("h4", "", loader.name), phase);
  const verdict = make("p", "verdict");
  const time = makeRow("time", ["wait", "step", "other"]);
  const queue = makeRow("queue", [], "queue");
  const stats = make("dl", "stats");
  const config = make("p", "facts");
  const workers = make("details", "workers");
  const summary = make("summary");
  const strip = make("span", "strip");
  const count = make("span", "count");
  summary.append(count, strip);
  const table = makeTable("worker", WORKER_COLUMNS);
  workers.append(summary, table.table);
  workers.open = loader.phase !== "idle" && loader.workers.length <= OPEN_WORKERS;
  node.append(head, verdict, time.node, queue.node, stats, workers, config);
  return { node, phase, verdict, time, queue, stats, config, workers, count, strip, table };
}

function updateLoader(view, shown, loader) {
  setText(view.phase, shown.phase);
  setClass(view.phase, `phase ${shown.phase}`);
  setText(view.verdict, shown.verdict.text);
  setClass(view.verdict, `verdict ${shown.verdict.tone}`);
  view.time.node.hidden = !shown.active;
  view.queue.node.hidden = !shown.active || shown.queue.capacity === 0;
  updateTime(view.time, shown.spent);
  updateQueue(view.queue, shown.queue);
  updateStats(view.stats, shown, loader);
  setText(view.config, configText(loader.config));
  updateWorkers(view, shown.workers);
}

function updateTime(row, spent) {
  [spent.wait, spent.step, spent.other].forEach((share, place) => {
    row.parts[place].style.width = `${(100 * share).toFixed(1)}%`;
  });
  setText(row.text, spent.ratio === null ? "–" : `${percent(spent.ratio)} wait`);
  setLabel(row.bar, `last seconds: ${percent(spent.wait)} waiting, `
    + `${percent(spent.step)} in the step, ${percent(spent.other)} starting, pausing or ending`);
}

function updateQueue(row, queue) {
  const { bar } = row;
  setText(row.text, `${queue.ready} / ${queue.capacity} ready`);
  setLabel(bar, queue.text);
  bar.title = queue.text;
  const whole = queue.capacity > QUEUE_CELLS;
  setClass(bar, whole ? "queue whole" : "queue");
  const cells = whole
    ? [["ready", queue.ready], ["work", queue.work], ["free", queue.capacity - queue.ready - queue.work]]
    : Array.from({ length: queue.capacity }, (_, place) => [
      place < queue.ready ? "ready" : place < queue.ready + queue.work ? "work" : "free", 1]);
  while (bar.childElementCount > cells.length) bar.lastElementChild.remove();
  while (bar.childElementCount < cells.length) bar.append(make("span"));
  cells.forEach(([kind, weight], place) => {
    const cell = bar.children[place];
    setClass(cell, kind);
    cell.style.flexGrow = String(Math.max(0, weight));
  });
}

function updateStats(list, shown, loader) {
  const rates = [
    ["batches/s", perSecond(shown.batches), ""],
    ["samples/s", perSecond(shown.samples), ""],
  ];
  const stats = [
    ...(shown.active ? rates : []),
    ["epochs", number(loader.epochs), ""],
    ["batches", number(loader.batches), ""],
    ["errors", number(shown.errors), shown.errors ? "alarming" : ""],
  ];
  sync(list, stats, (stat) => stat[0], (stat) => {
    const node = make("div");
    const value = make("dd");
    node.append(make("dt", "", stat[0]), value);
    return { node, value };
  }, (child, stat) => {
    setText(child.value, stat[1]);
    setClass(child.value, stat[2]);
  });
}

// --- workers ---

function updateWorkers(view, workers) {
  view.workers.hidden = workers.length === 0;
  setText(view.count, counted(workers.length, "worker"));
  const bySlot = (worker) => worker.slot;
  sync(view.strip, workers, bySlot, () => ({ node: make("span") }), (child, worker) => {
    setClass(child.node, `badge ${worker.state}`);
    setText(child.node, worker.letter);
    child.node.title = `worker ${worker.slot}: ${worker.label}`;
  });
  updateTable(view.table, workers, bySlot, createWorker, updateWorker);
}

function createWorker(name, worker) {
  const badge = make("span", "badge");
  badge.setAttribute("aria-hidden", "true"); // the state's name is beside it
  const state = make("span", "worker-state");
  name.append(badge, make("span", "worker-slot", String(worker.slot)), state);
  return { badge, state };
}

function updateWorker(view, worker) {
  setClass(view.badge, `badge ${worker.state}`);
  setText(view.badge, worker.letter);
  setText(view.state, worker.orphan ? `${worker.label}, orphan` : worker.label);
}

// --- the whole ---

function group(snapshot) {
  const runs = new Map();
  for (const rank of snapshot.ranks) {
    if (!runs.has(rank.run)) runs.set(rank.run, { name: rank.run, ranks: [], superseded: 0 });
    runs.get(rank.run).ranks.push(rank);
  }
  for (const rank of snapshot.superseded) {
    if (runs.has(rank.run)) runs.get(rank.run).superseded += 1;
  }
  for (const run of runs.values()) run.ranks.sort((a, b) => natural(a.rank, b.rank));
  return [...runs.values()].sort((a, b) => natural(a.name, b.name));
}

function show(snapshot) {
  const runs = group(snapshot);
  const main = $("runs");
  sync(main, runs, (run) => run.name, createRun, (child, run) => updateRun(child, run, snapshot));
  main.setAttribute("aria-busy", "false");
  $("empty").hidden = runs.length > 0;
  $("legend").hidden = runs.length === 0;
  const dead = snapshot.ranks.filter((rank) => !rank.up).length;
  const loaders = snapshot.ranks.reduce((sum, rank) => sum + rank.loaders.length, 0);
  showGpus(snapshot);
  const unobserved = showUnobserved(snapshot);
  syncTexts($("summary"), [
    counted(runs.length, "run"), counted(snapshot.ranks.length, "rank"), counted(loaders, "loader"),
    ...(unobserved ? [`${counted(unobserved, "worker")} not observed`] : []),
  ]);
  $("dead").hidden = dead === 0;
  setText($("dead"), `${dead} dead`);
  setText($("version"), `· dlmon ${snapshot.agent.version}`);
  const critical = showFindings(snapshot, hangs);
  document.title = `${dead || critical ? "⚠ " : ""}dlmon · ${location.host}`;
  showRefused(snapshot.refused);
}

function showRefused(refused) {
  $("refused").hidden = refused.length === 0;
  setText($("refused-summary"), refused.length === 1
    ? "1 file could not be read" : `${refused.length} files could not be read`);
  syncTexts($("refused-list"), refused.map((file) => file.message || file.reason));
}

// --- polling ---

let hangs = []; // what the agent keeps of hangs, the newest first
let seen = ""; // when the last good snapshot came, as the reader's clock has it

function alarm(text) {
  const node = $("alarm");
  setText(node, text);
  node.hidden = text === "";
  document.body.classList.toggle("stale", text !== "");
  setText($("pulse"), text === "" ? "live" : "not live");
  setClass($("pulse"), text === "" ? "pulse live" : "pulse");
}

// The text stays the same while the trouble lasts: a screen reader says it once.
function trouble(reason) {
  const since = seen && ` What you see is from ${seen}.`;
  alarm(`${reason}.${since} Trying again every second.`);
}

// Their stacks are worth asking for only while something is found of which they are not known.
async function askHangs() {
  try {
    const response = await fetch("api/v1/hangs", { signal: AbortSignal.timeout(ANSWER_WITHIN_MS) });
    return response.ok ? (await response.json()).hangs : hangs;
  } catch {
    return hangs;
  }
}

async function poll() {
  let response;
  try {
    response = await fetch("api/v1/snapshot", { signal: AbortSignal.timeout(ANSWER_WITHIN_MS) });
  } catch {
    trouble("The agent does not answer");
    return;
  }
  try {
    if (!response.ok) {
      const { status } = response;
      trouble(status === 503 ? "The agent has no snapshot yet" : `The agent says ${status}`);
      return;
    }
    const snapshot = await response.json();
    const { age_seconds: age, interval_seconds: interval } = snapshot.agent;
    seen = new Date(Date.now() - 1000 * age).toLocaleTimeString();
    if (wantsHangs(snapshot, hangs)) hangs = await askHangs();
    if (history.push(snapshot)) show(snapshot);
    if (age > Math.max(STALE_SECONDS, 3 * interval)) {
      trouble("The agent answers, but it cannot look at this machine");
    } else {
      alarm("");
    }
  } catch (error) {
    trouble(`The agent's answer makes no sense (${error.message})`);
  }
}

async function run() {
  for (;;) {
    await poll();
    await new Promise((resume) => setTimeout(resume, POLL_MS));
  }
}

run();
