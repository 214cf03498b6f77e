// Asks the daemon every other second how it stands, and shows that: what needs somebody first.

import { badness, bar, bytes, count, element, line, rate, regions, seconds } from "./draw.js";

const EVERY_MS = 2000;
// A daemon answers within milliseconds, or something is wrong that is to be shown.
const TIMEOUT_MS = 5000;
// As far back as the daemon remembers.
const SPAN_SECONDS = 300;

const at = (id) => document.getElementById(id);
let answered = null;
let last = null;

async function look() {
  try {
    const answer = await fetch("status", { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
    if (!answer.ok) throw new Error(`it answered ${answer.status}`);
    const status = await answer.json();
    answered = Date.now();
    at("lost").hidden = true;
    at("main").classList.remove("stale");
    // Whoever is marking a remedy to copy it keeps it under the hand.
    if (getSelection().isCollapsed) show((last = status));
  } catch (error) {
    const since = answered === null ? "yet" : `for ${seconds((Date.now() - answered) / 1000)}; what stands below is old`;
    at("lost").textContent = `The daemon has not answered ${since} (${error.message}).`;
    at("lost").hidden = false;
    at("main").classList.toggle("stale", answered !== null);
  }
  setTimeout(look, EVERY_MS);
}

function show(status) {
  document.title = `${worst(status)} · ${status.region} · Landfall`;
  at("region").textContent = status.region;
  at("ready").textContent = `${status.ready ? "ready" : "not ready"} · ${status.mode} · database ${status.database}`;
  at("ready").className = `badge ${status.ready ? "good" : "bad"}`;
  at("asked").textContent = `as of ${new Date(answered).toLocaleTimeString()}`;
  at("troubles").replaceChildren(...troubles(status));
  at("picture").replaceChildren(regions(status.region, status.streams, inner(at("picture"))));
  at("streams").replaceChildren(...status.streams.map((stream) => card(stream, status.region)));
  // Only now is it known how wide a card is.
  for (const [index, stream] of status.streams.entries()) {
    const place = at("streams").children[index];
    place.append(...pictures(stream, inner(place)));
  }
}

function inner(node) {
  const style = getComputedStyle(node);
  return Math.max(200, node.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight));
}

function worst(status) {
  const states = status.streams.map((stream) => stream.state);
  const found = ["halted", "retrying", "starting"].find((state) => states.includes(state));
  return found ?? (status.ready ? "running" : "not ready");
}

// ---- what needs somebody ----

function troubles(status) {
  const found = [];
  if (status.not_ready_because) {
    found.push(trouble("bad", "Not ready: users should not be sent here", status.not_ready_because, null));
  }
  for (const stream of status.streams) {
    if (stream.code) {
      const again = stream.attempt ? `, attempt ${stream.attempt}` : "";
      const title = `${name(stream)} ${stream.state} ${stream.code}${again}`;
      found.push(trouble(badness(stream.state), title, stream.message, stream.remedy));
    } else if (stream.message) {
      found.push(trouble("look", `${name(stream)} ${stream.state}`, stream.message, null));
    }
    const parked = stream.link?.parked ?? 0;
    if (parked > 0) {
      const what = parked === 1 ? "1 transaction" : `${parked} transactions`;
      const told = "The database refused them, or they wait behind one that it did. Their rows differ from the source's.";
      found.push(trouble("look", `${name(stream)} has parked ${what}`, told, "`landfall parked` lists them"));
    }
    for (const warning of stream.warnings) found.push(trouble("look", `${name(stream)} warns`, warning, null));
  }
  return found;
}

function trouble(kind, title, message, remedy) {
  return element(
    "article",
    { class: `trouble ${kind}` },
    element("h2", {}, title),
    message ? element("p", {}, message) : null,
    remedy ? element("p", {}, element("b", {}, "Next: "), remedy) : null,
  );
}

const name = (stream) => `${stream.role === "source" ? "Source" : "Link from"} ${stream.from}/${stream.stream}`;

// ---- one card for each stream ----

function card(stream, here) {
  const title = stream.link ? `${stream.from} → ${here}` : `${stream.from} → its Kafka`;
  return element(
    "article",
    { class: "card" },
    element(
      "div",
      { class: "title" },
      element("h2", {}, title),
      element("span", { class: `badge ${badness(stream.state)}` }, `${stream.state} for ${seconds(stream.state_seconds)}`),
    ),
    figures(stream.link ? ofLink(stream) : ofSource(stream)),
  );
}

const ofLink = (stream) => [
  ["lag now", seconds(stream.link.lag_seconds)],
  ["p99 of 5 min", seconds(stream.link.lag_p99_seconds)],
  ["changes", rate(stream.changes_per_second)],
  ["records waiting", count(stream.link.offset_lag)],
  ["parked", count(stream.link.parked)],
  ...(stream.link.transaction_open ? [["large transaction", "open"]] : []),
];

const ofSource = (stream) => [
  ["changes", rate(stream.changes_per_second)],
  ["last record kept", ago(stream.source.last_append_seconds_ago)],
  ["confirmed up to", stream.source.confirmed ?? "unknown"],
];

const ago = (value) => (value === null ? "unknown" : `${seconds(value)} ago`);

function figures(pairs) {
  const list = element("dl");
  for (const [term, figure] of pairs) list.append(element("div", {}, element("dt", {}, term), element("dd", {}, figure)));
  return list;
}

// The lines and bars below the figures, for a card of this width.
function pictures(stream, width) {
  const drawn = [];
  const add = (title, picture) => drawn.push(element("h3", {}, title), ...(picture ? [picture] : []));
  const ofStages = (what) => {
    const whole = stream.stages.reduce((sum, stage) => sum + stage.seconds, 0);
    if (whole <= 0) return;
    const told = stream.stages.map((stage) => `${stage.stage} ${seconds(stage.seconds)}`).join(", ");
    const parts = stream.stages.map((stage, index) => ({ share: stage.seconds / whole, kind: `stage${index % 4}`, name: stage.stage }));
    add(`where ${what} spent its time: ${told}`, bar(parts, width, told));
  };
  if (stream.link) {
    const link = stream.link;
    add("lag", line(link.lag_history, width, SPAN_SECONDS));
    ofStages("a heartbeat");
    if (link.headroom_seconds === null) {
      add("buffer: head-room unknown", null);
    } else {
      const left = link.retention_seconds ? link.headroom_seconds / link.retention_seconds : 1;
      const told = `buffer: ${seconds(Math.max(0, link.headroom_seconds))} of ${seconds(link.retention_seconds)} left`;
      add(told, bar([{ share: left, kind: left > 0.5 ? "good" : left > 0.25 ? "look" : "bad" }], width, told));
    }
  } else if (stream.source) {
    const source = stream.source;
    ofStages("a transaction");
    if (source.slot_safe_bytes === null) {
      add(`slot: keeps ${bytes(source.slot_retained_bytes)} of log; the server sets no limit to it`, null);
    } else {
      const used = source.slot_retained_bytes / Math.max(1, source.slot_retained_bytes + source.slot_safe_bytes);
      const when = source.slot_seconds_to_invalidation;
      const told =
        `slot: keeps ${bytes(source.slot_retained_bytes)} of log, ${bytes(source.slot_safe_bytes)} left` +
        (when === null ? "" : `, lost in ${seconds(when)} at this rate`);
      add(told, bar([{ share: used, kind: used < 0.5 ? "good" : used < 0.75 ? "look" : "bad" }], width, told));
    }
    const fill = source.queue_fill_ratio;
    const told = `queue to Kafka: ${fill === null ? "unknown" : `${Math.round(fill * 100)} % full`}`;
    add(told, fill === null ? null : bar([{ share: fill, kind: fill < 0.8 ? "good" : "look" }], width, told));
  }
  if (stream.last_error && stream.last_error.code !== stream.code) {
    const error = stream.last_error;
    drawn.push(element("h3", {}, `last error, ${seconds(error.seconds_ago)} ago: ${error.code} ${error.message}`));
  }
  return drawn;
}

addEventListener("resize", () => last && show(last));
look();
