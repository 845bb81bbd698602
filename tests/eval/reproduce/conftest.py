"""A results folder with the committed benches and a ledger of the test's own."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from dit8.eval.ledger import SCORES, upsert
from dit8.eval.reproduce.table import Cell, Table
from dit8.eval.reproduce.tables import build_tables
from dit8.eval.run import RunKey

ROOT = Path(__file__).resolve().parents[3]
SAMPLER = {"name": "default_20", "steps": 20, "guidance": 3.0, "size_px": 256}


@dataclass(frozen=True)
class Ledger:
    """Adds runs to <results>/scores.csv and their records beside it."""

    results: Path

    def add(
        self,
        run_id: str,
        variant: str,
        values: Mapping[str, Sequence[float]],
        *,
        started: str = "2026-01-01",
        sampler: Mapping[str, object] = SAMPLER,
        gpu: str | None = "NVIDIA H200",
        prompts: Sequence[str] | None = None,
        **key: str,
    ) -> None:
        """Add a run: scorer -> one value a prompt; `key` goes before the mini's usual columns."""
        run = {
            **{"model": "mini", "recipe": "none", "engine": "stock", "dtype": "float32"},
            **{"backend": "torch-cuda", "prompt_set": "mini_hard"},
        } | key
        shared = asdict(RunKey(run_id=run_id, variant=variant, **run))
        rows = [
            shared | {"prompt_id": name, "seed": 0, "scorer": scorer, "value": float(value)}
            for scorer, column in values.items()
            for name, value in zip(prompts or map("p{}".format, range(9)), column, strict=False)
        ]
        upsert(self.results / "scores.csv", SCORES, rows)
        record = {
            **{"started": started, "run": shared, "config": {}, "hardware": {"gpu": gpu}},
            "identity": {"sampler": dict(sampler)},
            "prompts": sorted({row["prompt_id"] for row in rows}),
        }
        path = self.results / "runs" / f"{run_id}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    for name in ("bench", "convert"):
        (tmp_path / name).symlink_to(ROOT / "results" / name)
    return Ledger(tmp_path)


@pytest.fixture(scope="session")
def committed() -> Path:
    return ROOT / "results"


@pytest.fixture(scope="session")
def built(committed) -> dict[int, Table]:
    """The nine tables of the committed rows by number: ten seconds of resampling, spent once."""
    return {table.number: table for table in build_tables(committed)}


@pytest.fixture
def check_latex():
    return _check_latex


@pytest.fixture
def check_characters():
    return _check_characters


def _check_latex(text: str) -> None:
    """Check what breaks a compilation: characters, braces, mathematics, nesting, column counts."""
    assert text.isascii() and text.endswith("\\end{table}\n")
    comment, body = text.split("\n", 1)
    assert comment.startswith("% ")
    _check_characters(body.replace("{%\n", "{\n"))  # that one swallows the end of its line
    stack = []
    for kind, name in re.findall(r"\\(begin|end){(\w+)}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    width = len(re.search(r"\\begin{tabular}{([lr]+)}", text)[1])
    inside = text.split("\\begin{tabular}")[1].split("\\end{tabular}")[0]
    lines = [line for line in inside.splitlines() if line.endswith(r"\\")]
    assert len(lines) >= 3
    for line in lines:
        spans = [int(n) - 1 for n in re.findall(r"\\multicolumn{(\d+)}", line)]
        assert len(re.findall(r"(?<!\\)&", line)) + 1 + sum(spans) == width
        assert not line.startswith("[")  # \\ before it would take it for an argument
    ends = [int(end) for end in re.findall(r"\\cmidrule\(lr\){\d+-(\d+)}", text)]
    assert max(ends) == width


def _check_characters(text: str) -> None:
    bare = re.sub(r"\\[\\&%$#_{}]", "", text)
    depth = 0
    for character in bare:
        depth += (character == "{") - (character == "}")
        assert depth >= 0
    assert depth == 0 and bare.count("$") % 2 == 0
    outside = "".join(bare.split("$")[::2])
    assert not re.search(r"[%#_^~<>|]", outside)


@pytest.fixture(scope="session")
def real() -> dict:
    """Return what `Ledger.add` takes of a run on the real weights."""
    return {
        **{"model": "ideogram4", "engine": "dit8", "dtype": "bfloat16", "prompt_set": "bench300"},
        "sampler": {"name": "quality_48", "steps": 48, "guidance": 7.0, "size_px": 1024},
    }


@pytest.fixture(scope="session")
def cells() -> Callable[..., dict]:
    """Return a function: table, keys of a row -> (kind, place, label) -> cell."""

    def find(table, *names):
        rows = [row for row in table.rows if tuple(c.text for c in row[: len(names)]) == names]
        (row,) = rows
        return {
            (column.kind, column.where, column.label): cell
            for column, cell in zip(table.columns, row, strict=True)
        }

    return find


@pytest.fixture(scope="session")
def pick() -> Callable[..., Cell]:
    """Return a function: what `cells` found, beginning of a place, label, kind -> the cell."""

    def find(found, where, label, kind="measured"):
        (cell,) = (
            cell
            for (own, place, name), cell in found.items()
            if own == kind and place.startswith(where) and name == label
        )
        return cell

    return find
