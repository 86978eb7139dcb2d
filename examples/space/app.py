# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
The demo page of csc_hf, in the form of a Hugging Face Space: who speaks when in a recording, what each talker says, and
which of them is a voice that you know. It runs on one CPU core and needs no network.

    pip install -r requirements.txt && python app.py

The model is `$CSC_HF_MODEL`, a folder or a name on the Hub; else csc-small of the clone that this folder is in.
"""

import html
import math
import os
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import gradio as gr
import numpy as np
import soundfile
import torch
from matplotlib.figure import Figure
from stand_in import COLOURS, Diarization, attention_weights, diarize, plot_diarization
from transformers import Pipeline, pipeline

from csc_hf import CSCForPreTraining
from csc_hf.audio import SAMPLING_RATE, SILENCE_POWER, power, read_blocks
from csc_hf.evaluation.calibration import Calibration

HERE = Path(__file__).resolve().parent
MODEL = os.environ.get("CSC_HF_MODEL") or HERE.parents[1] / "model_cards" / "csc-small"

MAX_MEGABYTES = 50  # of an upload
MAX_SECONDS = 120  # of a recording
MAX_TALKERS = 6
MAX_VOICES = 4  # that a visitor enrols
MAX_WAITING = 20  # visitors in the queue
KEEP_SECONDS = 3600  # what visitors upload and enrol, and what the page makes of it

model = CSCForPreTraining.from_pretrained(MODEL).eval()
calibration = Calibration.load(model, enrolment="attention")


@dataclass
class Visit:
    """
    What one visitor has brought: a recording, float32 (samples,), with its talkers and the voice of each, int16
    (samples,); and enrolled voices, float32 (samples,) by name. The pipeline is theirs alone, and shares the model.
    """

    verify: Pipeline
    recording: np.ndarray | None = None
    diarization: Diarization | None = None
    talkers: dict[str, np.ndarray] = field(default_factory=dict)
    voices: dict[str, np.ndarray] = field(default_factory=dict)


def new_visit() -> Visit:
    return Visit(pipeline("speaker-verification", model=model, enrolment="attention"))


def find_talkers(path: str | None, num_talkers: int, visit: Visit | None) -> Visit:
    recording = read(path, "recording")
    with tempfile.TemporaryDirectory() as folder:
        found = diarize(model, recording, voices=folder, num_speakers=num_talkers or None)
        talkers = {name: soundfile.read(f"{folder}/{name}.wav", dtype="int16")[0] for name in found.embeddings}
    return replace(visit or new_visit(), recording=recording, diarization=found, talkers=talkers)


def enrol(name: str, path: str | None, visit: Visit | None) -> Visit:
    visit, name = visit or new_visit(), " ".join(name.split())
    if not name:
        raise refusal("Whose voice is it? Type a name.")
    if len(visit.voices) == MAX_VOICES and name not in visit.voices:
        raise refusal(f"{MAX_VOICES} voices are enrolled, and no more fit. Forget them first.")
    voice = read(path, f"recording of {name} alone")
    visit.verify.enrol(name, voice)
    return replace(visit, voices=visit.voices | {name: voice})


def forget(visit: Visit | None) -> Visit | None:
    return visit and replace(visit, verify=new_visit().verify, voices={})


def read(path: str | None, what: str) -> np.ndarray:
    """Decode an upload, no further than it is allowed to go on."""
    if path is None:
        raise refusal(f"There is no {what} yet: upload one, record one, or choose an example.")
    name, blocks, samples = Path(path).name, [], 0
    try:
        for block in read_blocks(path):
            blocks.append(block)
            samples += len(block)
            if samples > MAX_SECONDS * SAMPLING_RATE:
                break
    except (ValueError, OSError) as error:
        raise refusal(f"{name} holds no audio that can be read: try a WAV, FLAC or MP3 file.") from error
    if samples > MAX_SECONDS * SAMPLING_RATE:
        raise refusal(f"{name} is longer than {MAX_SECONDS} seconds: bring a part of it.")
    if not samples or power(np.concatenate(blocks)) < SILENCE_POWER:
        raise refusal(f"{name} is silent. Is the microphone on?")
    return np.concatenate(blocks)


def refusal(message: str) -> gr.Error:
    return gr.Error(html.escape(message), print_exception=False)


@torch.inference_mode()
def compare(visit: Visit) -> dict[str, dict[str, float]]:
    """
    The score of each enrolled voice with each talker, by name: the cosine of the talker's embedding with what the
    cross-attention finds in the enrolment when it is asked for that talker.
    """
    scores: dict[str, dict[str, float]] = {name: {} for name in visit.voices}
    for name, of_talkers in scores.items():
        for talker in visit.talkers:
            query = torch.from_numpy(visit.diarization.embeddings[talker])
            answer = model.aggregate(query, visit.verify.enrolled[name].memory)
            of_talkers[talker] = torch.cosine_similarity(query, answer, dim=0).item()
    return scores


# --- what is shown ---------------------------------------------------------------------------------------------------

INTRODUCTION = f"""
# Who speaks, when others speak too

Bring a recording in which people talk, one after the other or at once. This page finds the talkers, lets you hear each
of them alone, and says which of them is a voice that you know. The model has {model.num_parameters() / 1e6:.1f} million
parameters and runs on the processor of this server. Recordings go nowhere else and are deleted after
{KEEP_SECONDS // 60} minutes.
"""
CONSENT = "A voice identifies a person: have their consent. It is forgotten after your visit."
CONDITIONS = {"mix0": "two people talking at once, equally loud", "clean": "people talking alone"}


def title(talker: str) -> str:
    return talker.replace("speaker_", "Talker ")


def recognised(scores: dict[str, dict[str, float]]) -> dict[str, str]:
    """The name of each talker who is an enrolled voice. Where two voices pass, it is the better one."""
    passed = [(scores[name][talker], talker, name) for name in scores for talker in scores[name]]
    return {talker: name for score, talker, name in sorted(passed) if calibration and score >= calibration.threshold}


def in_words(score: float) -> str:
    """What a score says of two recordings."""
    if calibration is None:
        return "not decided: the model has no calibration"
    llr = calibration.llr(score)
    ratio = math.exp(min(abs(llr), math.log(1000)))
    times = "over 1000" if ratio > 999 else f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"
    return f"{times} times likelier {'one person than two' if llr > 0 else 'two people than one'}"


def verdict(name: str, scores: dict[str, dict[str, float]]) -> str:
    """Markdown: which talker an enrolled voice is, and why."""
    best = max(scores[name], key=scores[name].__getitem__)
    who = recognised(scores).get(best)
    if who == name:
        heading = f"{name} is {title(best).lower()}"
    elif calibration is None:
        heading = f"{name} is most like {title(best).lower()}"
    elif scores[name][best] >= calibration.threshold:
        heading = f"{name} could be {title(best).lower()}, but {who} is more like it"
    else:
        heading = f"{name} is none of the talkers"
    rows = [f"| {title(talker)} | {score:.2f} | {in_words(score)} |" for talker, score in scores[name].items()]
    question = f"Where the model looks in the recording of {name} to recognise {title(best).lower()}:"
    return "\n".join([f"### {heading}", "| | score | what it means |", "| --- | --- | --- |", *rows, "", question])


def meaning() -> str:
    if calibration is None:
        return ""
    return (
        f"A score is a cosine, from −1 to 1. From {calibration.threshold:.2f} up, one person is likelier than two. The "
        f"threshold was learnt on {calibration.num_target + calibration.num_nontarget:,} comparisons with "
        f"{CONDITIONS.get(calibration.condition, calibration.condition)}; {calibration.eer:.0%} of them it gets wrong. "
        "So decide nothing about anybody by this page."
    )


def draw_talkers(visit: Visit) -> Figure:
    figure = Figure(figsize=(10, 3.6), layout="constrained", dpi=120)
    plot_diarization(visit.diarization, visit.recording, figure.subplots())
    return figure


@torch.inference_mode()
def draw_attention(visit: Visit, name: str, talker: str) -> Figure:
    """The first seconds of an enrolled voice, and where the cross-attention looks when it is asked for a talker."""
    voice = visit.voices[name][: 10 * SAMPLING_RATE]
    hidden = model.base_model(torch.from_numpy(voice)[None]).source_hidden_states  # (1, slots, segments, hidden size)
    query = torch.from_numpy(visit.diarization.embeddings[talker])
    weights = attention_weights(model, query, hidden, torch.ones(1, hidden.shape[2])).mean(0).sum((0, 1))
    seconds = np.asarray(model.config.segment_centres(len(voice))) / SAMPLING_RATE
    figure = Figure(figsize=(10, 3), layout="constrained", dpi=120)
    above, below = figure.subplots(2, sharex=True)
    above.specgram(voice, NFFT=512, Fs=SAMPLING_RATE, noverlap=256, cmap="Greys", vmin=-120)
    above.set(ylim=(0, 4000), ylabel="frequency (Hz)", xlim=(0, len(voice) / SAMPLING_RATE))
    below.fill_between(seconds, weights * len(weights), color=COLOURS[list(visit.talkers).index(talker)], step="mid")
    below.axhline(1, color="black", linewidth=0.8, linestyle="--")
    below.set(ylim=(0, None), ylabel="attention\n(even: 1)", xlabel="time (s)")
    return figure


def show_talkers(visit: Visit | None) -> None:
    if visit is None or visit.recording is None:
        gr.Markdown("*The talkers will be here, each in a colour.*")
        return
    gr.Markdown(f"### {len(visit.talkers) or 'No'} talker{'s' * (len(visit.talkers) != 1)}")
    gr.Plot(draw_talkers(visit), show_label=False)
    names = recognised(compare(visit))
    for colour, (talker, voice) in zip(COLOURS, visit.talkers.items()):
        label = f"{title(talker)}, {names[talker]}" if talker in names else title(talker)
        waveform = gr.WaveformOptions(waveform_color=colour)
        gr.Audio((SAMPLING_RATE, voice), label=label, buttons=["download"], waveform_options=waveform)


def show_voices(visit: Visit | None) -> None:
    if visit is None or not visit.voices:
        gr.Markdown("*Enrolled voices will be here, each compared with the talkers.*")
    elif not visit.talkers:
        gr.Markdown(f"Enrolled: {', '.join(visit.voices)}. Now find the talkers of a recording.")
    else:
        scores = compare(visit)
        for name in scores:
            gr.Markdown(verdict(name, scores))
            gr.Plot(draw_attention(visit, name, max(scores[name], key=scores[name].__getitem__)), show_label=False)
        gr.Markdown(meaning())


def build() -> gr.Blocks:
    audio = {"sources": ["upload", "microphone"], "type": "filepath", "buttons": []}
    conversation, meeting, anna, ben = (
        f"{HERE}/audio/{name}.flac" for name in ("conversation", "meeting", "anna", "ben")
    )
    with gr.Blocks(title="Who speaks", analytics_enabled=False, delete_cache=(60, KEEP_SECONDS)) as page:
        visit = gr.State(None, time_to_live=KEEP_SECONDS)
        gr.Markdown(INTRODUCTION)
        gr.Markdown("## 1. Who speaks when?")
        with gr.Row():
            with gr.Column(min_width=300):
                recording = gr.Audio(label=f"Recording, up to {MAX_SECONDS} seconds", **audio)
                labels = ["A conversation of four", "Anna and Ben at once"]
                gr.Examples([conversation, meeting], recording, label="Or choose one", example_labels=labels)
                choices = [("count them", 0), *((str(number), number) for number in range(1, MAX_TALKERS + 1))]
                num_talkers = gr.Dropdown(choices, value=0, label="How many talkers?")
                find = gr.Button("Find the talkers", variant="primary")
            with gr.Column(scale=2, min_width=300):
                gr.render(visit)(show_talkers)
        gr.Markdown("## 2. Which of them is a voice that you know?")
        with gr.Row():
            with gr.Column(min_width=300):
                name = gr.Textbox(label="Name", max_length=30)
                voice = gr.Audio(label="This person alone, a few seconds", **audio)
                voices = [["Anna", anna], ["Ben", ben]]
                gr.Examples(voices, [name, voice], label="Or choose one", example_labels=["Anna alone", "Ben alone"])
                gr.Markdown(CONSENT)
                with gr.Row():
                    enrolling = gr.Button("Enrol the voice", variant="primary")
                    forgetting = gr.Button("Forget all voices")
            with gr.Column(scale=2, min_width=300):
                gr.render(visit)(show_voices)
        find.click(find_talkers, [recording, num_talkers, visit], visit)
        enrolling.click(enrol, [name, voice, visit], visit)
        forgetting.click(forget, visit, visit)
    return page


if __name__ == "__main__":
    theme = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # of the browser, not of a CDN
    page = build().queue(default_concurrency_limit=1, max_size=MAX_WAITING)
    page.launch(max_file_size=MAX_MEGABYTES * 2**20, ssr_mode=False, theme=theme, footer_links=[])
