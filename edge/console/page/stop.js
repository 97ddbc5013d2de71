// The stop, and nothing else: it works while the rest of the page is broken or busy. Said twice, over the WebSocket and
// as a request of its own, and taken for done only when the server says that the arm's loop has taken it.
"use strict";

const stopping = { socket: null, token: decodeURIComponent(location.hash.slice(1)), timer: 0 };

function stopNow() {
  const button = document.getElementById("stop");
  button.className = "sent";
  document.getElementById("stop-note").textContent = "stopping";
  clearTimeout(stopping.timer);
  stopping.timer = setTimeout(() => stopTold(false), 1500);
  try {
    if (stopping.socket && stopping.socket.readyState === WebSocket.OPEN) stopping.socket.send('{"do":"stop"}');
  } catch (error) { /* the request below says it, too */ }
  fetch("stop", { method: "POST", headers: { Authorization: `Bearer ${stopping.token}` } })
    .then((answer) => answer.json())
    .then((told) => stopTold(told.stopped === true))
    .catch(() => {});
}

function stopTold(stopped) {
  if (stopped) clearTimeout(stopping.timer);
  document.getElementById("stop").className = stopped ? "" : "unsure";
  document.getElementById("stop-note").textContent = stopped ? "stopped" : "NOT CONFIRMED: cut the arm's power";
}

addEventListener("pointerdown", (event) => {
  if (event.target.closest && event.target.closest("#stop")) stopNow();
}, true);

for (const kind of ["keydown", "keyup"]) {
  addEventListener(kind, (event) => {
    const writing = event.target.matches && event.target.matches("#instruction:enabled");
    if (event.code !== "Space" || writing) return;
    event.preventDefault(); // it presses no button that has the focus
    if (kind === "keydown" && !event.repeat) stopNow();
  }, true);
}
