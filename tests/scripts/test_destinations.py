"""Where a command writes unless told: own rows below outputs/, committed ones in results/."""

import argparse
import importlib
import re

import pytest

from dit8.conf.paths import ROOT
from dit8.scripts import ablation, bench_model, limits
from dit8.scripts.cli import compose
from dit8.scripts.table_request import read_words

OWN, COMMITTED = ROOT / "outputs" / "results", ROOT / "results"
# script -> its option, and the arguments that it must have
WRITERS = {
    "bench_convert": ("results", ["folder", "--stats", "file"]),
    "bench_gemm": ("results", []),
    "check_clip_mini": ("results", []),
    "coverage_map": ("results", []),
    "report": ("results", []),
    "score": ("results", ["folder"]),
    "check_arch": ("out", []),
    "check_vae": ("out", []),
    "parity_gguf": ("out", []),
    "parity_hpsv2": ("out", []),
    "run_ptx": ("out", []),
}
SHOWERS = {
    "compare": ["int8", "bf16"],
    "deployment_map": [],
    "ladder": ["mini"],
    "model_speed_table": [],
    "readme_strip": ["run", "run", "--prompts", "a", "--part", "1", "1", "1", "1"],
    "speed_tables": [],
    "verdicts": [],
}
# they have tests of their own here; bench_producers writes no file unless one is named
OTHERS = {"ablation", "bench_model", "bench_producers", "train_clip_mini"}


class Parsed(BaseException):
    """Ends a script when it has read its command line."""


@pytest.fixture
def parse(monkeypatch):
    """Return a function: script, arguments -> what its command line says, nothing run."""
    read = argparse.ArgumentParser.parse_args

    def stop(self, *given):
        raise Parsed(read(self, *given))

    def run(script, arguments):
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
        monkeypatch.setattr("sys.argv", [f"{script}.py", *arguments])
        with pytest.raises(Parsed) as parsed:
            importlib.import_module(f"dit8.scripts.{script}").main()
        return parsed.value.args[0]

    return run


@pytest.mark.parametrize("script", WRITERS)
def test_rows_go_to_the_own_ledger(parse, script):
    option, arguments = WRITERS[script]
    assert (ROOT / getattr(parse(script, arguments), option)).is_relative_to(OWN)


@pytest.mark.parametrize("script", SHOWERS)
def test_committed_rows_are_shown(parse, script):
    assert ROOT / parse(script, SHOWERS[script]).results == COMMITTED


def test_every_script_with_such_an_option_is_in_a_table_above():
    option = re.compile(r'add(_argument)?\(\s*"--(results|out)"')
    found = {p.stem for p in (ROOT / "scripts").glob("*.py") if option.search(p.read_text())}
    assert found == WRITERS.keys() | SHOWERS.keys() | OTHERS


@pytest.mark.parametrize(
    ("configuration", "keys"),
    {
        "evaluate": ("results", "out"),
        "fragility": ("results", "state"),
        "train_mini": ("out",),
    }.items(),
)
def test_a_configuration_writes_below_outputs(configuration, keys):
    config = compose(configuration, [])
    for key in keys:
        assert (ROOT / getattr(config, key)).is_relative_to(ROOT / "outputs")
    assert getattr(config, "curves", None) is None  # then they lie in out


def test_what_shows_committed_rows_keeps_new_ones_apart(monkeypatch):
    for words, folder in (([], COMMITTED), (["--run"], OWN)):
        monkeypatch.setattr("sys.argv", ["ablation.py", *words])
        assert ROOT / ablation.parse()[0].results == folder
        options = limits.parse([], is_run=bool(words))
        assert (ROOT / options.ledger, ROOT / options.results) == (folder, folder / "limits")
    assert ROOT / read_words(["table=3"]).request.results == OWN


def test_others_write_below_outputs(parse):
    assert (ROOT / parse("train_clip_mini", []).out).is_relative_to(ROOT / "outputs")
    assert parse("bench_producers", []).out is None


def test_the_demo_and_the_models_benchmark_write_below_outputs(monkeypatch):
    demo = importlib.import_module("dit8.scripts.demo")
    asked = []
    monkeypatch.setattr(demo, "demo", lambda captions, folder: asked.append(folder))
    monkeypatch.setattr("sys.argv", ["demo.py", "3"])
    demo.main()
    monkeypatch.setattr("sys.argv", ["demo.py", "3", "results/demo"])
    demo.main()
    monkeypatch.setattr(bench_model, "check", lambda device, plan, results: asked.append(results))
    monkeypatch.setattr("sys.argv", ["bench_model.py", "--check", "--device", "cpu"])
    bench_model.main()
    assert asked == ["outputs/demo", "results/demo", OWN]
