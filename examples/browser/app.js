// Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
// The page: takes a file, hands it to the worker (separate.js), shows and plays what comes back.

const SAMPLING_RATE = 16000;
const MAX_SECONDS = 20 * 60;
const MAX_BYTES = 500e6;
const SPEAKING = 0.5; // probability above which a voice counts as speaking
const SHORTEST_PAUSE = 0.25; // seconds: shorter ones, as between words, are part of a turn
const SHORTEST_TURN = 0.1;
const COLOURS = ["#39c2ff", "#ffb020", "#ff6fb1", "#7fe08a", "#b79bff"];

const element = (id) => document.getElementById(id);
const player = createPlayer();
let worker = startWorker();
let shown = null; // {name, waveform, duration, voices: [{name, colour, waveform, turns}], picture}

// --- states: start, working, problem, result ---------------------------------------------------------------------------

function show(state) {
  document.body.dataset.state = state;
}

function progress(stage, share) {
  element("stage").textContent = stage;
  if (share === undefined) element("progress").removeAttribute("value");
  else element("progress").value = share;
  show("working");
}

function problem(title, text, command = "") {
  element("problem-title").textContent = title;
  element("problem-text").textContent = text;
  element("problem-command").textContent = command;
  show("problem");
}

/** An error whose message is for the user, with a command that helps. */
function hinted(text, command) {
  return Object.assign(new Error(text), { told: true, command });
}

// --- a recording: from a file to the worker and back ---------------------------------------------------------------------

function startWorker() {
  // A worker from a blob is under the security policy of the page; one from a file would have none.
  const source = `import ${JSON.stringify(new URL("./separate.js", import.meta.url).href)};`;
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const started = new Worker(url, { type: "module" });
  element("model").textContent = "Loading the model …";
  started.model = new Promise((resolve, reject) => {
    started.addEventListener("message", ({ data }) => {
      if (data.type === "ready") {
        element("model").textContent = `Model: csc_hf ${data.description.version}, ${data.megabytes.toFixed(1)} MB.`;
        resolve(data.description);
      } else if (data.type === "no-model") {
        element("model").textContent = "There is no model yet.";
        reject(hinted(data.text, "csc-hf export model_cards/csc-small --out examples/browser/model"));
      }
    });
    started.addEventListener("error", () => {
      // An error of the program is a message; what fails before the program runs is a file that it imports.
      element("model").textContent = "ONNX Runtime is missing.";
      reject(hinted("ONNX Runtime, which runs it, is missing.", "npm install --prefix examples/browser"));
    });
  });
  started.model.catch(() => {}); // told when a recording is there
  return started;
}

/** Gives up the recording that is being worked on, if there is one: `open` sees that the worker is another. */
function giveUp() {
  if (document.body.dataset.state !== "working") return;
  worker.terminate();
  worker = startWorker();
}

async function open(name, read) {
  player.stop();
  giveUp();
  const current = worker;
  progress(`Reading ${name} …`);
  let waveform;
  try {
    waveform = await decode(await read());
  } catch (error) {
    if (current !== worker) return;
    problem(`${name} cannot be read`, error.told ? error.message : "Your browser knows no such audio. Try WAV, FLAC or MP3.");
    return;
  }
  if (current !== worker) return;
  progress("Loading the model …");
  try {
    const description = await current.model;
    if (description.sampling_rate !== SAMPLING_RATE) {
      throw new Error(`The model takes ${description.sampling_rate} Hz, this page gives ${SAMPLING_RATE} Hz.`);
    }
  } catch (error) {
    if (current !== worker) return;
    problem("The model cannot be loaded", error.message, error.command);
    return;
  }
  if (current !== worker) return;
  progress("Separating the voices …", 0);
  const answer = await ask(current, waveform);
  if (current !== worker) return;
  if (answer.type === "failed") problem("The recording cannot be separated", answer.text);
  else present(name, waveform, answer);
}

function ask(current, waveform) {
  return new Promise((resolve) => {
    current.onmessage = ({ data }) => {
      if (data.type === "progress") progress("Separating the voices …", data.share);
      else if (data.type === "result" || data.type === "failed") resolve(data);
    };
    current.postMessage({ waveform });
  });
}

/** Bytes of a file → mono samples at 16 kHz. */
async function decode(bytes) {
  if (bytes.byteLength === 0) throw hinted("The file is empty.");
  if (bytes.byteLength > MAX_BYTES) throw hinted(`The file is larger than ${MAX_BYTES / 1e6} MB. Use csc-hf separate for it.`);
  // A context of this rate resamples what it decodes.
  const audio = await new OfflineAudioContext(1, 1, SAMPLING_RATE).decodeAudioData(bytes);
  if (audio.duration > MAX_SECONDS) {
    throw hinted(`It is longer than ${MAX_SECONDS / 60} minutes. Use csc-hf separate for it: that takes any length.`);
  }
  const mono = new Float32Array(audio.length);
  for (let channel = 0; channel < audio.numberOfChannels; channel++) {
    audio.getChannelData(channel).forEach((sample, n) => (mono[n] += sample / audio.numberOfChannels));
  }
  if (!mono.some((sample) => sample !== 0)) throw hinted("It holds no sound: every sample is zero.");
  return mono;
}

// --- the result ----------------------------------------------------------------------------------------------------------

function present(name, waveform, { sources, frames, activity }) {
  const duration = waveform.length / SAMPLING_RATE;
  const onset = (slot) => frames[slot].findIndex((probability) => probability > SPEAKING) >>> 0; // -1: last
  const found = sources.map((_, slot) => slot).filter((slot) => activity[slot] > 0 && onset(slot) < frames[slot].length);
  found.sort((first, second) => onset(first) - onset(second));
  const voices = found.map((slot, index) => ({
    name: `Talker ${index + 1}`,
    colour: COLOURS[index % COLOURS.length],
    waveform: sources[slot],
    turns: turns(frames[slot], duration),
  }));
  shown = { name, duration, voices, picture: spectrogram(waveform) };

  const count = ["Nobody speaks here", "One talker", "Two talkers", "Three talkers"][voices.length] ?? `${voices.length} talkers`;
  element("found").textContent = count;
  element("name").textContent = `${name}, ${clock(duration)}`;
  const full = voices.length === sources.length;
  element("room").textContent = full ? `The model tells ${sources.length} voices apart. If more people speak, they share these.` : "";
  player.load([waveform, ...voices.map((voice) => voice.waveform)]);
  listVoices([{ name: "Everything", colour: "var(--faint)", waveform }, ...voices], name);
  show("result");
  draw();
}

function listVoices(voices, name) {
  for (const link of document.querySelectorAll(".voice a")) URL.revokeObjectURL(link.href); // a voice may be large
  element("voices").replaceChildren(
    ...voices.map((voice, index) => {
      const row = document.createElement("label");
      row.className = "voice";
      const choice = Object.assign(document.createElement("input"), { type: "radio", name: "voice", checked: index === 0 });
      choice.addEventListener("change", () => player.choose(index));
      const dot = Object.assign(document.createElement("span"), { className: "dot" });
      dot.style.background = voice.colour;
      const who = Object.assign(document.createElement("span"), { className: "who", textContent: voice.name });
      row.append(choice, dot, who);
      if (voice.turns) {
        const spoken = voice.turns.reduce((total, [from, to]) => total + to - from, 0);
        const text = `speaks ${spoken.toFixed(1)} s`;
        row.append(Object.assign(document.createElement("span"), { className: "small", textContent: text }));
        const link = Object.assign(document.createElement("a"), { className: "button", textContent: "Save WAV" });
        link.href = URL.createObjectURL(wav(voice.waveform));
        link.download = `${name.replace(/\.[^.]*$/, "")} - ${voice.name}.wav`;
        row.append(link);
      }
      return row;
    }),
  );
}

// --- the picture: a spectrogram, bars where each voice speaks, the position ---------------------------------------------

const LANE = 22;

function draw() {
  if (!shown) return;
  const canvas = element("picture");
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== Math.round(width * scale)) canvas.width = Math.round(width * scale);
  if (canvas.height !== Math.round(height * scale)) canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(shown.picture, 0, 0, width, height);

  // Bars over the spectrogram, one lane for each voice, on a darker ground.
  const lanes = shown.voices.length * LANE;
  const top = height - 20 - lanes;
  pen.fillStyle = "#0009";
  pen.fillRect(0, top - 4, width, height - top + 4);
  pen.font = "600 12px system-ui, sans-serif";
  pen.textBaseline = "middle";
  shown.voices.forEach((voice, index) => {
    const middle = top + (index + 0.5) * LANE;
    pen.fillStyle = "#ffffff1c";
    pen.fillRect(0, middle - 7, width, 14);
    pen.fillStyle = voice.colour;
    for (const [from, to] of voice.turns) {
      pen.beginPath();
      pen.roundRect((from / shown.duration) * width, middle - 7, Math.max(((to - from) / shown.duration) * width, 2), 14, 4);
      pen.fill();
    }
    // Its number, on a plate at the left.
    pen.fillStyle = "#0b0d16e6";
    pen.beginPath();
    pen.roundRect(6, middle - 9, 18, 18, 5);
    pen.fill();
    pen.fillStyle = voice.colour;
    pen.textAlign = "center";
    pen.fillText(`${index + 1}`, 15, middle + 1);
    pen.textAlign = "left";
  });

  pen.font = "11px system-ui, sans-serif";
  pen.fillStyle = "#ffffffb0";
  const step = [0.5, 1, 2, 5, 10, 30, 60, 120, 300].find((seconds) => shown.duration / seconds <= width / 70) ?? 600;
  for (let seconds = step; seconds < shown.duration; seconds += step) {
    const x = (seconds / shown.duration) * width;
    pen.fillRect(x, height - 18, 1, 4);
    pen.fillText(clock(seconds, step < 1 ? 1 : 0), x + 4, height - 9);
  }
  for (const kilohertz of [2, 4, 6]) {
    const y = (1 - kilohertz / 8) * height;
    if (y < top - 16) pen.fillText(`${kilohertz} kHz`, width - 40, y);
  }

  const x = (player.position() / shown.duration) * width;
  pen.fillStyle = "#fff";
  pen.fillRect(x - 1, 0, 2, height);
  element("time").textContent = `${clock(player.position())} / ${clock(shown.duration)}`;
  canvas.setAttribute("aria-valuemax", shown.duration.toFixed(1));
  canvas.setAttribute("aria-valuenow", player.position().toFixed(1));
}

/** From and to, in seconds, wherever a voice speaks. */
function turns(frames, duration) {
  const seconds = duration / frames.length;
  const found = [];
  frames.forEach((probability, frame) => {
    if (probability <= SPEAKING) return;
    const [from, to] = [frame * seconds, (frame + 1) * seconds];
    if (found.length && from - found.at(-1)[1] < SHORTEST_PAUSE) found.at(-1)[1] = to;
    else found.push([from, to]);
  });
  return found.filter(([from, to]) => to - from >= SHORTEST_TURN);
}

/** A canvas with the magnitudes in dB, low frequencies at the bottom. */
function spectrogram(waveform) {
  const size = 512;
  const columns = Math.min(1600, Math.max(1, Math.ceil(waveform.length / 128)));
  const hop = waveform.length / columns;
  const window_ = Float32Array.from({ length: size }, (_, n) => 0.5 - 0.5 * Math.cos((2 * Math.PI * n) / size));
  const levels = new Float32Array(columns * (size / 2));
  let loudest = -Infinity;
  for (let column = 0; column < columns; column++) {
    const first = Math.round((column + 0.5) * hop) - size / 2;
    const real = Float32Array.from({ length: size }, (_, n) => (waveform[first + n] ?? 0) * window_[n]);
    const imaginary = new Float32Array(size);
    fft(real, imaginary);
    for (let bin = 0; bin < size / 2; bin++) {
      const level = 10 * Math.log10(real[bin] ** 2 + imaginary[bin] ** 2 + 1e-12);
      levels[column * (size / 2) + bin] = level;
      loudest = Math.max(loudest, level);
    }
  }
  const canvas = Object.assign(document.createElement("canvas"), { width: columns, height: size / 2 });
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(columns, size / 2);
  for (let column = 0; column < columns; column++) {
    for (let bin = 0; bin < size / 2; bin++) {
      const share = Math.min(Math.max((levels[column * (size / 2) + bin] - loudest + 75) / 70, 0), 1);
      image.data.set(colour(share), ((size / 2 - 1 - bin) * columns + column) * 4);
    }
  }
  pen.putImageData(image, 0, 0);
  return canvas;
}

const RAMP = [[10, 12, 28], [44, 27, 92], [120, 40, 120], [206, 78, 96], [250, 158, 90], [253, 240, 190]];

function colour(share) {
  const place = share * (RAMP.length - 1);
  const index = Math.min(Math.floor(place), RAMP.length - 2);
  const mix = RAMP[index].map((low, part) => low + (RAMP[index + 1][part] - low) * (place - index));
  return [...mix, 255];
}

/** Fourier transform in place; the length is a power of two. */
function fft(real, imaginary) {
  const size = real.length;
  for (let i = 1, j = 0; i < size; i++) {
    let bit = size >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [real[i], real[j]] = [real[j], real[i]];
  }
  for (let length = 2; length <= size; length *= 2) {
    for (let k = 0; k < length / 2; k++) {
      const [cosine, sine] = [Math.cos((-2 * Math.PI * k) / length), Math.sin((-2 * Math.PI * k) / length)];
      for (let i = k; i < size; i += length) {
        const j = i + length / 2;
        const [re, im] = [real[j] * cosine - imaginary[j] * sine, real[j] * sine + imaginary[j] * cosine];
        [real[j], imaginary[j]] = [real[i] - re, imaginary[i] - im];
        [real[i], imaginary[i]] = [real[i] + re, imaginary[i] + im];
      }
    }
  }
}

// --- hearing -------------------------------------------------------------------------------------------------------------

/** Plays several waveforms in step, of which one is heard. */
function createPlayer() {
  let context = null;
  let waveforms = [];
  let playing = null; // {nodes, gains, began}, with the time of the context at which the start would have been
  let at = 0;
  let chosen = 0;

  const duration = () => waveforms[0].length / SAMPLING_RATE;
  const position = () => (playing ? Math.min(Math.max(context.currentTime - playing.began, 0), duration()) : at);

  function halt() {
    playing?.nodes.forEach((node) => { node.onended = null; node.stop(); });
    playing = null;
    element("play").classList.remove("playing");
    element("play").setAttribute("aria-label", "Play");
  }

  async function play() {
    context ??= new AudioContext();
    await context.resume();
    if (at >= duration() - 0.05) at = 0;
    const begin = context.currentTime + 0.05;
    playing = { nodes: [], gains: [], began: begin - at };
    waveforms.forEach((waveform, index) => {
      const buffer = context.createBuffer(1, waveform.length, SAMPLING_RATE);
      buffer.copyToChannel(waveform, 0);
      const node = new AudioBufferSourceNode(context, { buffer });
      const gain = new GainNode(context, { gain: index === chosen ? 1 : 0 });
      node.connect(gain).connect(context.destination);
      node.start(begin, at);
      playing.nodes.push(node);
      playing.gains.push(gain);
    });
    playing.nodes[0].onended = () => { halt(); at = 0; draw(); };
    element("play").classList.add("playing");
    element("play").setAttribute("aria-label", "Pause");
    tick();
  }

  function tick() {
    draw();
    if (playing) requestAnimationFrame(tick);
  }

  function stop() {
    if (waveforms.length) at = position();
    halt();
  }

  return {
    position,
    stop,
    load(loaded) { stop(); waveforms = loaded; at = 0; chosen = 0; },
    toggle() { if (playing) { stop(); draw(); } else play(); },
    choose(index) {
      chosen = index;
      playing?.gains.forEach((gain, other) => gain.gain.setTargetAtTime(other === index ? 1 : 0, context.currentTime, 0.01));
    },
    async seek(seconds) {
      const resume = playing !== null;
      stop();
      at = Math.min(Math.max(seconds, 0), duration());
      if (resume) await play();
      draw();
    },
  };
}

/** 16-bit WAV file. */
function wav(waveform) {
  const header = new DataView(new ArrayBuffer(44));
  const text = (offset, letters) => [...letters].forEach((letter, n) => header.setUint8(offset + n, letter.charCodeAt(0)));
  text(0, "RIFF");
  header.setUint32(4, 36 + waveform.length * 2, true);
  text(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true); // PCM
  header.setUint16(22, 1, true); // mono
  header.setUint32(24, SAMPLING_RATE, true);
  header.setUint32(28, SAMPLING_RATE * 2, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  text(36, "data");
  header.setUint32(40, waveform.length * 2, true);
  const samples = Int16Array.from(waveform, (sample) => Math.round(Math.min(Math.max(sample, -1), 1) * 32767));
  return new Blob([header, samples], { type: "audio/wav" });
}

function clock(seconds, digits = 0) {
  const rest = digits ? (seconds % 60).toFixed(digits) : `${Math.floor(seconds % 60)}`;
  return `${Math.floor(seconds / 60)}:${rest.padStart(digits ? 3 + digits : 2, "0")}`;
}

// --- what the user does --------------------------------------------------------------------------------------------------

element("file").addEventListener("change", ({ target }) => {
  const file = target.files[0];
  target.value = ""; // the same file again is a change, too
  if (file) open(file.name, () => file.arrayBuffer());
});
element("example").addEventListener("click", () => {
  open("meeting.flac", async () => {
    const response = await fetch(new URL("../audio/meeting.flac", import.meta.url));
    if (!response.ok) throw hinted("Serve the folder examples, in which the example lies.");
    return response.arrayBuffer();
  });
});
element("cancel").addEventListener("click", () => {
  giveUp();
  show(shown ? "result" : "start");
});
element("play").addEventListener("click", () => player.toggle());
element("picture").addEventListener("click", (event) => {
  player.seek((event.offsetX / event.target.clientWidth) * shown.duration);
});
element("picture").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step) player.seek(player.position() + step);
  else if (event.key === " ") player.toggle();
  else return;
  event.preventDefault();
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.toggleAttribute("data-dragging", true);
});
addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) document.body.removeAttribute("data-dragging");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.removeAttribute("data-dragging");
  const file = event.dataTransfer.files[0];
  if (file) open(file.name, () => file.arrayBuffer());
});
addEventListener("resize", draw);
