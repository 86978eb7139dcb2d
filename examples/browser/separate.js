// Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
// The worker: loads the model and separates a recording chunk by chunk, as csc_hf/long_audio.py does.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

const MODEL = new URL("./model/", import.meta.url);
const CHUNK_SECONDS = 10;
const OVERLAP_SECONDS = 2;
const SAME_SPEAKER = 0.5; // cosine above which a slot is taken for a known speaker
const GAIN_RIDGE = 1e-3;

const loading = load();
loading.then(
  ({ description, megabytes }) => postMessage({ type: "ready", description, megabytes }),
  (error) => postMessage({ type: "no-model", text: String(error.message ?? error) }),
);

onmessage = async ({ data }) => {
  try {
    postMessage({ type: "result", ...(await separate(await loading, data.waveform)) });
  } catch (error) {
    postMessage({ type: "failed", text: String(error.message ?? error) });
  }
};

async function load() {
  const description = await (await fetchFile("export.json")).json();
  if (!("source_frame_activity" in (description.parts.separation?.outputs ?? {}))) {
    throw new Error("The model does not tell when each voice speaks: export one with frame_activity.");
  }
  const bytes = await (await fetchFile("separation.onnx")).arrayBuffer();
  ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
  const session = await ort.InferenceSession.create(bytes, { graphOptimizationLevel: "all" });
  return { description, session, megabytes: bytes.byteLength / 1e6 };
}

async function fetchFile(name) {
  const response = await fetch(new URL(name, MODEL));
  if (!response.ok) throw new Error(`model/${name} is missing.`);
  return response;
}

async function separate({ description, session }, waveform) {
  const stride = description.activity_stride;
  const slots = description.num_sources;
  const orders = permutations(slots);
  const length = waveform.length;
  const numFrames = Math.ceil(length / stride);
  const sources = Array.from({ length: slots }, () => new Float32Array(length));
  const frames = Array.from({ length: slots }, () => new Float32Array(numFrames)); // sum of probabilities
  const coverage = new Float32Array(numFrames);
  const speakers = Array.from({ length: slots }, () => ({ sum: null, presence: 0, activity: -Infinity }));

  const size = Math.min(Math.round(CHUNK_SECONDS * description.sampling_rate), length);
  const overlap = Math.round(OVERLAP_SECONDS * description.sampling_rate);
  const room = length - size;
  const count = 1 + Math.ceil(room / (size - overlap + 1e-9));
  let end = 0; // up to where sources are separated
  for (let index = 0; index < count; index++) {
    // On the grid of the activity frames, so that those of neighbouring chunks coincide.
    const start = count === 1 ? 0 : Math.floor((room * index) / (count - 1) / stride) * stride;
    const samples = waveform.subarray(start, index === count - 1 ? length : start + size);
    const output = await run(session, samples, slots);
    scaleToMixture(output.sources, output.activity, samples);
    const shared = Math.max(end - start, 0);
    const order = follow(speakers, orders, output, sources.map((source) => source.subarray(start, start + shared)));
    for (let slot = 0; slot < slots; slot++) {
      crossFade(sources[slot], output.sources[order[slot]], start, shared);
      const logits = output.frames[order[slot]];
      for (let frame = 0; frame < logits.length; frame++) frames[slot][start / stride + frame] += sigmoid(logits[frame]);
    }
    for (let frame = 0; frame < output.frames[0].length; frame++) coverage[start / stride + frame] += 1;
    end = start + samples.length;
    postMessage({ type: "progress", share: (index + 1) / count });
  }
  for (const source of frames) source.forEach((sum, frame) => (source[frame] = sum / coverage[frame]));
  avoidClipping(sources, waveform);
  return { sources, frames, activity: speakers.map((speaker) => speaker.activity) };
}

async function run(session, samples, slots) {
  const shape = [1, samples.length];
  const outputs = await session.run({
    input_values: new ort.Tensor("float32", samples, shape),
    attention_mask: new ort.Tensor("int64", new BigInt64Array(samples.length).fill(1n), shape),
  });
  const rows = (tensor) => {
    const width = tensor.data.length / slots;
    return Array.from({ length: slots }, (_, slot) => tensor.data.slice(slot * width, (slot + 1) * width));
  };
  return {
    sources: rows(outputs.sources),
    embeddings: rows(outputs.source_embeddings),
    activity: outputs.source_activity.data,
    frames: rows(outputs.source_frame_activity),
  };
}

// --- stitching: see csc_hf/long_audio.py, whose functions have these names ---------------------------------------------

/** Scales each source, in place, so that their sum is nearest to the mixture. */
function scaleToMixture(sources, activity, mixture) {
  const norms = sources.map((source) => Math.sqrt(dot(source, source)) || 1);
  const matrix = sources.map((row, i) =>
    sources.map((column, j) => {
      const ridge = i === j ? GAIN_RIDGE * (1 + Math.exp(-activity[i])) : 0;
      return dot(row, column) / norms[i] / norms[j] + ridge;
    }),
  );
  const gains = solve(matrix, sources.map((source, i) => dot(source, mixture) / norms[i]));
  sources.forEach((source, i) => {
    for (let n = 0; n < source.length; n++) source[n] *= gains[i] / norms[i];
  });
}

/** The slot of each speaker in the next chunk: by embeddings, and by the waveforms that both chunks have. */
function follow(speakers, orders, output, before) {
  const weights = Array.from(output.activity, sigmoid);
  let order = orders[0];
  if (speakers.some((speaker) => speaker.presence > 0)) {
    const likeness = speakers.map((speaker, i) =>
      output.embeddings.map((embedding, j) => {
        const known = Math.min(speaker.presence, 1) * weights[j];
        const cosine = dot(speaker.sum, embedding) / (Math.sqrt(dot(speaker.sum, speaker.sum)) || 1);
        const after = output.sources[j].subarray(0, before[i].length);
        const norm = Math.sqrt(dot(before[i], before[i]) * dot(after, after)) || 1;
        return known * (cosine - SAME_SPEAKER) + Math.abs(dot(before[i], after)) / norm;
      }),
    );
    const total = (order) => order.reduce((sum, slot, speaker) => sum + likeness[speaker][slot], 0);
    order = orders.reduce((best, other) => (total(other) > total(best) ? other : best));
  }
  speakers.forEach((speaker, i) => {
    const [embedding, weight] = [output.embeddings[order[i]], weights[order[i]]];
    speaker.sum = embedding.map((value, n) => (speaker.sum?.[n] ?? 0) + weight * value);
    speaker.presence += weight;
    speaker.activity = Math.max(speaker.activity, output.activity[order[i]]);
  });
  return order;
}

/** Writes a chunk into a source from `start` on; over the first `shared` samples it fades in. */
function crossFade(source, chunk, start, shared) {
  for (let n = 0; n < chunk.length; n++) {
    const share = n < shared ? (n + 1) / (shared + 1) : 1;
    source[start + n] = source[start + n] * (1 - share) + chunk[n] * share;
  }
}

/** Turns all sources down by one factor if one exceeds full scale where the recording does not. */
function avoidClipping(sources, mixture) {
  const peak = (signal) => signal.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
  const limit = Math.max(1, peak(mixture)) / Math.max(...sources.map(peak));
  if (limit < 1) for (const source of sources) source.forEach((sample, n) => (source[n] = sample * limit));
}

// --- numbers -----------------------------------------------------------------------------------------------------------

function sigmoid(logit) {
  return 1 / (1 + Math.exp(-logit));
}

function dot(first, second) {
  let sum = 0;
  for (let n = 0; n < first.length; n++) sum += first[n] * second[n];
  return sum;
}

/** Solution of a small system of equations whose matrix is positive definite. */
function solve(matrix, right) {
  const rows = matrix.map((row, i) => [...row, right[i]]);
  rows.forEach((pivot, i) => {
    rows.forEach((row, j) => {
      if (i === j) return;
      const factor = row[i] / pivot[i];
      for (let k = i; k < row.length; k++) row[k] -= factor * pivot[k];
    });
  });
  return rows.map((row, i) => row[rows.length] / row[i]);
}

function permutations(size) {
  if (size === 0) return [[]];
  return permutations(size - 1).flatMap((order) =>
    Array.from({ length: size }, (_, place) => [...order.slice(0, place), size - 1, ...order.slice(place)]),
  );
}
