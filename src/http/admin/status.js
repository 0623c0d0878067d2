"use strict";

// Polls the status and shows it. The page is built from elements and text, never from markup.

const POLL_MS = 1000;
const POLL_HIDDEN_MS = 15000;
const TIMEOUT_MS = 6000;
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 240;
const HEIGHT = 52;

// The charts, in groups of one kind of unit. `write` formats a group's numbers, `unit` follows them (unless the group's title names it), and
// `least` is the minimum top of the scale. With `per: "second"` a figure is the mean rate of the last minute. With `per: "minute"` it is the
// count of the last minute, and at every moment the line has the count of the minute before, so that single events are whole numbers.
//
// A line has its `key` in the history, its colour (`ink`), what its figure means (`name`), the figure if it is not the count under the
// same key (`now`), the alert about it, and the value `above` which it needs attention.
const GROUPS = [
  {
    title: "Now",
    write: count,
    unit: "",
    least: 4,
    charts: [
      { title: "Connected devices", lines: [{ key: "connected_devices", ink: "blue", name: "on this node", now: (s) => s.connected_devices }] },
      { title: "Waiting envelopes", lines: [{ key: "mailbox_waiting", ink: "blue", name: "in all mailboxes", now: (s) => s.mailbox.waiting }] },
    ],
  },
  {
    title: "Count in the last minute",
    write: count,
    unit: "",
    least: 4,
    per: "minute",
    charts: [
      {
        title: "Sign-in",
        lines: [
          { key: "mails_sent", ink: "blue", name: "mails sent" },
          { key: "mails_failed", ink: "fault", name: "not sent", above: 0, alert: "MailFails" },
          { key: "sign_ins", ink: "teal", name: "signed in" },
        ],
      },
      {
        title: "Error responses",
        lines: [
          { key: "refusals", ink: "blue", name: "refusals", now: (s) => total(s.last_minute.errors) - serverErrors(s) },
          { key: "server_errors", ink: "fault", name: "server errors", above: 6, alert: "ServerErrors", now: serverErrors },
        ],
      },
      { title: "Connections", lines: [{ key: "connections_refused", ink: "blue", name: "refused by a limit", alert: "ConnectionsRefused", now: (s) => total(s.last_minute.connections_refused) }] },
      { title: "Sockets", lines: [{ key: "closes", ink: "blue", name: "closed by either side", alert: "SlowConsumers", now: (s) => total(s.last_minute.closes) }] },
    ],
  },
  {
    title: "Per second, mean of the last minute",
    write: decimal,
    unit: "",
    least: 1,
    per: "second",
    charts: [
      {
        title: "Envelopes",
        lines: [
          { key: "envelopes", ink: "blue", name: "accepted" },
          { key: "deliveries", ink: "teal", name: "delivered" },
        ],
      },
      {
        title: "Claimed bundles",
        lines: [
          { key: "claims", ink: "blue", name: "claimed" },
          { key: "exhausted", ink: "teal", name: "exhausted" },
          { key: "limited", ink: "plum", name: "limited" },
        ],
      },
    ],
  },
  {
    title: "Response times in milliseconds",
    write: decimal,
    unit: " ms",
    least: 1,
    charts: [
      { title: "Requests", lines: [{ key: "op_p99_ms", ink: "blue", name: "99 % answered within", alert: "OpsSlow", now: (s) => s.last_minute.op_p99_ms }] },
      { title: "Deliveries", lines: [{ key: "delivery_p99_ms", ink: "blue", name: "99 % delivered within", alert: "DeliverySlow", now: (s) => s.last_minute.delivery_p99_ms }] },
      { title: "Database", lines: [{ key: "database_latency_ms", ink: "blue", name: "last probe answered in", alert: "DatabaseAway", now: (s) => s.database.latency_ms }] },
    ],
  },
  {
    title: "Memory, now",
    write: mebibytes,
    unit: " MiB",
    least: 1 << 20,
    charts: [{ title: "Process", lines: [{ key: "resident_bytes", ink: "blue", name: "resident", now: (s) => s.memory.resident_bytes }] }],
  },
];

const CLOSE_NAMES = {
  4000: "draining",
  4001: "idle",
  4002: "slow consumer",
  4003: "unavailable",
  4004: "rate limited",
  4500: "session revoked",
  4501: "session expired",
  4502: "device revoked",
  4503: "displaced",
  4504: "protocol error",
  4505: "frame too large",
  4506: "account deleted",
  4507: "unauthorized",
};
const OTHER_CLOSES = { peer: "closed by the client", lost: "connection lost" };

const STATES = { ready: "Ready", degraded: "Degraded", not_ready: "Not ready" };

const SEVERITIES = { none: 0, ticket: 1, page: 2 };

// --- Formatting numbers

function count(n) {
  return Math.round(n).toLocaleString("en");
}

// At most three digits, and at most two decimals.
function decimal(n) {
  const digits = n === 0 ? 0 : n < 10 ? 2 : n < 100 ? 1 : 0;
  return n.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function mebibytes(n) {
  return count(n / (1 << 20));
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

function serverErrors(status) {
  const { internal = 0, unavailable = 0 } = status.last_minute.errors;
  return internal + unavailable;
}

// The severity of each alert that holds, by its name.
function severities({ alerts }) {
  return Object.fromEntries(alerts.map(({ name, severity }) => [name, severity]));
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

// The moment that is pointed at, in all charts: the number of steps before now.
let pointed;

class Chart {
  constructor(group, spec) {
    this.group = group;
    this.spec = spec;
    this.title = shape("title");
    this.svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    this.svg.append(this.title, shape("path", { class: "frame", d: `M0 .5H${WIDTH}M0 ${HEIGHT - 0.5}H${WIDTH}` }));
    this.lines = spec.lines.map((line) => {
      const area = shape("path", { class: `area ${line.ink}` });
      const stroke = shape("path", { class: `stroke ${line.ink}` });
      if (spec.lines.length === 1) this.svg.append(area);
      const number = document.createTextNode("–");
      const unit = element("small", {}, group.unit.trim());
      const figure = element("p", { class: `figure ${line.ink}` }, element("b", {}, number, unit), element("span", {}, line.name));
      return { ...line, area, stroke, number, unit, figure };
    });
    // The first line is the main one, so it is drawn on top.
    this.svg.append(...this.lines.map((line) => line.stroke).reverse());
    this.mark = shape("path", { class: "mark" });
    this.svg.append(this.mark);
    this.before = element("div", { class: "hatch", hidden: "" });
    this.left = element("span");
    this.right = element("span", {}, "–");
    this.root = element(
      "article",
      { class: "chart" },
      element("h4", {}, spec.title),
      element("div", { class: this.lines.length > 1 ? "figures several" : "figures" }, ...this.lines.map((line) => line.figure)),
      element("div", { class: "plot" }, this.before, this.svg),
      element("p", { class: "axis" }, this.left, this.right),
    );
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => point(undefined));
  }

  show(status) {
    const { history } = status;
    const firing = severities(status);
    for (const line of this.lines) {
      line.current = this.figure(line, status);
      line.values = this.values(line, history);
      const text = line.current === null ? "–" : this.group.write(line.current);
      if (line.number.data !== text) line.number.data = text;
      line.unit.hidden = line.current === null;
      line.figure.dataset.severity = firing[line.alert] ?? "";
      for (const part of [line.stroke, line.figure]) part.classList.toggle("seen", line.values.some((n) => n > line.above));
    }
    this.history = history;
    this.draw();
  }

  figure({ key, now }, status) {
    if (now) return now(status);
    const { seconds, [key]: n } = status.last_minute;
    return this.group.per === "second" ? n / Math.max(seconds, 1) : n;
  }

  // The values of a line, oldest first.
  values({ key, current }, history) {
    if (this.group.per !== "minute") return history[key];
    const { minute } = history;
    const counts = key === "refusals" ? minute.errors.map((n, index) => n - minute.server_errors[index]) : [...minute[key]];
    // The last interval may be shorter, so that it is not the minute of the figure.
    if (counts.length) counts[counts.length - 1] = current;
    return counts;
  }

  point(event) {
    if (!this.history) return;
    const box = this.svg.getBoundingClientRect();
    const steps = this.history.length - 1;
    const behind = Math.round(((box.right - event.clientX) / box.width) * steps);
    point(Math.min(Math.max(behind, 0), steps));
  }

  draw() {
    if (!this.history) return;
    const { length, step_s } = this.history;
    const { write: format, unit, least } = this.group;
    const all = this.lines.flatMap((line) => line.values).filter((n) => n !== null);
    const highest = Math.max(0, ...all);
    const top = roundUp(Math.max(highest, least));
    const x = (index, values) => WIDTH - ((values.length - 1 - index) / (length - 1)) * WIDTH;
    const y = (n) => HEIGHT - 1 - (n / top) * (HEIGHT - 4);
    for (const { values, stroke, area } of this.lines) {
      const runs = [];
      let run;
      values.forEach((n, index) => {
        if (n === null) run = undefined;
        else if (run) run.push([x(index, values), y(n)]);
        else runs.push((run = [[x(index, values), y(n)]]));
      });
      const path = (points) => points.map(([px, py]) => `${px.toFixed(1)} ${py.toFixed(1)}`).join("L");
      // A value without neighbours is a dot.
      stroke.setAttribute("d", runs.map((points) => `M${path(points)}${points.length === 1 ? "h.1" : ""}`).join(""));
      const floor = HEIGHT - 1;
      area.setAttribute("d", runs.map((p) => `M${p[0][0]} ${floor}L${path(p)}V${floor}Z`).join(""));
    }
    const recorded = this.lines[0].values.length;
    this.before.hidden = recorded >= length;
    this.before.style.width = `${((length - recorded) / (length - 1)) * 100}%`;
    const peak = `${format(highest)}${unit}`;
    const began = recorded < length ? `; before ${duration(recorded * step_s)} ago this node was not started` : "";
    write(this.title, `${this.spec.title}, last ten minutes: highest ${peak}${began}`);
    if (pointed === undefined) {
      this.mark.setAttribute("d", "");
      write(this.left, ago(length * step_s));
      write(this.right, `peak ${format(highest)}`);
      return;
    }
    const at = WIDTH - (pointed / (length - 1)) * WIDTH;
    this.mark.setAttribute("d", `M${at.toFixed(1)} 0V${HEIGHT}`);
    write(this.left, pointed === 0 ? "now" : `${Math.floor((pointed * step_s) / 60)}:${String((pointed * step_s) % 60).padStart(2, "0")} ago`);
    const figures = this.lines.map((line) => line.values.at(-1 - pointed) ?? null);
    write(this.right, figures.map((n) => (n === null ? "–" : format(n))).join(" · "));
  }
}

function ago(seconds) {
  return seconds === 0 ? "now" : `${duration(seconds)} ago`;
}

// Shows a moment in all charts; `undefined` shows the peaks again.
function point(steps) {
  if (pointed === steps) return;
  pointed = steps;
  const text = ago((steps ?? 0) * (charts[0].history?.step_s ?? 0));
  byId("moment").value = -(steps ?? 0);
  byId("moment").setAttribute("aria-valuetext", text);
  write(byId("moment-text"), text);
  for (const chart of charts) chart.draw();
}

// --- Tables

// Shows rows of name, figure, and the severity if something is wrong.
function rows(table, cells) {
  const body = byId(table);
  const wanted = JSON.stringify(cells);
  if (body.dataset.shown === wanted) return;
  body.dataset.shown = wanted;
  body.replaceChildren(
    ...cells.map(([name, figure, severity]) => {
      return element("tr", { "data-severity": severity ?? "" }, element("th", { scope: "row" }, name), element("td", {}, figure));
    }),
  );
}

function parts(status) {
  const { database, bus, mailbox } = status;
  const firing = severities(status);
  const kinds = { sqlite: "SQLite", postgres: "PostgreSQL", local: "none, single node", redis: "Redis" };
  const kind = ({ kind }) => kinds[kind] ?? kind;
  const cells = [
    ["Database", `${kind(database)}, ${database.ok ? "answers" : "no answer"}`, firing.DatabaseAway],
    ["Bus", bus.kind === "local" ? kind(bus) : `${kind(bus)}, ${bus.ok ? "up" : "down"}`, firing.BusDown],
  ];
  if (bus.kind !== "local") {
    cells.push(["Last bus probe received", bus.probe_age_ms === null ? "none yet" : `${duration(bus.probe_age_ms / 1000)} ago`]);
  }
  cells.push(["Content in all mailboxes", mailbox.bytes === null ? "not measured yet" : bytes(mailbox.bytes)]);
  return cells;
}

// Name, used, limit, the format, the alert that is about it, and the unit.
function capacity({ sockets, http_connections, files, database, memory }) {
  return [
    ["Sockets", sockets.open, sockets.limit, count, "NodeNearlyFull"],
    ["Other connections", http_connections.open, http_connections.limit, count, "NodeNearlyFull"],
    ["Open files", files.open, files.limit, count, "NodeNearlyFull"],
    ["Database connections", database.pool.open - database.pool.idle, database.pool.limit, count],
    ["Memory budget in", memory.inbound_used_bytes, memory.inbound_limit_bytes, mebibytes, "MemoryBudget", " MiB"],
    ["Memory budget out", memory.outbound_used_bytes, memory.outbound_limit_bytes, mebibytes, "MemoryBudget", " MiB"],
  ].filter(([, used, limit]) => used !== null && limit !== null);
}

const meters = new Map();

// The same rows stay, so that only what changes is drawn.
function showCapacity(status) {
  const firing = severities(status);
  for (const [name, used, limit, format, alert, unit = ""] of capacity(status)) {
    if (!meters.has(name)) {
      const row = { level: element("i"), figure: element("td") };
      row.root = element("tr", {}, element("th", { scope: "row" }, name), element("td", { "aria-hidden": "true" }, element("span", { class: "meter" }, row.level)), row.figure);
      meters.set(name, row);
      byId("capacity").append(row.root);
    }
    const { root, level, figure } = meters.get(name);
    level.style.width = `${Math.min(100, (used / Math.max(limit, 1)) * 100)}%`;
    write(figure, `${format(used)} of ${format(limit)}${unit}`);
    root.dataset.severity = (used > limit * 0.8 && firing[alert]) || "";
  }
}

function closeName(code) {
  return OTHER_CLOSES[code] ?? `${code} ${CLOSE_NAMES[code] ?? ""}`;
}

// What a table has shown stays in its place with 0, so that rows do not move.
const seen = {};

function counted(table, counts, name, severity) {
  const keys = (seen[table] ??= new Set());
  for (const key of Object.keys(counts)) keys.add(key);
  const cells = [...keys].sort().map((key) => [name(key), count(counts[key] ?? 0), (counts[key] && severity(key)) || ""]);
  rows(table, cells.length ? cells : [["None", ""]]);
}

// --- Alerts

const shownAlerts = new Map();

// Shows the alerts, each with its paragraph of the runbook. One that stays keeps its element, so that it stays open.
function showAlerts(alerts) {
  const names = alerts.map((alert) => alert.name);
  for (const [name, { root }] of shownAlerts) {
    if (names.includes(name)) continue;
    root.remove();
    shownAlerts.delete(name);
  }
  for (const { name, severity, text } of alerts) {
    if (!shownAlerts.has(name)) {
      const found = element("span", { class: "found" });
      const paragraph = [...document.querySelectorAll(`#runbook [data-alert="${name}"] > p`)].map((p) => element("p", {}, ...p.cloneNode(true).childNodes));
      const summary = element("summary", {}, element("strong", {}, name), found, element("span", { class: "do" }, "What to do"));
      const root = element("li", { class: "alert", "data-severity": severity }, element("details", {}, summary, element("div", {}, ...paragraph)));
      shownAlerts.set(name, { root, found });
      byId("alert-list").append(root);
    }
    write(shownAlerts.get(name).found, text);
  }
  byId("alerts").hidden = alerts.length === 0;
}

// --- Polling

const groups = GROUPS.map((group) => ({ group, charts: group.charts.map((spec) => new Chart(group, spec)) }));
const charts = groups.flatMap((group) => group.charts);
let lastResponse;
let trouble = "";

function show(status) {
  const { alerts, history, last_minute: minute } = status;
  const firing = severities(status);
  for (const chart of charts) chart.show(status);
  write(byId("version"), status.version);
  write(byId("uptime"), duration(status.uptime_s));
  write(byId("node"), status.node_id.slice(0, 8));
  byId("node").title = status.node_id;
  byId("young").hidden = history.connected_devices.length >= history.length;
  write(byId("young-age"), duration(status.uptime_s));
  showCapacity(status);
  rows("parts", parts(status));
  counted("errors", minute.errors, (code) => code, (code) => ["internal", "unavailable"].includes(code) && firing.ServerErrors);
  counted("closes", minute.closes, closeName, (code) => code === "4002" && firing.SlowConsumers);
  counted("refused", minute.connections_refused, (limit) => limit, () => firing.ConnectionsRefused);
  showAlerts(alerts);
  const reasons = status.reasons.length ? `: ${status.reasons.join(", ")}` : "";
  state(status.status, `${STATES[status.status] ?? status.status}${reasons}`, alerts);
}

function state(kind, text, alerts) {
  const shown = byId("state");
  shown.dataset.state = kind;
  // A node that is stopping is not ready, which nobody needs to repair.
  const all = [kind === "ready" ? "none" : "ticket", ...alerts.map((alert) => alert.severity)];
  shown.dataset.severity = all.sort((a, b) => SEVERITIES[b] - SEVERITIES[a])[0];
  write(byId("state-text"), text);
  const [first, ...more] = alerts.map((alert) => alert.name);
  write(byId("state-count"), first ? `· ${more.length + 1} ${more.length ? "alerts" : "alert"}` : "");
  write(byId("state-alerts"), first ? `: ${[first, ...more].join(", ")}` : "");
  document.title = `${alerts.length ? `(${alerts.length}) ` : ""}Sealwire: ${text}`;
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
  const figures = lastResponse === undefined ? "" : " The figures below are from before.";
  const alerts = [{ name: "NodeAway", severity: "page", text: `This node does not answer.${figures}` }];
  state("gone", trouble ? `No answer: ${trouble}` : "No answer", alerts);
  showAlerts(alerts);
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

byId("charts").append(
  ...groups.map(({ group, charts }, index) => {
    const id = `group-${index}`;
    const cards = element("div", { class: "cards" }, ...charts.map((chart) => chart.root));
    return element("section", { class: `group cards-${charts.length}`, "aria-labelledby": id }, element("h3", { id }, group.title), cards);
  }),
);
byId("moment").addEventListener("input", (event) => point(-event.target.value || undefined));
document.addEventListener("visibilitychange", () => document.hidden || poll());
// Marks the figures as stale if a request hangs.
setInterval(() => {
  if (lastResponse !== undefined && !document.hidden && performance.now() - lastResponse > 4 * POLL_MS) stale();
}, 1000);
poll();
