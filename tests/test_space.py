# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
The demo page, `examples/space`, in a real browser: each state that visitors see, with screenshots in the temporary
folders of pytest; and that page and server call nobody but each other.
"""

import importlib.util
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import soundfile

from csc_hf import CSCConfig, CSCForPreTraining

pytestmark = pytest.mark.release

ROOT = Path(__file__).resolve().parents[1]
SPACE = ROOT / "examples" / "space"
AUDIO = ROOT / "examples" / "audio"
TIMEOUT = 300  # seconds, on a busy machine
LOCAL = re.compile(r"https?://(127\.0\.0\.1|localhost)[:/]|data:|blob:")

NUMBER = re.compile(r"^\d+ talkers?$")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-fake-ui-for-media-stream --use-fake-device-for-media-stream "
    "--use-file-for-fake-audio-capture={microphone}"
)

# Runs before anything else in the server: writes down whom it connects to. Tests that run in the background of a shell
# ignore Ctrl-C, and so would the server that they start.
AUDIT = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)

def audit(event, arguments):
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    with open(os.environ["CONNECTIONS"], "a") as log:
        print(host, file=log)

sys.addaudithook(audit)
"""


class Server:
    """`python app.py`, or other code in its folder, in a process of its own."""

    def __init__(self, folder: Path, *arguments: str):
        self.files = folder / "files"
        self.connections = folder / "connections"
        self.connections.touch()
        (folder / "sitecustomize.py").write_text(AUDIT)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        environment = os.environ | {
            "CONNECTIONS": str(self.connections),
            "GRADIO_SERVER_PORT": str(port),
            "GRADIO_TEMP_DIR": str(self.files),
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
            "TMPDIR": str(folder),
        }
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *arguments], cwd=SPACE, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        for _ in range(TIMEOUT):
            assert self.process.poll() is None, self.log.read_text()
            try:
                with urlopen(self.url, timeout=TIMEOUT):
                    return
            except OSError:
                time.sleep(1)
        self.stop()
        raise AssertionError(f"the page does not answer: {self.log.read_text()}")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(TIMEOUT)
        finally:
            self.process.kill()

    def uploads(self) -> list[str]:
        return sorted(path.name for path in self.files.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def playwright():
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed: pip install -r examples/space/requirements.txt")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api")
    api.expect.set_options(timeout=1000 * TIMEOUT)
    with api.sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def browser(playwright, tmp_path_factory):
    microphone = tmp_path_factory.mktemp("microphone") / "conversation.wav"  # Chromium takes WAV only
    soundfile.write(microphone, *soundfile.read(AUDIO / "conversation.flac", dtype="int16"))
    flags = FLAGS.format(microphone=microphone).split()
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def server(playwright, tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"), "app.py")
    yield server
    server.stop()
    assert not server.uploads()
    assert set(server.connections.read_text().split()) <= {"127.0.0.1", "localhost", "0.0.0.0", "::1", "None"}


class Visitor:
    """One user with a browser of their own."""

    def __init__(self, browser, server: Server, folder: Path, **options):
        self.folder = folder
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}).new_page()
        self.page.set_default_timeout(1000 * TIMEOUT)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(server.url)
        self.see("The talkers will be here")

    def see(self, text) -> None:
        from playwright.sync_api import expect

        expect(self.page.get_by_text(text).first).to_be_visible()

    def upload(self, path: Path, place: int = 0) -> None:
        """In the first or the second place for recordings."""
        with self.page.expect_response(re.compile("/upload")) as response:
            self.page.locator("input[type=file]").nth(place).set_input_files(path)
        assert response.value.ok
        self.page.get_by_label("Clear").last.wait_for()

    def press(self, button: str) -> None:
        self.page.get_by_role("button", name=button, exact=True).click()

    def find_talkers(self) -> int:
        """How many there are."""
        self.press("Find the talkers")
        self.see(NUMBER)
        number = self.page.get_by_text(NUMBER).inner_text().split()[0]
        self.see(f"Talker {number}")
        return int(number)

    def enrol(self, name: str) -> None:
        """One of the examples."""
        self.press(f"{name} alone")
        self.page.get_by_label("Clear").last.wait_for()
        self.press("Enrol the voice")
        self.see(re.compile(f"^{name} (is|could)"))

    def sounds(self) -> list[np.ndarray]:
        """What the page offers to listen to, besides uploads: (samples,)."""
        found = []
        for link in self.page.locator("a[download]").all():
            response = self.page.request.get(link.get_attribute("href"))
            assert response.ok
            samples, rate = soundfile.read(io.BytesIO(response.body()), dtype="float32")
            assert rate == 16000
            found.append(samples)
        return found

    def photograph(self, name: str) -> None:
        self.page.screenshot(path=self.folder / f"{name}.png", full_page=True)


@pytest.fixture
def visit(browser, server, tmp_path):
    """Makes visitors. In the end, their browsers have called nobody else and met no errors."""
    visitors: list[Visitor] = []

    def enter(**options) -> Visitor:
        visitors.append(Visitor(browser, server, tmp_path, **options))
        return visitors[-1]

    yield enter
    for visitor in visitors:
        visitor.page.context.close()
        assert visitor.requests and not [url for url in visitor.requests if not LOCAL.match(url)]
        assert not visitor.errors


def test_upload_separate_and_diarize(visit):
    visitor = visit()
    visitor.photograph("empty")
    visitor.upload(AUDIO / "conversation.flac")
    visitor.photograph("uploaded")
    num_talkers = visitor.find_talkers()
    assert num_talkers >= 2
    recording, _ = soundfile.read(AUDIO / "conversation.flac", dtype="float32")
    voices = visitor.sounds()
    assert len(voices) == num_talkers
    assert all(len(voice) == len(recording) and np.abs(voice).max() > 0.05 for voice in voices)
    picture = visitor.page.locator("img").first
    assert picture.evaluate("image => image.complete && image.naturalWidth") >= 1000
    visitor.photograph("talkers")


def test_enrol_and_verify(visit):
    visitor = visit()
    visitor.press("Anna and Ben at once")
    visitor.page.get_by_label("Clear").first.wait_for()
    assert visitor.find_talkers() == 2, "the example says how many there are"
    visitor.enrol("Anna")
    visitor.photograph("anna")
    visitor.enrol("Ben")
    visitor.see(re.compile(r"^A score is a cosine"))
    visitor.photograph("anna_and_ben")
    words = visitor.page.get_by_text(re.compile(r"times likelier to be (one person than two|two people than one)$"))
    assert words.count() == 4, "two voices, compared with two talkers"
    headings = visitor.page.get_by_role("heading").all_inner_texts()
    found = dict(re.findall(r"^(Anna|Ben) is talker (\d)$", "\n".join(headings), re.MULTILINE))
    assert set(found) == {"Anna", "Ben"} and set(found.values()) == {"1", "2"}, "nobody is two talkers"
    for name, number in found.items():
        visitor.see(f"Talker {number}, {name}")
    visitor.press("Forget all voices")
    visitor.see("Enrolled voices will be here")
    assert not words.count()


def test_a_voice_can_be_enrolled_first_whatever_its_name(visit):
    visitor = visit()
    visitor.upload(AUDIO / "anna.flac", place=1)
    visitor.press("Enrol the voice")
    visitor.see("Whose voice is it? Type a name.")
    visitor.photograph("no_name")
    visitor.page.get_by_label("Name").fill("<b>A</b> | *$x_1$* &")
    visitor.press("Enrol the voice")
    visitor.see("Now find the talkers")
    visitor.press("Anna and Ben at once")
    visitor.find_talkers()
    visitor.see("<b>A</b> | *$x_1$* & is ")
    visitor.photograph("odd_name")


def test_record(visit):
    visitor = visit(permissions=["microphone"])
    visitor.page.get_by_label("Record audio").first.click()
    visitor.page.get_by_role("button", name="Record", exact=True).first.click()
    time.sleep(8)
    visitor.photograph("recording")
    with visitor.page.expect_response(re.compile("/upload")):
        visitor.page.get_by_role("button", name="Stop", exact=True).first.click()
    visitor.page.get_by_label("Clear").first.wait_for()
    assert visitor.find_talkers() >= 1
    visitor.photograph("recorded")


def test_what_is_no_recording_is_refused_with_a_clear_word(visit, tmp_path):
    visitor = visit()
    visitor.press("Find the talkers")
    visitor.see("There is no recording yet")
    (tmp_path / "<i>broken.wav").write_bytes(b"this is no audio" * 1000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(32000, np.int16), 16000)
    soundfile.write(tmp_path / "long.flac", np.tile(soundfile.read(AUDIO / "anna.flac")[0], 22), 16000)
    for name, refusal in (
        ("<i>broken.wav", "broken.wav holds no audio that can be read"),
        ("silent.wav", "silent.wav is silent"),
        ("long.flac", "long.flac is longer than 120 seconds"),
    ):
        visitor.upload(tmp_path / name)
        visitor.press("Find the talkers")
        visitor.see(refusal)
        visitor.photograph(name)
        visitor.page.get_by_label("Clear").first.click()
    visitor.upload(AUDIO / "meeting.flac")  # and all goes on
    assert visitor.find_talkers()


def test_a_huge_file_is_refused_before_it_is_decoded(visit, server, tmp_path):
    with (tmp_path / "huge.wav").open("wb") as file:
        file.truncate(51 * 2**20)
    visitor = visit()
    visitor.page.locator("input[type=file]").first.set_input_files(tmp_path / "huge.wav")
    visitor.see("exceed the maximum allowed size of 50")
    visitor.photograph("huge")
    content = {
        "name": "huge.wav",
        "mimeType": "audio/wav",
        "buffer": bytes(51 * 2**20),
    }  # past the browser's own check
    response = visitor.page.request.post(f"{server.url}/gradio_api/upload", multipart={"files": content})
    assert response.status == 413
    assert "huge.wav" not in server.uploads()


def test_two_users_at_once(visit):
    one, other = visit(), visit()
    for visitor, example in ((one, "A conversation of four"), (other, "Anna and Ben at once")):
        visitor.press(example)
        visitor.page.get_by_label("Clear").first.wait_for()
    one.press("Find the talkers")
    other.press("Find the talkers")
    for visitor, name in ((one, "conversation"), (other, "meeting")):
        visitor.see(NUMBER)
        visitor.see(f"Talker {visitor.page.get_by_text(NUMBER).inner_text().split()[0]}")
        recording, _ = soundfile.read(AUDIO / f"{name}.flac")
        voices = visitor.sounds()
        assert voices and all(len(voice) == len(recording) for voice in voices)
    one.enrol("Anna")
    other.see("Enrolled voices will be here")
    one.photograph("one")
    other.photograph("other")


def test_narrow_and_dark(visit):
    visitor = visit(color_scheme="dark", viewport={"width": 390, "height": 844})
    visitor.press("Anna and Ben at once")
    visitor.find_talkers()
    visitor.enrol("Anna")
    visitor.photograph("narrow_and_dark")
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_files_are_removed(playwright, tmp_path):
    """After KEEP_SECONDS, here a few. That nothing stays when the page stops, the fixture `server` checks."""
    server = Server(tmp_path, "-c", "import app; app.SWEEP_SECONDS = 1; app.KEEP_SECONDS = 3; app.main()")
    try:
        content = {"name": "anna.flac", "mimeType": "audio/flac", "buffer": (AUDIO / "anna.flac").read_bytes()}
        request = playwright.request.new_context()
        assert request.post(f"{server.url}/gradio_api/upload", multipart={"files": content}).ok
        assert "anna.flac" in server.uploads()
        deadline = time.monotonic() + TIMEOUT
        while "anna.flac" in server.uploads():
            assert time.monotonic() < deadline, "the file is still there"
            time.sleep(1)
    finally:
        server.stop()


def test_a_model_without_calibration_is_refused(playwright, tmp_path):
    CSCForPreTraining(CSCConfig.tiny(frame_activity=True)).save_pretrained(tmp_path)
    environment = os.environ | {"CSC_HF_MODEL": str(tmp_path), "PYTHONPATH": str(ROOT)}
    page = subprocess.run(
        [sys.executable, "app.py"], cwd=SPACE, env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert page.returncode == 1
    assert f"{tmp_path} has no calibration for enrolment by attention" in page.stderr
