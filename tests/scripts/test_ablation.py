"""scripts/ablation.py: which commands it starts and when, what it keeps, what it says."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dit8.conf.paths import ROOT
from dit8.eval.ablation import ALPHAS, CELLS, REFERENCE, SCORERS
from dit8.eval.ledger import SCORES as LEDGER
from dit8.eval.ledger import upsert
from dit8.scripts import ablation, ablation_run, job_queue
from dit8.scripts.ablation_run import Options, evaluate_command, measure, quantize_command
from dit8.scripts.cli import compose
from dit8.scripts.job_queue import Ended

CAPTIONS = 5
NAMED = {cell.name: cell for cell in (REFERENCE, *CELLS)}
ALONE = ("ocr_exact", "ocr_ned")


class Fake:
    """Stands in for the scripts: draws folders, keeps rows, fails where it is told to.

    A command ends when it has been looked at twice; `log` has its beginning and its end.
    """

    def __init__(self, options: Options):
        self.options = options
        self.fail: set[str] = set()
        self.log: list[tuple[str, str]] = []
        self.commands: dict[str, list[str]] = {}

    def __call__(self, command):
        return FakeProcess(self, list(command))

    @property
    def begun(self) -> list[str]:
        return [name for event, name in self.log if event == "begin"]

    def ledger(self, model: str, name: str, scorers) -> None:
        cell = NAMED[name]
        rows = [
            {"run_id": f"{model}-{name}", "model": model, "variant": cell.variant,
             "recipe": cell.recipe, "engine": "stock", "dtype": cell.dtype,
             "backend": self.options.backend, "prompt_set": self.options.prompts,
             "prompt_id": f"p{index}", "seed": index, "scorer": scorer, "value": 0.1 * index}
            for index in range(self.options.n)
            for scorer in scorers
        ]  # fmt: skip
        upsert(Path(self.options.results) / "scores.csv", LEDGER, rows)


class FakeProcess:
    def __init__(self, fake: Fake, command: list[str]):
        self.fake, self.looks = fake, 0
        self.name, self.effect = self.understand(command)
        fake.log.append(("begin", self.name))
        fake.commands[self.name] = command

    def understand(self, command):
        script = command[1]
        given = dict(word.split("=", 1) for word in command[2:] if "=" in word)
        if script == "scripts/score.py":
            folder, reference = Path(command[2]), Path(command[4])
            model = folder.name.split("-")[0]
            return f"{model} bf16 scores", lambda: self.score(folder, reference)
        if script == "scripts/quantize.py":
            return f"{given['model']} calibration", lambda: {}
        recipe = given.get("recipe.name", given.get("recipe", "none"))
        key = (given["variant"], recipe, given["dtype"])
        names = {(c.variant, c.recipe, c.dtype): c.name for c in NAMED.values()}
        return f"{given['model']} {names[key]}", lambda: self.evaluate(given["model"], names[key])

    def evaluate(self, model: str, name: str) -> dict:
        out = Path(self.fake.options.out)
        assert name in ("fp32", "bf16") or (out / f"{model}-fp32").exists(), "no reference"
        folder = out / f"{model}-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        own = ALONE if name in ("fp32", "bf16") else SCORERS
        self.fake.ledger(model, name, own)
        return {"run_id": folder.name, "pictures": str(folder)}

    def score(self, folder: Path, reference: Path) -> dict:
        assert folder.exists() and reference.exists()
        assert reference.name == folder.name.replace("bf16", "fp32")
        self.fake.ledger(folder.name.split("-")[0], "bf16", SCORERS)
        return {}

    def ended(self):
        self.looks += 1
        if self.looks < 2:
            return None
        self.fake.log.append(("end", self.name))
        if self.name in self.fake.fail:
            return Ended(2, "", f"10%|\rTraceback\nevaluate: {self.name} is no good\n", 1.0)
        return Ended(0, f"a table\n{json.dumps(self.effect())}\n", "", 1.0)

    def tell(self):
        raise AssertionError("nothing is to be stopped")


@pytest.fixture
def options(tmp_path) -> Options:
    return Options(
        models=("mini", "mini_planted"),
        cells=tuple(NAMED),
        prompts="mini_hard",
        n=CAPTIONS,
        hardware="cuda",
        results=str(tmp_path / "results"),
        out=str(tmp_path / "runs"),
        jobs=3,
        readers=2,
        discard_pictures=False,
        overrides=(),
    )


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(job_queue, "LOOK_SECONDS", 0.0)


@pytest.fixture
def fake(options) -> Fake:
    return Fake(options)


def label(model: str, cell) -> str:
    return f"{model} {cell.name}"


def test_what_cells_share_comes_first_and_is_waited_for(options, fake, capsys):
    assert measure(options, fake) == {}
    models, log = options.models, fake.log
    shared = [f"{model} calibration" for model in models]
    assert fake.begun[:2] == shared
    first = [label(model, NAMED[name]) for model in models for name in ("fp32", "bf16")]
    assert fake.begun[2:6] == first
    for before, after in ((shared, first), (first, fake.begun[6:])):
        last_end = max(log.index(("end", name)) for name in before)
        assert last_end < min(log.index(("begin", name)) for name in after)
    assert fake.begun[6:9] == ["mini auto", "mini_planted auto", "mini bf16 scores"]
    every = [label(model, cell) for model in models for cell in NAMED.values()]
    assert sorted(fake.begun) == sorted(every + shared + [f"{m} bf16 scores" for m in models])
    running = 0
    for event, _ in log:
        running += 1 if event == "begin" else -1
        assert 0 <= running <= 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "ablation: 62 of 62 cells are missing, up to 310 pictures (5 a cell), 3 cells at a time"
    )
    assert len(lines) == 1 + len(fake.begun) == 67
    assert lines[1] == "[1/66] mini calibration: 1 s, about 0 s left"
    assert lines[-1].startswith("[66/66] mini_planted comfy: 1 s, about 0 s left")

    assert len(list(Path(options.out).iterdir())) == 62  # nothing is discarded unasked


def test_the_time_left_is_that_of_the_steps_left(monkeypatch, capsys):
    clock = iter([110.0, 120.0, 250.0])
    monkeypatch.setattr(ablation_run.time, "monotonic", lambda: next(clock))
    progress = ablation_run.Progress(10, start=100.0)
    for _ in range(3):
        progress.say("x", Ended(1, "", "", 7.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "[1/10] x: FAILED after 7 s, about 90 s left"
    assert lines[1] == "[2/10] x: FAILED after 7 s, about 80 s left"
    assert lines[2] == "[3/10] x: FAILED after 7 s, about 6 min left"


def test_a_failed_cell_stops_no_other(options, fake, capsys):
    fake.fail = {"mini naive", "mini_planted auto"}
    failed = measure(options, fake)
    assert set(failed) == fake.fail
    assert failed["mini naive"].startswith("exit 2: evaluate: mini naive is no good (repeat: pyth")
    assert (
        "python scripts/evaluate.py model=mini variant=int8 recipe=naive " in failed["mini naive"]
    )
    assert len(fake.begun) == 66
    # started again, only the two are tried, after what they share
    fake.fail = {"mini_planted auto"}
    fake.log.clear()
    assert set(measure(options, fake)) == fake.fail
    shared = {f"{m} {what}" for m in options.models for what in ("calibration", "fp32")}
    assert set(fake.begun) == shared | {"mini naive", "mini_planted auto"}
    assert capsys.readouterr().err.splitlines()[-1].startswith("[6/6] mini")
    fake.fail = set()
    assert measure(options, fake) == {}
    fake.log.clear()
    assert measure(options, fake) == {}
    assert fake.begun == []


@pytest.mark.parametrize("shared", ["calibration", "fp32"])
def test_without_what_is_shared_a_model_is_not_tried(options, fake, shared):
    fake.fail = {f"mini {shared}"}
    failed = measure(options, fake)
    assert failed[f"mini {shared}"].startswith("exit 2: evaluate: mini ")
    why = "not tried: its model's calibration or reference failed"
    others = {label("mini", cell) for cell in NAMED.values()} - {f"mini {shared}"}
    assert {name for name, text in failed.items() if text == why} == others
    assert not set(fake.begun) & (others - {"mini fp32", "mini bf16"})
    assert len([name for name in fake.begun if name.startswith("mini_planted ")]) == 33


def test_bf16_arithmetic_that_failed_is_not_scored(options, fake):
    fake.fail = {"mini bf16"}
    assert set(measure(options, fake)) == fake.fail
    assert "mini bf16 scores" not in fake.begun and "mini naive" in fake.begun


def test_bf16_arithmetic_is_tried_again_when_its_scoring_failed(options, fake):
    options = replace(options, models=("mini",), cells=("bf16",), discard_pictures=True)
    fake.fail = {"mini bf16 scores"}
    assert set(measure(options, fake)) == {"mini bf16 scores"}
    assert Path(options.out, "mini-bf16").exists()  # not scored, so not discarded
    fake.fail = set()
    fake.log.clear()
    assert measure(options, fake) == {}
    assert fake.begun == ["mini calibration", "mini fp32", "mini bf16", "mini bf16 scores"]
    assert not Path(options.out, "mini-bf16").exists()
    score = fake.commands["mini bf16 scores"]
    assert score[2:5] == [f"{options.out}/mini-bf16", "--reference", f"{options.out}/mini-fp32"]
    assert score[5:] == [
        "--scorers", *SCORERS, "--results", options.results, "--readers", "2"
    ]  # fmt: skip


def test_only_the_cells_asked_for(options, fake):
    few = replace(options, models=("mini",), cells=("naive", "rotate"))
    assert measure(few, fake) == {}
    assert fake.begun == ["mini calibration", "mini fp32", "mini naive", "mini rotate"]


def test_pictures_go_when_they_are_scored_and_the_reference_when_nothing_needs_it(options, fake):
    kept = replace(options, models=("mini",))
    half = replace(kept, cells=("fp32", "bf16", "naive", "fp8"), discard_pictures=True)
    fake.fail = {"mini fp8"}
    measure(half, fake)
    assert {path.name for path in Path(options.out).iterdir()} == {"mini-fp32"}
    fake.fail = set()
    measure(half, fake)  # every cell asked for is there, others still need the reference
    assert {path.name for path in Path(options.out).iterdir()} == {"mini-fp32"}
    measure(replace(kept, cells=("rotate",)), fake)
    assert {path.name for path in Path(options.out).iterdir()} == {"mini-fp32", "mini-rotate"}
    shutil.rmtree(Path(options.out) / "mini-fp32")  # drawn again where it is lost
    assert measure(replace(kept, discard_pictures=True), fake) == {}
    assert {path.name for path in Path(options.out).iterdir()} == {"mini-rotate"}


def test_commands_compose_to_what_the_cell_says(options):
    # tests/eval/test_ablation.py composes every row's variant and recipe
    for name in ("fp32", "bf16", "naive", "ladder_3", "q4_k", "comfy"):
        cell = NAMED[name]
        command = evaluate_command(options, "mini_planted", cell)
        assert command[1] == "scripts/evaluate.py"
        config = compose("evaluate", command[2:])
        assert config.model.name == "mini_planted"
        assert (config.variant.name, config.dtype) == (cell.variant, cell.dtype)
        assert (config.prompts, config.n) == ("mini_hard", CAPTIONS)
        assert config.scorers == list(SCORERS)
        assert config.hardware.name == "cuda"
        assert (config.results, config.out) == (options.results, options.out)
        assert (config.readers, config.archive) == (2, False)
        if cell.recipe != "none":
            assert config.recipe.name == cell.recipe
    for name, alpha in ALPHAS.items():
        recipe = compose("evaluate", evaluate_command(options, "mini", NAMED[name])[2:]).recipe
        same = compose("evaluate", ["recipe=smooth_only"]).recipe
        assert recipe == replace(same, name=name, alpha=alpha)
    config = compose("quantize", quantize_command(options, "mini")[2:])
    assert (config.model.name, config.recipe.name) == ("mini", "smoothquant")


def test_overrides_reach_the_scripts_that_know_them(options):
    change = ("model.size=64", "steps=2", "checkpoints=elsewhere", "calibration.n=2")
    options = replace(options, overrides=change)
    assert evaluate_command(options, "mini", REFERENCE)[-4:] == list(change)
    assert quantize_command(options, "mini")[-3:] == [change[0], *change[2:]]


def test_processes_share_the_cores(monkeypatch):
    started = []
    monkeypatch.setattr(ablation_run, "Process", lambda *given: started.append(given))
    monkeypatch.setattr(ablation_run, "usable_cores", lambda: 16)
    for name in ablation_run.THREADS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    for jobs in (3, 40):
        ablation_run.start_process(jobs)(["x"])
    folder, environment = started[0][1:]
    assert (folder / "scripts" / "evaluate.py").exists()
    assert environment["OMP_NUM_THREADS"] == environment["OPENBLAS_NUM_THREADS"] == "5"
    assert environment["MKL_NUM_THREADS"] == "7" and "PATH" in environment
    assert started[1][2]["OMP_NUM_THREADS"] == "1"


def run_main(monkeypatch, capsys, *arguments: str) -> tuple[int, str, list[str]]:
    monkeypatch.setattr("sys.argv", ["ablation.py", *arguments])
    code = 0
    try:
        ablation.main()
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err.splitlines()


def test_main_runs_tabulates_and_names_what_failed(options, fake, monkeypatch, capsys):
    options = fake.options = replace(options, prompts="mini_easy", n=7)
    monkeypatch.setattr(ablation, "start_process", lambda jobs: fake)
    fake.fail = {"mini rotate"}
    arguments = ["--run", "--models", "mini", "--cells", "naive,rotate,fp8", "--n", "7"]
    arguments += ["--prompts", "mini_easy"]
    arguments += ["--results", options.results, "--out", options.out]
    code, out, err = run_main(monkeypatch, capsys, *arguments)
    assert code == 1
    assert err[-1].startswith("ablation: mini rotate failed, exit 2: evaluate: mini rotate is no g")
    document = json.loads(out.splitlines()[-1])
    assert list(document["failed"]) == ["mini rotate"]
    assert "naive" not in document["verdicts"]["mini"]
    assert document["verdicts"]["mini"]["fp8"] == "no difference seen"
    assert document["verdicts"]["mini"]["rotate"] == "not measured"
    tables = Path(options.results) / "tables"
    assert document["tables"] == [str(tables / "ablation.md"), str(tables / "ablation.csv")]
    text = (tables / "ablation.md").read_text()
    assert text in out and text.startswith("Ablation: prompts mini_easy, 7 captions, torch-cuda\n")
    assert (tables / "ablation.csv").read_text().count("\n") == 1 + len(CELLS) * 6 - 1
    fake.fail = set()
    assert run_main(monkeypatch, capsys, *arguments)[0] == 0


def test_without_run_nothing_is_started(options, fake, monkeypatch, capsys):
    def refuse(jobs):
        raise AssertionError("a process was started")

    monkeypatch.setattr(ablation, "start_process", refuse)
    fake.ledger("mini", "naive", SCORERS)
    arguments = ["--models", "mini", "--n", "5", "--results", options.results]
    code, out, _ = run_main(monkeypatch, capsys, *arguments)
    assert code == 0 and "| naive        | 0.2 [" in out
    assert not Path(options.out).exists()


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["--cells", "naive,magic"], "cells must be some of fp32,bf16,naive,.*, got 'magic'"),
        (["--n", "2"], "n must be at least 3, got 2; use 3"),
        (["--jobs", "0"], "jobs must be at least 1, got 0; use 1"),
        (["--readers", "-1"], "readers must be at least 1, got -1; use 1"),
    ],
)
def test_one_sentence(run_here, one_sentence, arguments, pattern):
    one_sentence(run_here("ablation", *arguments), "ablation", pattern)


class Forked:
    """Stands in for `job_queue.Process`: the same, started by the fixture, never stopped."""

    def __init__(self, start_script, command):
        self.process = start_script(Path(command[1]).stem, *command[2:], cwd=ROOT)

    def ended(self):
        ended = None if self.process.runs else self.process.end()
        return ended and Ended(ended.code, ended.stdout, ended.stderr, 1.0)


@pytest.mark.slow
def test_on_the_tiny_model(place, run_here, start_script, monkeypatch):
    monkeypatch.setattr(ablation_run, "Process", lambda command, *_: Forked(start_script, command))
    arguments = [
        *("--run", "--models", "mini", "--cells", "fp32,bf16,naive", "--n", "4"),
        *("--hardware", "cpu", "--jobs", "2", "--readers", "1", "--discard-pictures"),
        *("--results", str(place.results), "--out", str(place.out)),
        *("--overrides", "steps=2", *(word for word in place.common if "hardware" not in word)),
    ]
    ended = run_here("ablation", *arguments)
    assert ended.code == 0, ended.stderr
    assert ended.document["failed"] == {}
    verdicts = ended.document["verdicts"]["mini"]
    assert verdicts["bf16"] in ("helps", "hurts", "no difference seen")
    assert verdicts["rotate"] == "not measured"
    names = {path.name.rpartition("-")[0] for path in place.checkpoints.iterdir() if path.is_dir()}
    assert names == {"smoothquant", "naive"}
    # only the reference's pictures are left, for the cells that are still missing
    (left,) = place.out.iterdir()
    assert json.loads((left / "run.json").read_text())["key"]["variant"] == "bf16"
    assert json.loads((left / "run.json").read_text())["key"]["dtype"] == "float32"
    rows = (place.results / "scores.csv").read_bytes()
    again = run_here("ablation", *arguments)
    assert "0 of 3 cells are missing" in again.stderr
    assert (place.results / "scores.csv").read_bytes() == rows
    assert again.document == ended.document
