// What the page says of a snapshot: pure functions from data to text and numbers, no DOM.

const WINDOW_SECONDS = 10;
const BLOCKED_SECONDS = 10; // blocked in next() for this long: said with its time, not as a ratio
const STARVED = 0.5;
const WAITING = 0.1;
const BUSY = 0.7;
const FULL = 0.75;
const CROWDED = 0.8;
const NEARLY_FULL = 0.95;

export const MEMORY_HINTS = {
  RSS: "resident: pages shared with other processes are counted in full",
  PSS: "its share: every page divided by how many processes have it; up to some minutes old",
  USS: "what it has for itself alone, as a leak would be; up to some minutes old",
};

export const WORKER_LETTERS = {
  idle: "I", fetching: "F", handing_over: "H", stopped: "S", hung: "!", dead: "D", zombie: "Z",
};

// The snapshots of the last seconds, for rates. Clocks are the agent's own.
export class History {
  constructor() {
    this.entries = [];
  }

  // Returns false for a snapshot seen before.
  push(snapshot) {
    const last = this.entries.at(-1);
    if (last && last.time === snapshot.time) return false;
    if (last && last.time > snapshot.time) this.entries = []; // its clock was set back
    this.entries.push({ time: snapshot.time, index: index(snapshot) });
    while (this.entries.length > 2 && snapshot.time - this.entries[1].time >= WINDOW_SECONDS) {
      this.entries.shift();
    }
    return true;
  }

  // The oldest known state of a subject within the window, with the seconds since; null if new.
  before(key) {
    const now = this.entries.at(-1);
    for (const entry of this.entries) {
      if (entry !== now && entry.index.has(key)) {
        return { seconds: now.time - entry.time, subject: entry.index.get(key) };
      }
    }
    return null;
  }
}

// Keys are JSON, so that no name can be mistaken for two.
export const rankKey = (rank) => JSON.stringify([rank.run, rank.rank]);
export const loaderKey = (rank, loader) => JSON.stringify([rank.run, rank.rank, loader.name]);

function index(snapshot) {
  const found = new Map();
  for (const rank of snapshot.ranks) {
    found.set(rankKey(rank), rank);
    for (const loader of rank.loaders) found.set(loaderKey(rank, loader), loader);
  }
  return found;
}

// --- numbers as text ---

export function number(value) {
  return value === null ? "–" : value.toLocaleString("en", { maximumFractionDigits: 1 });
}

// A rate, with as many digits at every poll, so that it does not jitter.
export function perSecond(value) {
  if (value === null) return "–";
  const digits = value >= 100 || value === 0 ? 0 : value >= 10 ? 1 : 2;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export function percent(share) {
  return share === null ? "–" : `${Math.round(100 * share)} %`;
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

export function duration(seconds) {
  if (seconds === null) return "–";
  const whole = Math.max(0, seconds);
  if (whole < 9.95) return `${whole.toFixed(1)} s`;
  if (whole < 120) return `${Math.round(whole)} s`;
  if (whole < 7200) return `${Math.floor(whole / 60)} min`;
  if (whole < 172800) return `${Math.floor(whole / 3600)} h`;
  return `${Math.floor(whole / 86400)} d`;
}

export const since = (moment, now) => (moment === null ? null : Math.max(0, now - moment));

// The growth of a counter per second; null if unknown, or if the counter began anew.
function rate(now, then, seconds) {
  if (now === null || then === null || then === undefined || !(seconds > 0)) return null;
  return now >= then ? (now - then) / seconds : null;
}

// --- a loader ---

// Everything the page shows of a loader, as text and shares from 0 to 1.
export function loaderView(rank, loader, before, now) {
  const old = before?.subject;
  const seconds = before?.seconds ?? 0;
  const spent = shares(loader, old, seconds);
  const workers = loader.workers.map((worker) => workerView(worker, old, seconds, now));
  const running = workers.filter((worker) => worker.busy !== null);
  const busy = running.length
    ? running.reduce((sum, worker) => sum + worker.busy, 0) / running.length
    : null;
  return {
    phase: rank.up ? loader.phase : "ended",
    active: rank.up && loader.phase !== "idle",
    spent,
    busy,
    workers,
    batches: rank.up ? rate(loader.batches, old?.batches, seconds) : null,
    samples: rank.up ? rate(loader.samples, old?.samples, seconds) : null,
    errors: Object.values(loader.errors).reduce((sum, count) => sum + count, 0) + loader.timeouts,
    queue: queue(loader),
    verdict: verdict(rank, loader, spent, busy, now),
  };
}

// How the time of the last seconds was spent.
function shares(loader, old, seconds) {
  const part = (phase) => {
    const growth = rate(loader.phase_seconds[phase] ?? 0, old?.phase_seconds[phase] ?? null, seconds);
    return growth === null ? 0 : Math.min(1, growth);
  };
  const wait = part("wait");
  const step = part("step");
  const rest = part("startup") + part("pause") + part("teardown");
  const other = Math.min(1 - Math.min(1, wait + step), rest);
  return { wait, step, other, ratio: wait + step > 0 ? wait / (wait + step) : null };
}

function queue(loader) {
  const { ready, outstanding, capacity } = loader;
  const work = Math.max(0, outstanding - ready);
  return {
    ready,
    work,
    capacity,
    text: capacity
      ? `${ready} ready, ${work} in work, room for ${capacity}`
      : "no prefetch queue: num_workers is 0",
  };
}

function verdict(rank, loader, spent, busy, now) {
  if (!rank.up) return say("dead", "the training process is gone");
  const idleFor = since(loader.last_delivery, now);
  switch (loader.phase) {
    case "idle":
      return say("calm", idleFor === null
        ? "not iterating yet" : `not iterating; last batch ${duration(idleFor)} ago`);
    case "startup":
      return say("calm", "starting: the first batch is on its way");
    case "pause":
      return say("calm", "paused: the loop does something else, such as validation or a checkpoint");
    case "teardown":
      return say("calm", "ending its iteration");
  }
  if (loader.phase === "wait" && idleFor !== null && idleFor > BLOCKED_SECONDS) {
    return say("bad", `blocked: no batch for ${duration(idleFor)}; ${workersSay(loader, busy)}`);
  }
  if (spent.ratio === null) return say("calm", "measuring");
  if (spent.ratio >= WAITING) {
    return say(spent.ratio >= STARVED ? "bad" : "warn",
      `waiting for data ${percent(spent.ratio)} of the time; ${workersSay(loader, busy)}`);
  }
  const full = loader.capacity > 0 && loader.ready >= FULL * loader.capacity;
  return say("good", `the loop is the bottleneck; ${full ? "the queue is full" : "data keeps up"}`);
}

const say = (tone, text) => ({ tone, text });

function workersSay(loader, busy) {
  if (loader.workers.length === 0) return "the loop loads its own data (num_workers is 0)";
  const trouble = ["dead", "hung", "stopped", "zombie"]
    .map((state) => [loader.workers.filter((worker) => worker.state === state).length, state])
    .filter(([count]) => count > 0)
    .map(([count, state]) => `${count} ${state}`);
  if (trouble.length) return `of ${loader.workers.length} workers ${trouble.join(", ")}`;
  if (busy === null) return "no worker is running";
  return busy >= BUSY ? "workers are busy" : `workers are busy only ${percent(busy)} of it`;
}

export function configText(config) {
  const parts = [];
  const add = (key, text) => {
    if (config[key]) parts.push(text(config[key]));
  };
  add("dataset", (name) => name);
  add("num_workers", (count) => `${count} worker${count === "1" ? "" : "s"}`);
  add("prefetch_factor", (factor) => `prefetch ${factor}`);
  add("batch_size", (size) => `batch size ${size}`);
  add("start_method", (method) => method);
  if (isTrue(config.pin_memory)) parts.push("pinned");
  if (isTrue(config.persistent_workers)) parts.push("persistent");
  if (Number(config.timeout_seconds) > 0) parts.push(`timeout ${config.timeout_seconds} s`);
  return parts.join(" · ");
}

const isTrue = (text) => text === "True" || text === "true" || text === "1";

// --- a worker ---

function workerView(worker, oldLoader, seconds, now) {
  const old = oldLoader?.workers.find((other) => other.slot === worker.slot);
  const fetching = rate(worker.fetch_seconds, old?.fetch_seconds, seconds);
  const cpu = rate(worker.cpu_seconds, old?.cpu_seconds, seconds);
  const state = worker.state ?? "none";
  const idle = since(worker.last_progress, now);
  return {
    slot: worker.slot,
    state,
    letter: WORKER_LETTERS[state] ?? "·",
    label: state === "none" ? "not running" : state.replace("_", " "),
    orphan: worker.orphan,
    busy: worker.up === true && fetching !== null ? Math.min(1, fetching) : null,
    batches: rate(worker.batches, old?.batches, seconds),
    cpu,
    resident: worker.resident_bytes,
    proportional: worker.proportional_bytes,
    unique: worker.unique_bytes,
    copied: worker.copied_bytes,
    progress: idle,
  };
}

// --- a rank ---

export function rankFacts(rank, before, gpus) {
  const { process, info } = rank;
  const facts = [`pid ${rank.pid}`];
  const cpu = rate(process.cpu_seconds, before?.subject.process.cpu_seconds, before?.seconds ?? 0);
  if (cpu !== null) facts.push(`CPU ${percent(cpu)}`);
  if (process.cpus !== null) facts.push(`${number(process.cpus)} CPUs granted`);
  if (process.resident_bytes !== null) facts.push(`RSS ${bytes(process.resident_bytes)}`);
  if (process.shm_size_bytes) {
    const used = percent((process.shm_used_bytes ?? 0) / process.shm_size_bytes);
    facts.push(`/dev/shm ${used} of ${bytes(process.shm_size_bytes)}`);
  }
  for (const gpu of gpus.filter(({ uuid }) => rank.gpus.includes(uuid))) {
    const busy = gpu.utilization === null ? "" : ` ${percent(gpu.utilization)}`;
    facts.push(`GPU ${gpu.index}${busy}`);
  }
  if (process.open_fds !== null) facts.push(`${number(process.open_fds)} files open`);
  if (info.torch) facts.push(`torch ${info.torch}`);
  if (info.python) facts.push(`Python ${info.python}`);
  return facts.join(" · ");
}

// How full the memory is that the rank's cgroup may have; null where it has no limit to know of.
export function rankMemory(rank, cgroups) {
  const memory = cgroups[rank.process.cgroup];
  if (!memory?.binding_limit_bytes || memory.room_bytes === null) return null;
  const used = memory.binding_limit_bytes - memory.room_bytes;
  return filled(used, memory.binding_limit_bytes,
    `anonymous and shared memory of cgroup ${rank.process.cgroup}, against its limit`);
}

// A share of something, as a bar shows it.
export function filled(used, total, about) {
  const share = used / total;
  const text = `${bytes(used)} of ${bytes(total)}`;
  const tone = share >= NEARLY_FULL ? "bad" : share >= CROWDED ? "warn" : "";
  return { share, text, tone, label: `${about}: ${text}` };
}

// What the reader should know before believing the numbers.
export function rankWarnings(rank, now) {
  const warnings = [];
  const warn = (about, tone, text) => warnings.push({ about, tone, text });
  if (!rank.up) {
    const ago = rank.died === null ? "" : ` ${duration(now - rank.died)} ago`;
    warn("death", "bad", `died without goodbye${ago}`);
  }
  if (rank.orphan_workers > 0) {
    const many = rank.orphan_workers > 1;
    const noun = many ? "workers outlived it and hold" : "worker outlived it and holds";
    warn("orphans", "bad", `${rank.orphan_workers} ${noun} memory`);
  }
  const blind = Object.keys(rank.hooks).filter((hook) => rank.hooks[hook] === false);
  if (blind.length) warn("hooks", "warn", `not observable in this torch: ${blind.join(", ")}`);
  if (rank.shim_errors > 0) warn("shim", "warn", `errors inside dlmon's shim: ${rank.shim_errors}`);
  const { open_fds: open, max_fds: max } = rank.process;
  if (open !== null && max && open > CROWDED * max) {
    warn("files", "warn", `${open} of ${max} file descriptors are in use`);
  }
  return warnings;
}
