// What else is on the node: its GPUs, and DataLoader workers of jobs that are not observed.

import {
  $, counted, make, makeRow, makeTable, setBar, setText, sync, updateTable,
} from "./dom.js";
import { MEMORY_HINTS, bytes, duration, filled, percent } from "./view.js";

const SHOWN = 64; // workers of one script
const FEW = 8; // more of them start folded

const STATES = {
  R: "running", S: "sleeping", D: "blocked in the kernel", T: "stopped", t: "traced", Z: "zombie",
  I: "sleeping",
};

const size = (title, hint, key) =>
  [title, hint, (worker) => bytes(worker[key]), (worker) => worker[key] !== null];

const UNOBSERVED_COLUMNS = [
  ["CPU time", "since its start", (worker) => duration(worker.cpu_seconds), () => true],
  size("RSS", MEMORY_HINTS.RSS, "resident_bytes"),
  size("PSS", MEMORY_HINTS.PSS, "proportional_bytes"),
  size("USS", MEMORY_HINTS.USS, "unique_bytes"),
  size("read", "from storage", "read_bytes"),
  ["age", "since it was started", (worker) => duration(worker.age), () => true],
];

// --- GPUs ---

export function showGpus(snapshot) {
  $("gpus").hidden = snapshot.gpus.length === 0;
  sync($("gpus-list"), snapshot.gpus, (gpu) => gpu.uuid, createGpu, (child, gpu) =>
    updateGpu(child, gpu, snapshot.ranks));
}

function createGpu(gpu) {
  const node = make("li", "gpu");
  const head = make("p", "gpu-head");
  head.append(make("span", "gpu-name", `GPU ${gpu.index}`), make("span", "facts", gpu.name));
  const busy = makeRow("busy", ["used"]);
  const memory = makeRow("memory", ["used"]);
  const users = make("p", "facts");
  node.append(head, busy.node, memory.node, users);
  node.title = gpu.uuid;
  return { node, busy, memory, users };
}

function updateGpu(view, gpu, ranks) {
  const { utilization: busy, memory_used_bytes: used, memory_total_bytes: total } = gpu;
  setBar(view.busy, busy === null ? null : {
    share: busy, text: percent(busy), tone: "work", label: `busy ${percent(busy)} of the time`,
  });
  setBar(view.memory, used === null || !total ? null : filled(used, total, "memory in use"));
  setText(view.users, usersText(gpu, ranks));
}

function usersText(gpu, ranks) {
  const computing = ranks.filter((rank) => rank.gpus.includes(gpu.uuid))
    .map((rank) => `${rank.rank === "" ? "a rank" : `rank ${rank.rank}`} of ${rank.run}`);
  if (computing.length) return computing.join(", ");
  if (gpu.pids === null) return "who computes on it is not known here";
  if (gpu.pids.length === 0) return "not in use";
  const others = gpu.pids.length === 1 ? "1 process that is" : `${gpu.pids.length} processes that are`;
  return `${others} no rank of these runs`;
}

// --- workers of jobs that are not observed ---

// Returns how many there are.
export function showUnobserved(snapshot) {
  const { unobserved, time } = snapshot;
  $("unobserved").hidden = unobserved.length === 0;
  sync($("unobserved-list"), unobserved, (group) => JSON.stringify([group.user, group.script]),
    createGroup, (child, group) => updateGroup(child, group, time));
  return unobserved.reduce((sum, group) => sum + group.workers.length, 0);
}

function createGroup(group) {
  const node = make("details", "workers");
  const summary = make("summary");
  const facts = make("span");
  summary.append(make("strong", "", group.script || "a script not known"), facts);
  const table = makeTable("pid", UNOBSERVED_COLUMNS);
  const more = make("p", "facts");
  node.append(summary, table.table, more);
  node.open = group.workers.length <= FEW;
  return { node, facts, table, more };
}

function updateGroup(view, group, now) {
  setText(view.facts, groupText(group));
  const shown = group.workers.slice(0, SHOWN)
    .map((worker) => ({ ...worker, age: now - worker.started }));
  updateTable(view.table, shown, (worker) => worker.pid, (name, worker) => {
    const state = make("span", "worker-state");
    name.append(make("span", "worker-slot", String(worker.pid)), " ", state);
    return state;
  }, (state, worker) => {
    const text = STATES[worker.process_state] ?? worker.process_state;
    setText(state, worker.orphan ? `${text}, orphan` : text);
  });
  view.more.hidden = group.workers.length <= SHOWN;
  setText(view.more, `and ${group.workers.length - SHOWN} more`);
}

function groupText({ user, workers }) {
  const orphans = workers.filter((worker) => worker.orphan).length;
  const parts = [user && `by ${user}`, counted(workers.length, "worker")];
  if (orphans) parts.push(counted(orphans, "orphan"));
  const shares = workers.map((worker) => worker.proportional_bytes);
  if (!shares.includes(null)) {
    parts.push(`PSS ${bytes(shares.reduce((sum, share) => sum + share, 0))} in all`);
  }
  return parts.filter(Boolean).join(" · ");
}
