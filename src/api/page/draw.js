// Elements, figures and pictures. Text reaches the page as text nodes only: nothing that a table, an error
// or a region is called can become markup.

const SVG = "http://www.w3.org/2000/svg";

export function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  for (const child of children) {
    if (child !== null && child !== undefined) node.append(child);
  }
  return node;
}

// ---- figures ----

const known = (value, told) => (value === null || value === undefined ? "unknown" : told(value));

export const seconds = (value) =>
  known(value, (s) => {
    if (s < 0.9995) return `${Math.round(s * 1000)} ms`;
    if (s < 60) return `${s.toFixed(1)} s`;
    if (s < 7200) return `${Math.round(s / 60)} min`;
    if (s < 172800) return `${(s / 3600).toFixed(1)} h`;
    return `${(s / 86400).toFixed(1)} d`;
  });

export const bytes = (value) =>
  known(value, (b) => {
    const units = [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]];
    const unit = units.find(([size]) => b >= size);
    return unit ? `${(b / unit[0]).toFixed(1)} ${unit[1]}` : `${b} B`;
  });

export const count = (value) => known(value, (n) => Math.round(n).toLocaleString("en"));

export const rate = (value) => known(value, (n) => `${n < 9.95 ? n.toFixed(1) : count(n)}/s`);

export const badness = (state) =>
  ({ running: "good", standby: "good", starting: "look", retrying: "look" })[state] ?? "bad";

// ---- pictures ----

// The regions, and the links that come in here: side by side where there is room, else one above the other.
export function regions(here, streams, width) {
  const links = streams.filter((stream) => stream.link);
  const source = streams.find((stream) => stream.source);
  const tall = width < 560;
  const box = { width: Math.min(220, tall ? width : width / 3), height: 44 };
  const step = tall ? 64 : 76;
  const rows = Math.max(links.length, 1);
  const below = source ? 26 : 0;
  const height = tall ? rows * step + 64 + below : rows * step + below;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
  picture.append(svg("title", {}, `Links into ${here}`));
  const home = tall
    ? { x: width - box.width, y: height - box.height - below }
    : { x: width - box.width, y: (rows * step - box.height) / 2 };
  links.forEach((stream, row) => {
    const kind = badness(stream.state);
    const from = { x: 0, y: row * step + (tall ? 0 : (step - box.height) / 2) };
    const label = `${seconds(stream.link.lag_seconds)} behind, ${stream.state}`;
    if (tall) {
      // Down the right side, into the roof of this region.
      const lane = width - 14 - (row * (box.width - 40)) / rows;
      const y = from.y + box.height / 2;
      const start = Math.min(box.width * 0.62, lane - 12);
      picture.append(way(kind, `M ${start} ${y} H ${lane - 8} Q ${lane} ${y} ${lane} ${y + 8} V ${home.y - 3}`));
      picture.append(tip(kind, lane, home.y - 2, 0, 1));
      picture.append(region(from, { ...box, width: start }, stream.from, false));
      picture.append(words(2, from.y + box.height + 14, label, "soft"));
    } else {
      const start = { x: box.width, y: from.y + box.height / 2 };
      const end = { x: home.x - 3, y: home.y + (box.height * (row + 1)) / (rows + 1) };
      const middle = (start.x + end.x) / 2;
      picture.append(way(kind, `M ${start.x} ${start.y} C ${middle} ${start.y} ${middle} ${end.y} ${end.x} ${end.y}`));
      picture.append(tip(kind, end.x, end.y, 1, 0));
      picture.append(region(from, box, stream.from, false));
      picture.append(words(start.x + 10, start.y - 8, label, "soft"));
    }
  });
  picture.append(region(home, box, here, true));
  if (source) {
    const text = `${rate(source.changes_per_second)} out to its Kafka, ${source.state}`;
    picture.append(words(home.x, home.y + box.height + 18, text, "soft"));
  }
  return picture;
}

function region(at, box, name, here) {
  const middle = at.y + box.height / 2 + 5;
  const most = Math.floor((box.width - 20) / 7.5);
  const shown = name.length > most ? `${name.slice(0, most - 1)}…` : name;
  return svg(
    "g",
    {},
    svg("title", {}, name),
    svg("rect", { class: here ? "frame here" : "frame", x: at.x, y: at.y, width: box.width, height: box.height, rx: 8 }),
    svg("text", { x: at.x + 10, y: middle }, shown),
  );
}

const words = (x, y, text, kind) => svg("text", { x, y, class: kind }, text);
const way = (kind, d) => svg("path", { class: `way ${kind}`, d });

function tip(kind, x, y, dx, dy) {
  const d = dx
    ? `M ${x - 8} ${y - 6} L ${x} ${y} L ${x - 8} ${y + 6}`
    : `M ${x - 6} ${y - 8 * dy} L ${x} ${y} L ${x + 6} ${y - 8 * dy}`;
  return svg("path", { class: `tip ${kind}`, d });
}

// The lag of the last minutes. What is unknown is a gap.
export function line(history, width, span) {
  const height = 96;
  const plot = { left: 52, right: width - 4, top: 8, bottom: height - 20 };
  const most = history.reduce((most, [, lag]) => Math.max(most, lag ?? 0), 0);
  const top = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600].find((top) => top >= most) ?? most;
  const x = (ago) => plot.right - (Math.min(ago, span) / span) * (plot.right - plot.left);
  const y = (lag) => plot.bottom - (lag / top) * (plot.bottom - plot.top);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
  picture.append(svg("title", {}, `Lag of the last ${seconds(span)}, at most ${seconds(most)}`));
  for (const share of [0, 0.5, 1]) {
    const at = y(top * share);
    picture.append(svg("path", { class: "grid", d: `M ${plot.left} ${at} H ${plot.right}` }));
    picture.append(svg("text", { class: "soft", x: plot.left - 6, y: at + 4, "text-anchor": "end" }, seconds(top * share)));
  }
  picture.append(words(plot.left, height - 4, `${seconds(span)} ago`, "soft"));
  picture.append(svg("text", { class: "soft", x: plot.right, y: height - 4, "text-anchor": "end" }, "now"));
  for (const run of runs(history)) {
    const points = run.map(([ago, lag]) => `${x(ago).toFixed(1)} ${y(lag).toFixed(1)}`);
    const ends = [x(run[0][0]), x(run[run.length - 1][0])].map((at) => at.toFixed(1));
    picture.append(svg("path", { class: "under", d: `M ${ends[0]} ${plot.bottom} L ${points.join(" L ")} L ${ends[1]} ${plot.bottom} Z` }));
    picture.append(svg("path", { class: "lag", d: `M ${points.join(" L ")}` }));
  }
  return picture;
}

// The stretches in which the lag was known.
function runs(history) {
  const runs = [];
  let run = null;
  for (const pair of history) {
    if (pair[1] === null) run = null;
    else if (run) run.push(pair);
    else runs.push((run = [pair]));
  }
  return runs;
}

// One bar of parts, each `{ share, kind, name }` and shares of 1 altogether at most.
export function bar(parts, width, name) {
  const height = 12;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
  picture.append(svg("title", {}, name));
  picture.append(svg("rect", { class: "empty", x: 0, y: 0, width, height, rx: 3 }));
  let x = 0;
  for (const part of parts) {
    const size = Math.max(0, Math.min(1, part.share)) * width;
    picture.append(svg("rect", { class: `full ${part.kind}`, x, y: 0, width: size, height, rx: 3 }, svg("title", {}, part.name ?? name)));
    x += size;
  }
  return picture;
}
