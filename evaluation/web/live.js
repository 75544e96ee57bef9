// The live tab in the browser sends microphone and camera to the server and plays what comes back without gaps.
// Runs as a component's js_on_load.
const $ = (name) => element.querySelector("#live-" + name);
const BLOCK_SEC = 0.04;       // of sound in a message
const FRAME_MS = 38;          // between two frames, which makes 25 a second
const FRAME_SIDE = 320;       // pixels of the longer side
const START_SEC = 0.12;       // of sound that waits before playing begins, so that late messages make no gap
const MOST_SEC = 0.4;         // of sound that may wait; more is left out, so that the delay cannot grow
const LATE_SEC = 1.0;         // of sound on its way: the server does not keep up
const RELIEF_SEC = 3;         // for so long it must keep up before this is said
const HEADER_BYTES = 16, SOUND = 0, FRAME = 1;

const WORKLETS = `
class Capture extends AudioWorkletProcessor {
  constructor(options) { super(); this.block = new Int16Array(options.processorOptions.block); this.filled = 0; this.sent = 0; }
  process(inputs) {
    const channels = inputs[0];
    if (!channels.length) return true;
    for (let i = 0; i < channels[0].length; i++) {
      let sum = 0;
      for (const channel of channels) sum += channel[i];
      this.block[this.filled++] = Math.max(-32768, Math.min(32767, Math.round(32767 * sum / channels.length)));
      if (this.filled === this.block.length) {
        const block = this.block.slice();
        this.port.postMessage({ block, first: this.sent }, [block.buffer]);
        this.sent += this.block.length;
        this.filled = 0;
      }
    }
    return true;
  }
}
class Playback extends AudioWorkletProcessor {
  constructor(options) {
    super();
    const { start, most } = options.processorOptions;
    Object.assign(this, { start, most, ring: new Float32Array(2 * most), read: 0, held: 0, playing: false, gaps: 0, dropped: 0, calls: 0 });
    this.port.onmessage = ({ data }) => this.push(new Int16Array(data));
  }
  push(pcm) {
    const size = this.ring.length;
    for (let i = 0; i < pcm.length; i++) this.ring[(this.read + this.held + i) % size] = pcm[i] / 32768;
    this.held = Math.min(size, this.held + pcm.length);
    if (this.held > this.most) {
      const extra = this.held - this.start;
      this.read = (this.read + extra) % size;
      this.held -= extra;
      this.dropped += extra;
    }
    if (this.held >= this.start) this.playing = true;
  }
  process(_, outputs) {
    const out = outputs[0], n = out[0].length, given = this.playing ? Math.min(n, this.held) : 0;
    for (let i = 0; i < given; i++) out[0][i] = this.ring[(this.read + i) % this.ring.length];
    for (let c = 1; c < out.length; c++) out[c].set(out[0]);
    this.read = (this.read + given) % this.ring.length;
    this.held -= given;
    if (this.playing && given < n) { this.playing = false; this.gaps++; }
    if (this.calls++ % 32 === 0) this.port.postMessage({ held: this.held, gaps: this.gaps, dropped: this.dropped });
    return true;
  }
}
registerProcessor("capture", Capture);
registerProcessor("playback", Playback);
`;

let run = null;  // all that belongs to the stream under way
const history = { alpha: [], before: [], after: [] };
const KEPT = { alpha: 100, before: 250, after: 250 };  // values: ten seconds of each

function say(sentence, bad = false) {
  $("status").textContent = sentence;
  $("status").classList.toggle("bad", bad);
}

function level(pcm) {
  let power = 0;
  for (const sample of pcm) power += sample * sample;
  return Math.max(-60, 10 * Math.log10(power / Math.max(1, pcm.length) / 32768 ** 2 + 1e-9));
}

function keep(name, value) {
  history[name].push(value);
  if (history[name].length > KEPT[name]) history[name].shift();
}

function draw() {
  const colours = getComputedStyle(element);
  for (const [name, lines, low, high] of [["alpha-trace", [["alpha", "#009e73"]], 0, 1],
    ["level-trace", [["before", colours.getPropertyValue("--body-text-color-subdued")], ["after", "#d55e00"]], -60, 0]]) {
    const canvas = $(name), pen = canvas.getContext("2d");
    canvas.width = canvas.clientWidth * devicePixelRatio;
    canvas.height = canvas.clientHeight * devicePixelRatio;
    for (const [line, colour] of lines) {
      pen.beginPath();
      pen.strokeStyle = colour;
      pen.lineWidth = 1.5 * devicePixelRatio;
      pen.setLineDash(line === "before" ? [4 * devicePixelRatio, 3 * devicePixelRatio] : []);
      history[line].forEach((value, i) =>
        pen.lineTo(i / (KEPT[line] - 1) * canvas.width, canvas.height * (1 - (value - low) / (high - low) * 0.94 - 0.03)));
      pen.stroke();
    }
  }
}

function packet(kind, atSec, content) {
  const bytes = new Uint8Array(HEADER_BYTES + content.byteLength), view = new DataView(bytes.buffer);
  view.setUint8(0, kind);
  view.setFloat64(8, atSec, true);
  bytes.set(new Uint8Array(content), HEADER_BYTES);
  return bytes;
}

function videoMode() { return $("mode").value; }

async function ask() {
  if (!navigator.mediaDevices) throw new Error("Browsers give the microphone to pages on https or on localhost only.");
  const sound = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  const camera = { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 25 } };
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: sound, video: camera });
  } catch (error) {
    if (error.name === "NotAllowedError") throw new Error("The browser does not let this page use the microphone and camera.");
  }
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: sound });  // no camera: by sound alone
  } catch (error) {
    throw new Error("No microphone was found.");
  }
}

function address() {
  return new URL("live", location.href).href.replace(/^http/, "ws");
}

async function start() {
  if (run) return;
  const mine = run = { captured: 0, offset: Infinity, until: 0, held: 0, gaps: 0, dropped: 0, lastFrame: 0 };
  for (const line of Object.values(history)) line.length = 0;
  $("start").disabled = true;
  try {
    say("Asking for the microphone and the camera …");
    mine.media = await ask();
    mine.audio = new AudioContext({ latencyHint: "interactive" });
    await mine.audio.resume();
    const worklets = URL.createObjectURL(new Blob([WORKLETS], { type: "text/javascript" }));
    await mine.audio.audioWorklet.addModule(worklets);
    const rate = await connect(mine);
    mine.speaker = new AudioContext({ sampleRate: rate, latencyHint: "interactive" });  // at the model's rate: the browser converts
    await mine.speaker.audioWorklet.addModule(worklets);
    play(mine, rate);
    hear(mine);
    if (mine.media.getVideoTracks().length) watch(mine);
    $("stop").disabled = false;
    mine.live = mine.media.getVideoTracks().length ? "Live." : "Live, by sound alone: no camera was found.";
    say(mine.live);
    mine.watchdog = setInterval(() => judge(mine), 500);
    element.dataset.state = "live";
  } catch (error) {
    stop(error.message, true);
  }
}

function connect(mine) {
  return new Promise((resolve, reject) => {
    const socket = mine.socket = new WebSocket(address());
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      socket.send(JSON.stringify({ rate: mine.audio.sampleRate }));
      socket.send(JSON.stringify({ video_mode: videoMode() }));
    };
    socket.onclose = () => { reject(new Error("The server closed the stream.")); if (run === mine) stop("The server closed the stream.", true); };
    socket.onmessage = ({ data }) => {
      if (typeof data !== "string") return receive(mine, data);
      const told = JSON.parse(data);
      if (told.stop) { if (run === mine) stop(told.stop, true); reject(new Error(told.stop)); }
      else if (told.ready) resolve(told.ready);
      else show(mine, told);
    };
  });
}

function hear(mine) {
  const rate = mine.audio.sampleRate, source = mine.audio.createMediaStreamSource(mine.media);
  const capture = new AudioWorkletNode(mine.audio, "capture",
    { numberOfOutputs: 0, processorOptions: { block: Math.round(BLOCK_SEC * rate) } });
  capture.port.onmessage = ({ data: { block, first } }) => {
    mine.captured = (first + block.length) / rate;
    // When the sound's clock began, on the page's clock. The shortest way that a block ever took here counts, and drifts slowly.
    mine.offset = Math.min(mine.offset + 1e-5, performance.now() / 1000 - mine.captured);
    keep("before", level(block));
    if (mine.socket.readyState === 1) mine.socket.send(packet(SOUND, first / rate, block.buffer));
  };
  source.connect(capture);
  mine.before = mine.audio.createGain();
  mine.delay = mine.audio.createDelay(3);
  source.connect(mine.delay).connect(mine.before).connect(mine.audio.destination);
  listen();
}

function play(mine, rate) {
  mine.player = new AudioWorkletNode(mine.speaker, "playback",
    { numberOfInputs: 0, outputChannelCount: [1], processorOptions: { start: Math.round(START_SEC * rate), most: Math.round(MOST_SEC * rate) } });
  mine.player.port.onmessage = ({ data }) => { mine.held = data.held / rate; mine.gaps = data.gaps; mine.dropped = data.dropped / rate; };
  mine.after = mine.speaker.createGain();
  mine.player.connect(mine.after).connect(mine.speaker.destination);
}

function listen() {  // "before" is as late as "after", so that switching changes nothing else
  if (!run?.before) return;
  const choice = element.querySelector("input[name=live-listen]:checked").value;
  run.after.gain.value = choice === "after" ? 1 : 0;
  run.before.gain.value = choice === "before" ? 1 : 0;
  run.delay.delayTime.value = Math.min(3, latency(run));
}

function latency(mine) {
  return Math.max(0, mine.captured - mine.until + mine.held) + (mine.speaker.outputLatency || mine.speaker.baseLatency || 0);
}

function watch(mine) {
  const camera = $("camera"), small = document.createElement("canvas");
  camera.srcObject = mine.media;
  camera.play();
  const next = (now, about) => {
    if (run !== mine) return;
    camera.requestVideoFrameCallback(next);
    const taken = about.captureTime ?? now;
    if (taken - mine.lastFrame < FRAME_MS || mine.socket.bufferedAmount > 200000 || videoMode() === "off") return;
    if (!isFinite(mine.offset) || !camera.videoWidth) return;
    mine.lastFrame = taken;
    const scale = Math.min(1, FRAME_SIDE / Math.max(camera.videoWidth, camera.videoHeight));
    small.width = Math.round(camera.videoWidth * scale);
    small.height = Math.round(camera.videoHeight * scale);
    small.getContext("2d").drawImage(camera, 0, 0, small.width, small.height);
    const atSec = Math.max(0, taken / 1000 - mine.offset);
    small.toBlob(async (blob) => {
      if (!blob || run !== mine || mine.socket.readyState !== 1) return;
      mine.socket.send(packet(FRAME, atSec, await blob.arrayBuffer()));
    }, "image/jpeg", 0.85);
  };
  camera.requestVideoFrameCallback(next);
}

function receive(mine, data) {
  const view = new DataView(data), content = data.slice(HEADER_BYTES);
  if (view.getUint8(0) === SOUND) {
    mine.until = view.getFloat64(8, true);
    if (content.byteLength) keep("after", level(new Int16Array(content)));
    mine.player?.port.postMessage(content, [content]);
  } else {
    createImageBitmap(new Blob([content], { type: "image/jpeg" })).then((crop) => {
      const canvas = $("crop");
      canvas.getContext("2d").drawImage(crop, 0, 0, canvas.width, canvas.height);
    });
  }
}

function judge(mine) {  // also where the server says nothing any more
  if (run !== mine) return;
  const late = mine.captured - mine.until, now = performance.now() / 1000;
  if (mine.rtf > 1 || late > LATE_SEC) {
    mine.lateAt = now;
    const load = mine.rtf > 1 ? " It needs " + mine.rtf.toFixed(1) + " s for a second of sound." : "";
    say("The server cannot keep up: what you hear is " + Math.max(late, 0).toFixed(1) + " s late, and sound is left out." + load, true);
  } else if (mine.lateAt && now - mine.lateAt > RELIEF_SEC) {
    mine.lateAt = 0;
    say(mine.live);
  }
}

function show(mine, told) {
  keep("alpha", told.alpha);
  mine.rtf = told.rtf;
  const backlog = Math.max(0, mine.captured - mine.until);
  const values = { alpha: told.alpha.toFixed(2), rtf: told.rtf.toFixed(2), latency: Math.round(1000 * latency(mine)) + " ms",
    backlog: Math.round(1000 * backlog) + " ms", heard: told.heard_sec.toFixed(1) + " s",
    lost: (told.skipped_sec + mine.dropped).toFixed(1) + " s, " + mine.gaps + (mine.gaps === 1 ? " gap" : " gaps") };
  for (const [name, value] of Object.entries(values)) $(name).textContent = value;
  $("face").textContent = videoMode() === "off" ? "video off" : told.face ? (told.faces > 1 ? told.faces + " faces: one is followed" : "face found") : "no face";
  draw();
}

function stop(sentence = "Stopped.", bad = false) {
  const mine = run;
  run = null;
  if (mine) {
    clearInterval(mine.watchdog);
    if (mine.socket) { mine.socket.onclose = null; mine.socket.close(); }
    mine.media?.getTracks().forEach((track) => track.stop());
    mine.audio?.close();
    mine.speaker?.close();
    $("camera").srcObject = null;
  }
  $("start").disabled = false;
  $("stop").disabled = true;
  element.dataset.state = "idle";
  say(sentence, bad);
}

$("start").addEventListener("click", start);
$("stop").addEventListener("click", () => stop());
$("mode").addEventListener("change", () => run?.socket?.readyState === 1 && run.socket.send(JSON.stringify({ video_mode: videoMode() })));
element.querySelectorAll("input[name=live-listen]").forEach((choice) => choice.addEventListener("change", listen));
