// What the page shows and asks for; the stop is in stop.js.
"use strict";

const COLOURS = {
  capture: "#6c7a89", preprocess: "#9b59b6", vision: "#3498db", prefill: "#1abc9c", decode: "#2ecc71", parse: "#95a5a6",
  track: "#e67e22", lift: "#f1c40f", plan: "#e74c3c",
};
const DEGREES = 180 / Math.PI;
const $ = (id) => document.getElementById(id);

const page = {
  joints: [], phase: "starting", state: "", carried: false, points: [], reasoning: "", retry_ms: 250, pinged: 0, frame: 0,
  over: false,
};

function connect() {
  const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`);
  socket.binaryType = "blob";
  socket.onopen = () => {
    socket.send(stopping.token);
    stopping.socket = socket;
  };
  socket.onmessage = (event) => {
    if (typeof event.data === "string") {
      const message = JSON.parse(event.data);
      (SHOW[message.kind] || (() => {}))(message);
    } else showFrame(event.data);
  };
  socket.onclose = (event) => {
    stopping.socket = null;
    if (page.over) return;
    const why = event.code === 4401 ? "wrong token: open the address that the terminal shows"
      : event.code === 4503 ? "too many pages are open: close one" : "connecting again";
    banner(`Not connected (${why}). This page cannot stop the arm: use its power switch.`);
    $("link").textContent = "not connected";
    setTimeout(connect, page.retry_ms);
    page.retry_ms = Math.min(2 * page.retry_ms, 2000);
  };
}

function ask(message) {
  if (stopping.socket) stopping.socket.send(JSON.stringify(message));
}

function banner(text) {
  $("banner").textContent = text;
  $("banner").hidden = !text;
}

function showFrame(jpeg) {
  const url = URL.createObjectURL(jpeg);
  const before = $("image").src;
  $("image").src = url;
  if (before.startsWith("blob:")) URL.revokeObjectURL(before);
  page.frame = performance.now();
}

function drawBox(box) {
  const rect = $("box");
  rect.toggleAttribute("hidden", !box);
  if (!box) return;
  const values = { x: box.x - box.width / 2, y: box.y - box.height / 2, width: box.width, height: box.height };
  for (const [name, value] of Object.entries(values)) rect.setAttribute(name, value);
}

function drawPath(points) {
  page.points = points;
  $("path").toggleAttribute("hidden", !points.length);
  $("path").setAttribute("points", points.map((point) => point.join(",")).join(" "));
}

// The form follows the run's phase and the arm's state.
function allow() {
  const stopped = page.state === "stopped";
  const may = page.phase === "waiting" && !stopped;
  $("instruction").disabled = $("start").disabled = $("pick").disabled = $("place").disabled = !may;
  $("park").disabled = page.phase !== "waiting";
  $("restart").hidden = !(stopped && page.phase === "waiting");
}

const SHOW = {
  hello(message) {
    banner("");
    page.retry_ms = 250;
    $("link").textContent = "connected";
    $("robot").textContent = document.title = message.about.robot;
    $("robot").title = Object.entries(message.about).map((pair) => pair.join(": ")).join("\n");
    if (message.about.instruction && !$("instruction").value) $("instruction").value = message.about.instruction;
    page.joints = message.joints;
    page.hot_c = message.max_temperature_c;
    page.carried = message.carried;
    $("joints").replaceChildren(...message.joints.map((joint) => {
      const row = document.createElement("tr");
      for (const cell of ["name", "range", "at", "told", "temperature", "voltage", "load"]) {
        const data = document.createElement("td");
        data.className = cell;
        if (cell === "name") data.textContent = joint.name;
        if (cell === "range") data.appendChild(document.createElement("div")).appendChild(document.createElement("i"));
        row.appendChild(data);
      }
      return row;
    }));
  },
  phase(message) {
    page.phase = message.phase;
    if (message.phase === "working") $("outcome").hidden = true;
    if (message.phase === "waiting") $("said").textContent = message.text || "waiting for an order";
    if (message.phase === "ended") {
      page.over = true;
      banner(`The run has ended: ${message.text || "the arm is parked"}.`);
      $("link").textContent = "ended";
    }
    allow();
  },
  servo(message) {
    if (page.state === "stopped" && message.state !== "stopped") $("stop-note").textContent = "or the space bar";
    page.state = message.state;
    for (const item of $("states").children) item.classList.toggle("now", item.dataset.state === message.state);
    if (message.state === "moving" && page.carried) { drawBox(null); drawPath([]); }
    [...$("joints").rows].forEach((row, i) => {
      const at = message.position_rad[i], { lower_rad, upper_rad } = page.joints[i];
      row.cells[1].firstChild.firstChild.style.left = `${Math.min(100, Math.max(0, 100 * (at - lower_rad) / (upper_rad - lower_rad)))}%`;
      row.cells[2].textContent = (at * DEGREES).toFixed(1);
      row.cells[3].textContent = message.torque[i] === 1 ? (message.setpoint_rad[i] * DEGREES).toFixed(1) : "off";
      row.cells[4].textContent = message.temperature_c[i].toFixed(0);
      row.cells[4].classList.toggle("hot", message.temperature_c[i] > page.hot_c - 10);
      row.cells[5].textContent = message.voltage_v[i].toFixed(1);
      row.cells[6].textContent = message.load[i].toFixed(2);
    });
    const silent = message.state === "silent" ? "the servo loop is not running; " : "";
    $("bus").textContent = `${silent}${message.why ? `${message.why}; ` : ""}${message.lost} answers lost, ${message.late} cycles late since the start`;
    allow();
  },
  order(message) {
    drawBox(null);
    drawPath([]);
    page.reasoning = $("reasoning").textContent = $("decision").textContent = "";
    $("outcome").hidden = true;
    $("instruction").value = message.instruction;
    $(message.place ? "place" : "pick").checked = true;
  },
  said(message) { $("said").textContent = message.text; },
  asked(message) {
    if (message.task === "affordance") { drawBox(null); drawPath([]); }
    const title = message.task === "affordance" ? "where to grasp" : "which way";
    page.reasoning += `${page.reasoning && "\n\n"}${title}: `;
  },
  text(message) {
    if (!message.reasoning) return;
    page.reasoning += message.text;
    $("reasoning").textContent = page.reasoning.replace(/<\/?think>/g, "");
    $("reasoning").scrollTop = $("reasoning").scrollHeight;
  },
  point(message) { drawPath([...page.points.slice(0, message.index), message.point]); },
  box(message) { drawBox(message.box); },
  path(message) { drawPath(message.points); },
  decided(message) {
    const sure = message.unsure ? message.unsure : `confidence ${message.confidence.toFixed(2)}`;
    $("decision").textContent = `${sure}, ${message.tokens} tokens in ${(1e3 * message.took_s).toFixed(0)} ms`;
  },
  latency(message) {
    const stages = Object.entries(message.stages);
    $("strip").replaceChildren(...stages.map(([name, value]) => {
      const part = document.createElement("span");
      part.style.flex = `${value} 0 0`;
      part.style.background = COLOURS[name] || "#888";
      part.title = `${name} ${(1e3 * value).toFixed(1)} ms`;
      return part;
    }));
    $("legend").replaceChildren(...stages.map(([name, value]) => {
      const item = document.createElement("li"), colour = document.createElement("i");
      colour.style.background = COLOURS[name] || "#888";
      item.append(colour, `${name} ${(1e3 * value).toFixed(value < 0.01 ? 1 : 0)} ms`);
      return item;
    }));
  },
  outcome(message) {
    const times = `decided in ${message.decision_s.toFixed(2)} s, moved for ${message.motion_s.toFixed(1)} s`;
    $("outcome").textContent = `${message.reason} (${times})`;
    $("outcome").className = message.done ? "done" : "";
    $("outcome").hidden = false;
  },
  stop(message) { stopTold(message.stopped); },
  refused(message) { $("said").textContent = message.text; },
  pong(message) {
    if (message.n === page.pinged) $("link").textContent = `connected, ${(performance.now() - page.pinged).toFixed(0)} ms`;
  },
};

$("order").addEventListener("submit", (event) => {
  event.preventDefault();
  $("instruction").blur(); // from now on the space bar stops
  ask({ do: "order", instruction: $("instruction").value, place: $("place").checked });
});
$("restart").addEventListener("click", () => ask({ do: "restart" }));
$("park").addEventListener("click", () => ask({ do: "park" }));

setInterval(() => {
  const old_ms = performance.now() - page.frame;
  $("age").textContent = page.frame ? `${(old_ms / 1e3).toFixed(1)} s ago` : "no image yet";
  $("age").classList.toggle("old", old_ms > 2000);
}, 200);
setInterval(() => ask({ do: "ping", n: (page.pinged = performance.now()) }), 1000);

allow();
connect();
