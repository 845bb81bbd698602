"""scripts/limits.py: what it evaluates, and the page it writes."""

import json
from types import SimpleNamespace

import pytest

from dit8.conf.paths import ROOT
from dit8.eval.ledger import SCORES, upsert
from dit8.eval.limits import DISTANCES, JUDGES, REFERENCE, SETTINGS, VARIANTS
from dit8.quant.errors import UserError
from dit8.scripts import limits
from dit8.scripts.cli import compose
from dit8.scripts.limits import commands, measure, parse


def keep(folder, setting, variant, *, n=4):
    """Write the rows and the record of one run."""
    run_id = f"{setting.name}-{variant}".replace(" ", "-")
    shared = {"run_id": run_id, "model": setting.model, "variant": variant}
    shared |= {"recipe": "smoothquant" if variant == "int8" else "none", "engine": "stock"}
    shared |= {"dtype": "float32", "backend": "torch-cpu", "prompt_set": "mini_hard"}
    names = JUDGES if variant == REFERENCE else (*JUDGES, *DISTANCES)
    rows = [
        shared | {"prompt_id": f"p{i}", "seed": i, "scorer": name, "value": 0.1 * i}
        for i in range(n)
        for name in names
    ]
    upsert(folder / "scores.csv", SCORES, rows)
    sampler = {"steps": setting.steps, "guidance": setting.guidance}
    sampler["final_guidance"] = setting.guidance
    record = {"identity": {"sampler": sampler}, "started": "2026-01-01"}
    (folder / "runs").mkdir(exist_ok=True)
    (folder / "runs" / f"{run_id}.json").write_text(json.dumps(record))


@pytest.fixture
def words(tmp_path):
    """Everything is there but q4_k at 48 steps; the default lies in the other ledger."""
    for folder in ("limits", "results"):
        (tmp_path / folder).mkdir()
    for setting in SETTINGS:
        for variant in (REFERENCE, *VARIANTS):
            if (setting.name, variant) != ("48 steps", "q4_k"):
                where = "results" if setting.name == "default" else "limits"
                keep(tmp_path / where, setting, variant)
    given = [f"results={tmp_path / 'limits'}", f"ledger={tmp_path / 'results'}"]
    return [*given, "hardware=cpu", "n=4"]


def test_the_page_is_written_from_both_ledgers(words, run_here, tmp_path):
    ended = run_here("limits", *words)
    assert ended.code == 0, ended.stderr
    page = tmp_path / "results" / "tables" / "limits_mini.md"
    assert ended.document["table"] == str(page) and page.read_text() in ended.stdout
    verdicts = ended.document["verdicts"]
    assert verdicts["q4_k"]["48 steps"] == "not measured"
    assert verdicts["fp8"]["default"] == "not decided"  # four captions decide nothing
    again = page.read_bytes()
    run_here("limits", *words)
    assert page.read_bytes() == again


def test_the_committed_page_is_what_the_ledgers_say(run_here, tmp_path):
    for name in ("scores.csv", "runs.csv", "runs"):
        (tmp_path / name).symlink_to(ROOT / "results" / name)
    run_here("limits", f"ledger={tmp_path}")
    made = (tmp_path / "tables" / "limits_mini.md").read_text(encoding="utf-8")
    assert made == (ROOT / "results" / "tables" / "limits_mini.md").read_text(encoding="utf-8")


def test_only_what_is_missing_is_evaluated(words, tmp_path):
    (command,) = commands(parse([*words, "readers=2"]))
    assert command[1:3] == ["scripts/evaluate.py", "-m"]
    config = compose("evaluate", command[3:])
    assert (config.variant.name, config.steps, config.guidance) == ("q4_k", 48, 3.0)
    assert (config.model.name, config.n, config.prompts) == ("mini", 4, "mini_hard")
    assert config.scorers == [*JUDGES, *DISTANCES]
    assert config.results == str(tmp_path / "limits") and not config.report
    assert config.readers == 2 and config.hardware.name == "cpu"
    keep(tmp_path / "limits", SETTINGS[2], "q4_k")
    assert commands(parse(words)) == []


def test_an_empty_ledger_needs_a_sweep_for_every_setting(tmp_path):
    todo = commands(parse([f"results={tmp_path}", f"ledger={tmp_path}"]))
    assert len(todo) == len(SETTINGS)
    assert all(f"variant={','.join(VARIANTS)}" in command for command in todo)
    assert [next(w for w in c if w.startswith("steps=")) for c in todo[:3]] == [
        "steps=20",
        "steps=12",
        "steps=48",
    ]


def test_a_failed_sweep_stops_and_an_interrupted_one_is_no_failure(words):
    def start(code):
        return lambda command, **kept: SimpleNamespace(returncode=code)

    measure(parse(words), start(0))
    with pytest.raises(UserError, match="sweep 1 of 1 must end with 0, got exit code 2 for"):
        measure(parse(words), start(2))
    with pytest.raises(KeyboardInterrupt):
        measure(parse(words), start(130))


def test_run_measures_before_it_tabulates(words, monkeypatch, capsys, tmp_path):
    begun = []

    def start(command, **kept):
        begun.append(command)
        keep(tmp_path / "limits", SETTINGS[2], "q4_k")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(limits, "measure", lambda options: measure(options, start))
    monkeypatch.setattr("sys.argv", ["limits.py", "--run", *words])
    limits.main()
    assert len(begun) == 1
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["verdicts"]["q4_k"]["48 steps"] != "not measured"


@pytest.mark.parametrize(
    ("word", "pattern"),
    [
        ("cuda", "limits: a word must be key=value, got 'cuda'; write hardware=cuda"),
        ("hardware=tpu", "hardware must be cuda or cpu, got 'tpu'"),
        ("n=2", "n must be a number of at least 3, got '2'"),
        ("n=few", "n must be a number of at least 3, got 'few'"),
    ],
)
def test_one_sentence(run_here, one_sentence, word, pattern):
    one_sentence(run_here("limits", word), "limits", pattern)
