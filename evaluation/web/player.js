// The player of the Enhance tab: two recordings run by one clock, and one switch says which of them is heard.
// The results come and go, so everything is found when it is needed. Runs once, as a component's js_on_load.
const STEP_SEC = 1;  // of the clock by an arrow key
const DRIFT_SEC = 0.08;  // further apart than this, the recording after is set to the clock of the one before
const part = (id) => document.getElementById(id);
const both = () => [part("before"), part("after")];
const spoken = (sec) => Math.floor(sec / 60) + ":" + String(Math.floor(sec % 60)).padStart(2, "0");

function heard() {
  const choice = document.querySelector("input[name=heard]:checked")?.value;
  for (const it of both()) {
    it.muted = it.id !== choice;
    it.closest("figure").classList.toggle("heard", it.id === choice);
  }
}

function show() {
  const [before, after] = both();
  if (!before) return;
  const length = before.duration || 0;
  part("clock").max = length || 1;
  part("clock").value = before.currentTime;
  part("clock").setAttribute("aria-valuetext", spoken(before.currentTime) + " of " + spoken(length));
  part("time").textContent = spoken(before.currentTime) + " / " + spoken(length);
  part("play").textContent = before.paused ? "Play" : "Pause";
  if (!before.paused && !after.ended && Math.abs(before.currentTime - after.currentTime) > DRIFT_SEC) after.currentTime = before.currentTime;
}

function toggle() {
  const [before, after] = both();
  if (!before.paused) {
    both().forEach((it) => it.pause());
    return show();
  }
  if (before.ended) before.currentTime = 0;
  after.currentTime = before.currentTime;
  heard();
  both().forEach((it) => it.play().catch(() => {}));  // paused again before it began
}

function seek(sec) {
  const length = part("before").duration || 0;
  both().forEach((it) => { it.currentTime = Math.max(0, Math.min(length, sec)); });
  show();
}

// Media events do not rise through the page, but they pass it on the way down.
for (const kind of ["timeupdate", "loadedmetadata", "durationchange", "play", "pause", "ended", "seeked"]) {
  document.addEventListener(kind, ({ target }) => {
    if (target !== part("before")) return;
    if (kind === "loadedmetadata") heard();
    if (kind === "pause" || kind === "ended") part("after").pause();
    show();
  }, true);
}
document.addEventListener("click", ({ target }) => { if (target.id === "play") toggle(); });
document.addEventListener("input", ({ target }) => {
  if (target.id === "clock") seek(Number(target.value));
});
// From where the recording is, not from where the clock was shown last: while it plays, that is a little earlier.
document.addEventListener("keydown", (event) => {
  const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
  if (event.target.id !== "clock" || !steps) return;
  event.preventDefault();
  seek(part("before").currentTime + steps * STEP_SEC);
});
document.addEventListener("change", ({ target }) => { if (target.name === "heard") heard(); });
setInterval(show, 100);  // while it plays, timeupdate comes four times a second only
