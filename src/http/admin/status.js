"use strict";

// Polls the status and shows it. The page is built from elements and text, never from markup.

const POLL_MS = 1000;
const POLL_HIDDEN_MS = 15000;
const TIMEOUT_MS = 6000;
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 240;
const HEIGHT = 52;

// The charts: title, lines, the large number (`value`), the format of values (`write`), and the minimum top of the scale (`least`).
const CHARTS = [
  {
    title: "Connected devices",
    lines: [{ key: "connected_devices", ink: "blue" }],
    value: (status) => [count(status.connected_devices), ""],
    write: count,
    least: 4,
  },
  {
    title: "Claims",
    lines: [
      { key: "claims", ink: "blue", name: "claimed" },
      { key: "exhausted", ink: "amber", name: "exhausted" },
      { key: "limited", ink: "plum", name: "limited" },
    ],
    value: (status) => [count(sum(status, "claims", "exhausted", "limited")), "last minute"],
    write: rate,
    least: 1,
  },
  {
    title: "Messages",
    lines: [
      { key: "sends", ink: "blue", name: "sends" },
      { key: "deliveries", ink: "green", name: "deliveries" },
    ],
    value: (status) => [count(status.last_minute.sends), "sent, last minute"],
    write: rate,
    least: 1,
  },
  {
    title: "Sign-ins",
    lines: [{ key: "sign_ins", ink: "blue" }],
    value: (status) => [count(status.last_minute.sign_ins), "last minute"],
    write: rate,
    least: 1,
  },
  {
    title: "Errors",
    lines: [{ key: "errors", ink: "red" }],
    value: (status) => [count(total(status.last_minute.errors)), "last minute"],
    write: rate,
    least: 1,
  },
  {
    title: "Sockets closed",
    lines: [{ key: "closes", ink: "amber" }],
    value: (status) => [count(total(status.last_minute.closes)), "last minute"],
    write: rate,
    least: 1,
  },
  {
    title: "Database latency",
    lines: [{ key: "database_latency_ms", ink: "blue" }],
    value: (status) => [status.database.ok ? milliseconds(status.database.latency_ms) : "no answer", ""],
    write: milliseconds,
    least: 1,
  },
  {
    title: "Memory",
    lines: [{ key: "resident_bytes", ink: "blue" }],
    value: (status) => [bytes(status.memory.resident_bytes), "resident"],
    write: bytes,
    least: 1 << 20,
  },
];

const CLOSE_NAMES = {
  4000: "draining",
  4001: "idle",
  4002: "slow consumer",
  4003: "unavailable",
  4500: "session revoked",
  4501: "session expired",
  4502: "device revoked",
  4503: "displaced",
  4504: "protocol error",
  4505: "frame too large",
  4506: "account deleted",
};
const OTHER_CLOSES = { peer: "closed by the client", lost: "connection lost" };

const STATES = { ready: "Ready", degraded: "Degraded", not_ready: "Not ready" };

// --- Formatting numbers

function count(n) {
  return n.toLocaleString("en");
}

function rate(n) {
  return `${n.toLocaleString("en", { maximumSignificantDigits: 3 })}/s`;
}

function milliseconds(ms) {
  return ms < 10000 ? `${ms.toLocaleString("en", { maximumSignificantDigits: 3 })} ms` : `${count(Math.round(ms / 1000))} s`;
}

function bytes(n) {
  if (n === null) return "unknown";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1000 && unit < units.length - 1) {
    n /= 1024;
    unit += 1;
  }
  return `${n.toLocaleString("en", { maximumFractionDigits: n < 10 ? 1 : 0 })} ${units[unit]}`;
}

function duration(seconds) {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const from = parts.findIndex(([size]) => seconds >= size);
  if (from < 0) return "0 s";
  return parts
    .slice(from, from + 2)
    .map(([size, unit], index) => [Math.floor((index ? seconds % parts[from][0] : seconds) / size), unit])
    .filter(([n]) => n > 0)
    .map(([n, unit]) => `${n} ${unit}`)
    .join(" ");
}

function total(counts) {
  return Object.values(counts).reduce((sum, n) => sum + n, 0);
}

function sum(status, ...keys) {
  return keys.reduce((sum, key) => sum + status.last_minute[key], 0);
}

// --- Elements

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") made.className = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function shape(name, properties = {}) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(properties)) made.setAttribute(key, value);
  return made;
}

// Sets the text only if it changes, so that a selection in it is kept.
function write(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

function byId(id) {
  return document.getElementById(id);
}

// --- Charts

// The next round number.
function roundUp(n) {
  const scale = 10 ** Math.floor(Math.log10(n));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * scale).find((step) => step >= n * 0.999999);
}

class Chart {
  constructor(spec) {
    this.spec = spec;
    this.value = document.createTextNode("–");
    this.unit = element("span", { class: "quiet" });
    this.title = shape("title");
    this.svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    this.svg.append(this.title, shape("path", { class: "frame", d: `M0 .5H${WIDTH}M0 ${HEIGHT - 0.5}H${WIDTH}` }));
    this.lines = spec.lines.map((line) => {
      const area = shape("path", { class: `area ${line.ink}` });
      const stroke = shape("path", { class: `stroke ${line.ink}` });
      if (spec.lines.length === 1) this.svg.append(area);
      this.svg.append(stroke);
      return { ...line, area, stroke, figure: element("b", {}, "–") };
    });
    this.mark = shape("path", { class: "mark" });
    this.svg.append(this.mark);
    this.top = element("span", {}, "–");
    this.moment = element("span");
    const named = this.lines.filter((line) => line.name);
    const legend = named.map((line) => element("span", { class: line.ink }, `${line.name} `, line.figure));
    this.root = element(
      "article",
      { class: "chart" },
      element("h3", {}, spec.title),
      element("p", { class: "value" }, this.value, " ", this.unit),
      ...(legend.length ? [element("p", { class: "legend" }, ...legend)] : []),
      element("div", { class: "plot" }, this.svg, element("p", { class: "axis" }, this.moment, this.top)),
    );
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => {
      this.pointed = undefined;
      this.draw();
    });
  }

  show(status) {
    const [value, unit] = this.spec.value(status);
    if (this.value.data !== value) this.value.data = value;
    write(this.unit, unit);
    for (const line of this.lines) {
      if (line.name) write(line.figure, count(status.last_minute[line.key]));
    }
    this.history = status.history;
    this.draw();
  }

  // Stores the position of the pointer, as the number of steps before now.
  point(event) {
    if (!this.history) return;
    const box = this.svg.getBoundingClientRect();
    const { length } = this.history;
    const behind = Math.round(((box.right - event.clientX) / box.width) * (length - 1));
    this.pointed = Math.min(Math.max(behind, 0), length - 1);
    this.draw();
  }

  draw() {
    if (!this.history) return;
    const { length, step_s } = this.history;
    const all = this.lines.flatMap((line) => this.history[line.key]).filter((n) => n !== null);
    const highest = Math.max(0, ...all);
    const top = roundUp(Math.max(highest, this.spec.least));
    const x = (index, values) => WIDTH - ((values.length - 1 - index) / (length - 1)) * WIDTH;
    const y = (n) => HEIGHT - 1 - (n / top) * (HEIGHT - 4);
    for (const line of this.lines) {
      const values = this.history[line.key];
      const runs = [];
      let run;
      values.forEach((n, index) => {
        if (n === null) run = undefined;
        else if (run) run.push([x(index, values), y(n)]);
        else runs.push((run = [[x(index, values), y(n)]]));
      });
      const path = (points) => points.map(([px, py]) => `${px.toFixed(1)} ${py.toFixed(1)}`).join("L");
      line.stroke.setAttribute("d", runs.map((points) => `M${path(points)}`).join(""));
      const floor = HEIGHT - 1;
      line.area.setAttribute("d", runs.map((p) => `M${p[0][0]} ${floor}L${path(p)}V${floor}Z`).join(""));
    }
    const { write: figure, title } = this.spec;
    write(this.title, `${title}, last ten minutes: highest ${figure(highest)}`);
    if (this.pointed === undefined) {
      this.mark.setAttribute("d", "");
      write(this.moment, `${duration(length * step_s)} ago`);
      write(this.top, `peak ${figure(highest)}`);
      return;
    }
    const at = WIDTH - (this.pointed / (length - 1)) * WIDTH;
    this.mark.setAttribute("d", `M${at} 0V${HEIGHT}`);
    write(this.moment, this.pointed ? `${duration(this.pointed * step_s)} ago` : "now");
    const figures = this.lines.map((line) => this.history[line.key].at(-1 - this.pointed));
    write(this.top, figures.map((n) => (n === undefined || n === null ? "–" : figure(n))).join(" · "));
  }
}

// --- Tables

function rows(table, cells) {
  const body = byId(table);
  const wanted = JSON.stringify(cells);
  if (body.dataset.shown === wanted) return;
  body.dataset.shown = wanted;
  body.replaceChildren(
    ...cells.map(([name, figure, kind]) => {
      return element("tr", {}, element("th", { scope: "row" }, name), element("td", { class: kind ?? "" }, figure));
    }),
  );
}

function parts(status) {
  const { database, bus, memory } = status;
  const kinds = { sqlite: "SQLite", postgres: "PostgreSQL", local: "single node", redis: "Redis" };
  const { open, idle, limit } = database.pool;
  const cells = [
    [`Database, ${kinds[database.kind] ?? database.kind}`, database.ok ? "answers" : "no answer", database.ok ? "" : "bad"],
    ["Database connections", `${count(open - idle)} busy, ${count(idle)} idle, at most ${count(limit)}`],
    [`Bus, ${kinds[bus.kind] ?? bus.kind}`, bus.ok ? "up" : "down", bus.ok ? "" : "bad"],
  ];
  if (bus.kind !== "local") {
    cells.push(["Last bus probe received", bus.probe_age_ms === null ? "none yet" : `${duration(bus.probe_age_ms / 1000)} ago`]);
  }
  const { waiting, bytes: content } = status.mailbox;
  cells.push(["Mail in mailboxes", waiting === null ? "not measured yet" : `${count(waiting)} envelopes, ${bytes(content)}`]);
  cells.push(["Memory budget", `${bytes(memory.budget_used_bytes)} of ${bytes(memory.budget_limit_bytes)}`]);
  return cells;
}

function closeName(code) {
  return OTHER_CLOSES[code] ?? `${code} ${CLOSE_NAMES[code] ?? ""}`;
}

function counted(counts, name) {
  const sorted = Object.entries(counts).sort((a, b) => b[1] - a[1]);
  return sorted.length ? sorted.map(([key, n]) => [name(key), count(n)]) : [["None", ""]];
}

// --- Polling

const charts = CHARTS.map((spec) => new Chart(spec));
let lastResponse;
let trouble = "";

function show(status) {
  for (const chart of charts) chart.show(status);
  write(byId("version"), status.version);
  write(byId("uptime"), duration(status.uptime_s));
  write(byId("node"), status.node_id.slice(0, 8));
  byId("node").title = status.node_id;
  rows("parts", parts(status));
  rows("errors", counted(status.last_minute.errors, (code) => code));
  rows("closes", counted(status.last_minute.closes, closeName));
  const reasons = status.reasons.length ? `: ${status.reasons.join(", ")}` : "";
  state(status.status, `${STATES[status.status] ?? status.status}${reasons}`);
}

function state(kind, text) {
  const shown = byId("state");
  shown.dataset.state = kind;
  write(shown, text);
  document.title = `Sealwire: ${text}`;
}

async function ask() {
  // The page's own address may contain a user name and password, which fetch does not accept.
  const response = await fetch(new URL("/status?history", location.origin), {
    headers: { Accept: "application/json" },
    cache: "no-store",
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
  if (!response.ok) throw new Error(response.status === 401 ? "the token is no longer accepted" : `the server answered ${response.status}`);
  return response.json();
}

function stale() {
  document.documentElement.toggleAttribute("data-stale", true);
  state("gone", trouble ? `No answer: ${trouble}` : "No answer");
  // Kept out of the state, because screen readers announce every change of that.
  if (lastResponse !== undefined) {
    write(byId("silence"), `for ${duration(Math.round((performance.now() - lastResponse) / 1000))}`);
  }
}

let asking = false;
let timer;

async function poll() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  try {
    const status = await ask();
    lastResponse = performance.now();
    trouble = "";
    document.documentElement.toggleAttribute("data-stale", false);
    write(byId("silence"), "");
    show(status);
  } catch (error) {
    if (error.name === "TypeError") trouble = "the server cannot be reached";
    else trouble = error.name === "TimeoutError" ? "" : error.message;
    stale();
  }
  asking = false;
  timer = setTimeout(poll, document.hidden ? POLL_HIDDEN_MS : POLL_MS);
}

byId("charts").append(...charts.map((chart) => chart.root));
document.addEventListener("visibilitychange", () => document.hidden || poll());
// Marks the figures as stale if a request hangs.
setInterval(() => {
  if (lastResponse !== undefined && !document.hidden && performance.now() - lastResponse > 4 * POLL_MS) stale();
}, 1000);
poll();
