// What is wrong now, at the top of the page, with the stacks that show it.

import { $, make, setClass, setText, sync } from "./dom.js";
import { duration } from "./view.js";

const SHOWN = 50;
const STACKS = 3;

const keyOf = (finding) => JSON.stringify(
  [finding.name, finding.run, finding.rank, finding.loader, finding.worker]);

// The hang that belongs to a finding of now; undefined for other findings.
function hangOf(finding, hangs) {
  const key = keyOf(finding);
  return hangs.find((hang) => hang.ended === null && keyOf(hang.finding) === key);
}

// A hang of which no more will be known. Without any stack they are not for this reader.
const complete = (hang) => hang.trouble !== "" || (hang.processes.length > 0
  && hang.processes.every((seen) => seen.stacks.length === 0 || seen.stacks.length >= STACKS
    || seen.stacks.some((stack) => stack.trouble)));

const mayHang = (finding) => /^(worker_stuck|worker_blocked|worker_stopped|batch_not|pin_memory|rank)/
  .test(finding.name) && finding.name !== "rank_died";

export function wantsHangs(snapshot, hangs) {
  return snapshot.findings.some((finding) => {
    if (!mayHang(finding)) return false;
    const hang = hangOf(finding, hangs);
    return hang === undefined || !complete(hang);
  });
}

// Shows them; returns whether one is critical.
export function showFindings(snapshot, hangs) {
  const { findings, time } = snapshot;
  $("findings").hidden = findings.length === 0;
  sync($("findings-list"), findings.slice(0, SHOWN), keyOf, createFinding, (child, finding) =>
    updateFinding(child, finding, hangOf(finding, hangs), time));
  $("findings-more").hidden = findings.length <= SHOWN;
  setText($("findings-more"), `and ${findings.length - SHOWN} more`);
  return findings.some((finding) => finding.severity === "critical");
}

function createFinding(finding) {
  const node = make("li");
  const head = make("p", "finding-head");
  const sentence = make("span", "finding-sentence");
  const since = make("span", "finding-since");
  head.append(make("span", "finding-name", finding.name), sentence);
  const where = [finding.run, finding.rank && `rank ${finding.rank}`].filter(Boolean).join(" · ");
  const about = make("p", "finding-about");
  about.append(make("span", "", where), since);
  const details = make("details", "stacks");
  const processes = make("div");
  details.append(make("summary", "", "stacks"), processes);
  node.append(head, about, details);
  return { node, sentence, since, details, processes };
}

function updateFinding(view, finding, hang, now) {
  setClass(view.node, `finding ${finding.severity}`);
  setText(view.sentence, finding.sentence);
  const at = new Date(1000 * finding.since).toLocaleTimeString();
  setText(view.since, `since ${at}, ${duration(now - finding.since)} ago`);
  view.details.hidden = hang === undefined || hang.processes.length === 0;
  if (hang === undefined) return;
  sync(view.processes, hang.processes, (seen) => seen.role, () => {
    const node = make("div", "process");
    const title = make("p", "process-title");
    const text = make("pre");
    node.append(title, text);
    return { node, title, text };
  }, (child, seen) => {
    setText(child.title, processText(seen, hang));
    setText(child.text, stackText(seen, hang));
  });
}

function processText(seen, hang) {
  const { state, syscall, wchan } = seen.doing;
  const parts = [seen.role, `pid ${seen.pid}`];
  if (state) parts.push(`state ${state}`);
  if (syscall) parts.push(syscall === "running" ? syscall : `in ${syscall}()`);
  if (wchan) parts.push(`waits in ${wchan}`);
  if (seen.role.startsWith("worker") && hang.fetch_index !== null) {
    parts.push(`sample ${hang.fetch_index}`);
  }
  return parts.join(" · ");
}

const depth = (stack) => stack.threads.reduce((sum, thread) => sum + thread.frames.length, 0);

// The most complete of the samples: one taken while the process runs may lack frames.
function stackText(seen, hang) {
  if (hang.trouble) return hang.trouble;
  if (seen.stacks.length === 0) return "stacks are shown only to who asks from this machine";
  const best = seen.stacks.reduce((one, other) => (depth(other) > depth(one) ? other : one));
  if (best.threads.length === 0) return best.trouble;
  return best.threads.map((thread) => [
    `"${thread.name}" ${thread.os_id}${thread.owns_gil ? " holds the GIL" : ""}`,
    ...thread.frames.map((frame) => `  at ${frame.function} (${frame.file}:${frame.line})`),
  ].join("\n")).join("\n\n");
}
