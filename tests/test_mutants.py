"""The pure parts of tests/mutants.py: what is changed, its names, the sample, the tests it runs."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = '''"""Doc with 1 < 2."""
LIMIT: int = 3


class Box:
    size: float = 0.5

    def has(self, x: "int | 7", é=True) -> bool:
        if not x.type == "cpu":
            raise ValueError(f"got {x + 1}")
        return 0 < x <= self.size and print(x, 2) is not None


def f(a, b):
    return max(f(a, (b)), a) - min(b, 1)
'''.encode()


@pytest.fixture
def mutants(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import mutants

    yield mutants
    for name in ("mutants", "mutation"):
        del sys.modules[name]


def changes(mutants: ModuleType, sources: dict[str, bytes]) -> dict[str, tuple[bytes, bytes]]:
    found = {}
    for mutant in mutants.mutation.candidates(sources):
        source = sources[mutant.path]
        line = source[: mutant.start].count(b"\n")
        assert mutant.apply(source).count(b"\n") == source.count(b"\n")
        assert mutants.mutation.compiled(source) != mutants.mutation.compiled(mutant.apply(source))
        pair = (text.splitlines()[line].strip() for text in (source, mutant.apply(source)))
        found[mutant.name] = tuple(pair)
    return found


def test_changes_code_and_leaves_messages_annotations_and_docstrings(mutants) -> None:
    found = {name: new for name, (_, new) in changes(mutants, {"quant/a.py": SOURCE}).items()}
    last = b"return 0 < x <= self.size and print(x, 2) is not None"
    assert found == {
        "quant/LIMIT/const/1": b"LIMIT: int = 4",
        "quant/Box.size/const/1": b"size: float = 1.5",
        "quant/Box.has/flag/1": 'def has(self, x: "int | 7", é=False) -> bool:'.encode(),
        "quant/Box.has/not/1": b'if (x.type == "cpu"):',
        "quant/Box.has/const/1": last.replace(b"0", b"1"),
        "quant/Box.has/compare/1": last.replace(b"0 <", b"0 <="),
        "quant/Box.has/compare/2": last.replace(b"<=", b"<"),
        "quant/Box.has/compare/3": last.replace(b"is not", b"is"),
        "quant/Box.has/bool/1": last.replace(b"and", b"or"),
        "quant/f/minmax/1": b"return min(f(a, (b)), a) - min(b, 1)",
        "quant/f/minmax/2": b"return max(f(a, (b)), a) - max(b, 1)",
        "quant/f/drop/1": b"return (f(a, (b))) - min(b, 1)",
        "quant/f/drop/2": b"return max(f(a, (b)), a) - (b)",
        "quant/f/swap/1": b"return max(f(b, (a)), a) - min(b, 1)",
        "quant/f/sign/1": b"return max(f(a, (b)), a) + min(b, 1)",
        "quant/f/const/1": b"return max(f(a, (b)), a) - min(b, 2)",
    }


def test_names_and_sample_outlive_moves_and_an_edit_renames_its_own_function_only(mutants) -> None:
    one, two = (
        b"def f(a):\n    from quant.x import y\n    return y(a) + 1\n",
        b"def f(a):\n    return a - 1\n\n\ndef g(a):\n    return a < 1\n",
    )
    before = changes(mutants, {"quant/one.py": one, "quant/two.py": two})
    moved = {
        "src/dit8/quant/b/two.py": one.replace(b"quant.x", b"dit8.quant.x"),
        "src/dit8/quant/one.py": b"\n\nimport os\n" + two,
    }
    assert changes(mutants, moved) == before
    draw, candidates = mutants.mutation.draw, mutants.mutation.candidates
    drawn = [m.name for m in draw(candidates(moved), moved, 3, seed=1)]
    here = {"quant/one.py": one, "quant/two.py": two}
    assert drawn == [m.name for m in draw(candidates(here), here, 3, seed=1)]
    assert set(drawn) < set(before) and len(before) == 6
    edited = changes(mutants, {**here, "quant/one.py": one.replace(b"+ 1", b"+ 2")})
    assert {name.split("@")[0] for name in edited.keys() ^ before.keys()} == {"quant/f"}
    assert len(edited.keys() & before.keys()) == 4


def test_gpu_files_and_what_compiles_to_the_same_code_are_not_drawn(mutants) -> None:
    sources = {
        "kernels/a_triton.py": b"X = 1\n",
        "other/a.py": b"X = 1\n",
        "eval/stats.py": b"def f():\n    return 1\n    x = 2 < 3\n",  # never compiled: after return
    }
    candidates = mutants.mutation.candidates(sources)
    assert {mutant.path for mutant in candidates} == {"eval/stats.py"}
    drawn = mutants.mutation.draw(candidates, sources, 9, seed=0)
    assert "eval/f/const/1" in [mutant.name for mutant in drawn]
    assert len(drawn) < len(candidates)


def test_tests_are_ordered_by_name_then_by_imports_in_between(mutants) -> None:
    sources = {
        "dit8/quant/a.py": b"",
        "dit8/quant/b.py": b"from dit8.quant import a",
        "scripts/run.py": b"def main():\n    import dit8.quant.b",
        "tests/quant/conftest.py": b"from .helper import x",
        "tests/quant/helper.py": b"from dit8.quant.b import c",
        "tests/quant/test_a.py": b"",
        "tests/quant/test_b.py": b"import dit8.quant.b",
        "tests/eval/test_c.py": b"from dit8.quant.a import c",
        "tests/scripts/test_run.py": b"",
        "tests/test_nothing.py": b"import json",
    }
    reach = mutants.mutation.tests_by_module(sources)
    assert reach["dit8/quant/a.py"] == [
        *("tests/quant/test_a.py", "tests/eval/test_c.py", "tests/quant/test_b.py"),
        "tests/scripts/test_run.py",
    ]
    assert reach["scripts/run.py"] == ["tests/scripts/test_run.py"]
    assert reach["tests/quant/helper.py"] == ["tests/quant/test_a.py", "tests/quant/test_b.py"]


def test_files_count_from_the_first_until_the_time_is_full(mutants) -> None:
    seconds = {"a": 10.0, "slow": 50.0, "b": 15.0, "c": 6.0, "d": 1.0}
    files = ["slow", "a", "b", "c", "d"]
    assert mutants.choose(files, seconds, 30.0) == (["a", "b"], None)
    assert mutants.choose(files, seconds, 5.0) == (["a"], None)  # one at least
    del seconds["b"]
    assert mutants.choose(files, seconds, 30.0) == (["a"], "b")


def test_share_counts_killed_among_all_that_were_drawn(mutants) -> None:
    outcomes = {"a": "killed", "b": "survived", "c": "undecided", "d": "killed", "other": "killed"}
    results = {name: {"outcome": outcome, "by": ""} for name, outcome in outcomes.items()}
    results["d"]["by"] = "time-out"
    assert mutants.summary(results, "abcd") == {
        **{"n": 4, "killed": 2, "share": 0.5, "timed_out": ["d"]},
        **{"survived": ["b"], "undecided": ["c"]},
    }
