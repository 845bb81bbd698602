"""A small evaluation on disk (reference, two variants, a harmless change) and a real browser."""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dit8.eval.ledger import LATENCY, SCORES, score_rows, upsert, write_run
from dit8.eval.margins import Margin
from dit8.eval.reading import Box, Reading
from dit8.eval.report import build, readings
from dit8.eval.report.data import Page
from dit8.eval.report.load import load
from dit8.eval.run import RunKey, read_run, write_run_record
from dit8.models.generate import save_sample
from dit8.models.types import Prompt

REFERENCE, GOOD, BAD, NOISE = (digit * 12 for digit in "0123")
COUNT = 60  # with far fewer no small difference is shown to be small
SIDE = 48
MARGINS = {
    "ocr_exact": Margin("ocr_exact", 0.3, "fraction of texts", "one in five, for a small set"),
    "ocr_ned": Margin("ocr_ned", 0.2, "edit distance / longer length", "one letter in five"),
}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE = 60  # seconds; every wait of these tests ends within one of them


@dataclass(frozen=True)
class Place:
    """Where the evaluation lies."""

    runs: Path
    results: Path

    @property
    def folders(self) -> list[Path]:
        return [self.runs / name for name in (REFERENCE, GOOD, BAD, NOISE)]


def prompts_of(count: int = COUNT) -> list[Prompt]:
    """Two categories; the first caption tries to break out of the page."""
    caption = {"high_level_description": '</script><b>bold</b> & "quoted" É', "n": 0}
    return [
        Prompt(
            f"p-{i:02d}",
            json.dumps(caption | {"n": i}, ensure_ascii=False, separators=(",", ":")),
            (f"WORD{i}",),
            100 + i,
            f"idea <i>{i}</i>",
            ("poster", "food & drink")[i % 2],
        )
        for i in range(count)
    ]


def write_evaluation(folder: Path) -> Place:
    """Write four runs: GOOD moves every picture a little, BAD loses every second text.

    In GOOD prompt 3 moves most in the picture, in BAD prompt 5.
    """
    place = Place(folder / "runs", folder / "results")
    prompts = prompts_of()
    variants = {REFERENCE: "bf16", GOOD: "int8", BAD: "q4_k", NOISE: "bf16"}
    generator = np.random.default_rng(0)
    for number, (run_id, variant) in enumerate(variants.items()):
        dtype = "bfloat16" if run_id == NOISE else "float32"
        key = RunKey(run_id, "mini", variant, "none", "stock", dtype, "torch-cpu", "tiny")
        reference = REFERENCE if run_id in (GOOD, BAD) else None
        write_run_record(place.runs / run_id, key, prompts, reference)
        for i, prompt in enumerate(prompts):
            pixels = np.full((SIDE, SIDE, 3), 20 + 3 * i, dtype=np.uint8)
            pixels[8:16, 8:40] = (200, 30 * number, 10)
            about = {"seconds": 0.25}
            latents = torch.zeros(1, 4)
            save_sample(prompt, Image.fromarray(pixels), latents, place.runs / run_id, about)
        run = read_run(place.runs / run_id)
        exact, ned, psnr = np.ones(COUNT), np.zeros(COUNT), np.full(COUNT, 40.0)
        ned[::3] = 0.1  # the reference is not perfect either
        if run_id == GOOD:
            ned += generator.normal(0, 0.005, COUNT).clip(0)
            psnr[3] = 30.0
        if run_id == BAD:
            exact[::2], ned[::2], psnr[5] = 0.0, 0.9, 20.0
        if run_id == NOISE:
            ned[1] = 0.05
        values = {"ocr_exact": exact, "ocr_ned": ned, "seconds": np.full(COUNT, 0.25)}
        if run_id != REFERENCE:
            values["psnr"] = psnr
        for scorer, scored in values.items():
            rows = score_rows(key, run.samples, scorer, scored)
            upsert(place.results / "scores.csv", SCORES, rows)
        times = {"n": COUNT, "p20_ms": 90.0 + number, "p50_ms": 100.0, "p80_ms": 120.0}
        stages = [asdict(key) | {"stage": stage} | times for stage in ("image", "step")]
        upsert(place.results / "latency.csv", LATENCY, stages)
        record = {
            "identity": {"dtype": dtype, "sampler": {"steps": 2}, "variant": {"name": variant}},
            "branch_bytes": (4_000_000, 2_100_000, 1_200_000, 4_000_000)[number],
            "git": {"commit": "0123456789abcdef", "dirty": False},
            "hardware": {"gpu": "a test"},
            "started": "2026-01-02T03:04:05+00:00",
        }
        write_run(place.results / "runs", run_id, record)
    return place


def read_nothing_wrong(paths: list[Path], workers: int) -> list[Reading]:
    """Stand in for the reader: what BAD lost is read as "SMUDGE", all else as expected."""
    found = []
    for path in paths:
        number = int(path.name[2:4])
        lost = path.parent.name == BAD and number % 2 == 0
        text = "SMUDGE" if lost else f"Word{number}"
        found.append(Reading((Box(text, 8.0, 8.0, 40.0, 16.0, 0.9),)))
    return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """An evaluation of the test's own, free to be damaged."""
    return write_evaluation(tmp_path)


@pytest.fixture(scope="session")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """An evaluation that no test changes."""
    return write_evaluation(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture
def margins() -> dict[str, Margin]:
    return MARGINS


@pytest.fixture
def fake_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_reader(monkeypatch)


def use_fake_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "read_files", read_nothing_wrong)
    monkeypatch.setattr(readings, "reader_identity", lambda: {"reader": "a stand-in"})
    monkeypatch.setattr(build, "reading_obstacle", lambda: None)


@pytest.fixture(scope="session")
def page(settled: Place) -> Page:
    """The page of that evaluation."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_fake_reader(monkeypatch)
        return build.make_page(load(settled.folders, settled.results), MARGINS, 1e7)


class Browser:
    """Headless Chromium driven by the DevTools protocol over two pipes, one tab at a time.

    Clicks and keys are input events of the browser, not calls of the page's own functions.
    """

    def __init__(self, process: subprocess.Popen, writer: int, reader: int):
        self.process, self.writer, self.reader = process, writer, reader
        self.buffer, self.number = b"", 0
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attach = {"targetId": target, "flatten": True}
        self.session = self.call("Target.attachToTarget", attach)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    session: str | None = None

    def call(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a command and wait for its answer; events on the way are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params or {}}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.writer, json.dumps(message).encode() + b"\0")
        answer = self.wait(lambda told: told.get("id") == self.number)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def wait(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            while b"\0" not in self.buffer:
                chunk = os.read(self.reader, 1 << 20)
                assert chunk, "chromium closed its pipe"
                self.buffer += chunk
            line, _, self.buffer = self.buffer.partition(b"\0")
            told = json.loads(line)
            self.events.append(told)
            if wanted(told):
                return told
        raise AssertionError("chromium did not answer in time")

    def open(
        self, path: Path, width: int = 1280, height: int = 900, *, script: bool = True, dark=False
    ) -> None:
        """Load a file at that size of window."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", {"features": scheme})
        self.call("Emulation.setScriptExecutionDisabled", {"value": not script})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", size)
        self.events.clear()
        self.call("Page.navigate", {"url": path.resolve().as_uri()})
        if not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.wait(lambda told: told.get("method") == "Page.loadEventFired")

    def ask(self, expression: str) -> Any:
        """Evaluate JavaScript in the page; its value comes back as JSON."""
        options = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", options)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Press the left button in the middle of an element."""
        place = self.ask(
            f"""(() => {{ const it = document.querySelector({json.dumps(selector)});
            it.scrollIntoView({{ block: "center", behavior: "instant" }});
            const box = it.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2, box.width]; }})()"""
        )
        x, y, width = place
        assert width > 0, f"{selector} is not visible"
        for kind in ("mousePressed", "mouseReleased"):
            event = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", event)

    def press(self, key: str, code: int = 0, text: str = "") -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            event = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code}
            if text and kind == "keyDown":
                event["text"] = text
            self.call("Input.dispatchKeyEvent", event)

    def choose(self, selector: str, value: str) -> None:
        """Focus a list by keyboard means and choose an entry by its first letters."""
        self.ask(f"document.querySelector({json.dumps(selector)}).focus()")
        for letter in value:
            self.press(letter, ord(letter.upper()), letter)
        got = self.ask(f"document.querySelector({json.dumps(selector)}).selectedOptions[0].text")
        assert got == value, (got, value)

    def picture(self, path: Path, *, full: bool = False) -> bytes:
        """Save what is seen as PNG."""
        data = self.call("Page.captureScreenshot", {"captureBeyondViewport": full})["data"]
        path.write_bytes(base64.b64decode(data))
        return path.read_bytes()

    @property
    def requests(self) -> list[str]:
        """Return every address asked for since the page was opened, its own and data: aside."""
        asked = [e for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        urls = [event["params"]["request"]["url"] for event in asked]
        return [url for url in urls if not url.startswith(("data:", "file:"))]

    @property
    def complaints(self) -> list[str]:
        """Return what the browser logged as an error or an uncaught exception."""
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(e["params"]) for e in self.events if e.get("method") in kinds]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium, started once a module; tests are skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: `apt-get install chromium`")
    to_browser, writer = os.pipe()
    reader, from_browser = os.pipe()
    profile = tmp_path_factory.mktemp("profile")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
    options += ["--disable-background-networking", "--no-first-run", f"--user-data-dir={profile}"]

    def set_pipes() -> None:
        # the protocol reads from descriptor 3 and writes to 4; out of the way first, as one of
        # ours may have the other's number
        inward, outward = os.dup(to_browser), os.dup(from_browser)
        os.dup2(inward, 3)
        os.dup2(outward, 4)

    process = subprocess.Popen(
        [CHROMIUM, *options],
        close_fds=False,
        preexec_fn=set_pipes,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        yield Browser(process, writer, reader)
    finally:
        os.close(writer)
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=PATIENCE)
