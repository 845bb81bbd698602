"""What is committed is what the scripts make of the committed measurements."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from dit8.eval.accuracy import text_accuracy
from dit8.eval.ledger import SCORES, read_table
from dit8.models.types import Prompt
from dit8.quant.errors import UserError
from dit8.scripts import (
    ablation,
    bench_convert,
    check_clip_mini,
    compare,
    describe_mini,
    fill_readme,
    ladder,
    verdicts,
)

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(\s*([^)\s:]+)\)|src=\"([^\"]+)\"")


def test_the_card_is_what_the_measurements_say():
    assert (ROOT / "models" / "mini" / "README.md").read_text() == describe_mini.card()


def test_the_pages_hold_the_committed_tables():
    pages = fill_readme.pages()
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    assert pages[0] == ROOT / "README.md" and "| fused_int8 |" in texts[pages[0]]
    for page, text in texts.items():
        assert fill_readme.fill(text, page) == text, page
    blocks = fill_readme.BLOCK.findall("".join(texts.values()))
    assert len(blocks) == len(set(blocks)) == 9  # each table on one page


def test_links_of_the_pages_lead_to_files():
    """Headings too, as the web shows them: lower case, spaces as hyphens, no punctuation."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for found in LINK.findall(page.read_text(encoding="utf-8")):
            target = "".join(found)
            path, _, heading = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), (page.name, target)
            if heading:
                titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}
                assert heading in anchors, (page.name, target)


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    wide = [line for line in lines if len(line) > 100]
    assert len(lines) <= 150
    assert all(line.startswith("|") for line in wide) and len(wide) <= 7  # the table of five rows


def test_the_pictures_of_the_readme_are_small():
    for name in ("strip.png", "chart.svg"):
        assert 0 < (ROOT / "results" / "readme" / name).stat().st_size < 400_000


def test_a_readme_table_that_is_missing_is_named():
    with pytest.raises(UserError, match=r"README.md names results/none.md, which does not exist"):
        fill_readme.fill("<!-- table: results/none.md -->\n<!-- end -->")


def test_the_ladder_is_what_the_ledger_says(tmp_path, monkeypatch, capsys):
    committed = (ROOT / "results" / "tables" / "ladder_mini_planted.md").read_text()
    for name in ("runs.csv", "scores.csv"):
        (tmp_path / name).symlink_to(ROOT / "results" / name)
    monkeypatch.setattr("sys.argv", ["ladder.py", "mini_planted", "--results", str(tmp_path)])
    ladder.main()
    assert (tmp_path / "tables" / "ladder_mini_planted.md").read_text() == committed
    assert committed in capsys.readouterr().out


RAW = "bf16_mini_hard_against_bf16_mini_hard-raw_mini.md"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("fused_int8 int8 --engine dit8", "fused_int8_against_int8_mini.md"),
        ("bf16 bf16 --backend torch-cpu --other-prompts mini_hard-raw", RAW),
    ],
)
def test_the_comparisons_are_what_the_ledger_says(tmp_path, monkeypatch, words, name):
    for file in ("runs.csv", "scores.csv"):
        (tmp_path / file).symlink_to(ROOT / "results" / file)
    monkeypatch.setattr("sys.argv", ["compare.py", *words.split(), "--results", str(tmp_path)])
    compare.main()
    committed = (ROOT / "results" / "tables" / name).read_text()
    assert (tmp_path / "tables" / name).read_text() == committed


def test_the_verdicts_are_what_the_ledger_says(tmp_path, monkeypatch):
    for name in ("runs.csv", "scores.csv"):
        (tmp_path / name).symlink_to(ROOT / "results" / name)
    monkeypatch.setattr("sys.argv", ["verdicts.py", "--results", str(tmp_path)])
    verdicts.main()
    committed = (ROOT / "results" / "tables" / "verdicts_mini.md").read_text()
    assert (tmp_path / "tables" / "verdicts_mini.md").read_text() == committed


def test_the_ablation_is_what_the_ledger_says(tmp_path, monkeypatch, capsys):
    """The tables are committed if, and only if, their rows are."""
    for name in ("runs.csv", "scores.csv"):
        (tmp_path / name).symlink_to(ROOT / "results" / name)
    monkeypatch.setattr("sys.argv", ["ablation.py", "--results", str(tmp_path)])
    ablation.main()
    models = json.loads(capsys.readouterr().out.splitlines()[-1])["verdicts"].values()
    measured = any(verdict != "not measured" for rows in models for verdict in rows.values())
    for name in ("ablation.md", "ablation.csv"):
        committed = ROOT / "results" / "tables" / name
        assert committed.exists() == measured
        made = (tmp_path / "tables" / name).read_text()
        assert made == (committed.read_text() if measured else made)


def test_the_ranking_page_is_what_its_rows_say():
    rows = pd.read_csv(ROOT / "results" / "mini" / "clip_mini.csv")
    assert check_clip_mini.render(rows) == (ROOT / "results" / "tables" / "clip_mini.md").read_text(
        encoding="utf-8"
    )
    assert len(rows) == 15 and set(rows["n"]) == {200}


def test_the_conversion_page_is_what_its_rows_say():
    rows = pd.read_csv(ROOT / "results" / "convert" / "convert.csv")
    page = (ROOT / "results" / "tables" / "convert.md").read_text()
    assert bench_convert.render(rows) == page
    assert len(rows) == 7 and set(rows["cores"]) == {2}


def test_every_run_in_the_ledger_has_its_record():
    runs = set(read_table(ROOT / "results" / "scores.csv", SCORES)["run_id"])
    assert runs
    records = {path.stem for path in (ROOT / "results" / "runs").glob("*.json")}
    assert runs == {name for name in records if not name.endswith(".scorers")}
    assert {name.removesuffix(".scorers") for name in records} == runs


def test_accuracy_counts_texts_not_captions():
    prompts = [Prompt("a", "{}", ("X", "Y"), 0), Prompt("b", "{}", ("Z",), 1)]
    rows = pd.DataFrame({"prompt_id": ["b", "a"], "value": [1.0, 0.5]})
    found = text_accuracy(rows, prompts)
    assert (found.n, round(found.estimate * 3)) == (3, 2)
    assert found.low < 2 / 3 < found.high
    with pytest.raises(UserError, match="one row for each of 2 prompts, got 1"):
        text_accuracy(rows[:1], prompts)
