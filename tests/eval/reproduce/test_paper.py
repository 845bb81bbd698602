import re

import pytest

from dit8.eval.gpus import load_peaks
from dit8.eval.gpus import load_reported as load_quotes
from dit8.eval.reproduce.paper import COLUMNS, load_reported, reported_cell, sources_note
from dit8.eval.reproduce.table import Cell
from dit8.quant.errors import UserError

HEAD = ",".join(COLUMNS)
GOOD = "toy,2606.12280v1,abstract,rtx3090,int8,score,1.9,1.21,2.64,points,200 prompts"


def write(folder, *lines):
    (folder / "toy.csv").write_text("\n".join([*lines, ""]))
    return folder


def test_a_figure_with_its_interval_and_note(tmp_path):
    rows = load_reported("toy", write(tmp_path, HEAD, GOOD))
    assert reported_cell(rows, "int8", "score") == Cell(
        value=1.9, low=1.21, high=2.64, note="200 prompts"
    )
    assert reported_cell(rows, "int8", "score", "a100").reason == "not reported"
    assert reported_cell(rows, "nf4", "score").reason == "not reported"


def test_a_range_and_words(tmp_path):
    lines = ("toy,2606.12280,,,int8,time,,184,185,s,", "toy,2606.12280,,,int8,raw,,,,,near zero")
    rows = load_reported("toy", write(tmp_path, HEAD, *lines))
    assert reported_cell(rows, "int8", "time") == Cell(low=184.0, high=185.0)
    assert reported_cell(rows, "int8", "raw") == Cell(text="near zero")


def test_sources_are_named_once(tmp_path):
    lines = ('toy,"2606.2, 2606.1",,,a,b,1,,,s,', "toy,published file,,,c,d,1,,,s,")
    rows = load_reported("toy", write(tmp_path, HEAD, GOOD, *lines))
    assert sources_note(rows) == (
        "Reported figures: arXiv 2606.1, arXiv 2606.12280v1, arXiv 2606.2, published file; quoted, "
        "not measured here."
    )


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("other,2606.1,,,a,b,1,,,s,", "must have table toy, a source"),
        ("toy,,,,a,b,1,,,s,", "must have table toy, a source"),
        ("toy,2606.1,,,a,b,one,,,s,", "a figure, a whole range or a note in every line, got a b"),
        ("toy,2606.1,,,a,b,,1,,s,", "a whole range"),
        ("toy,2606.1,,,a,b,inf,,,s,", "a figure"),
        ("toy,2606.1,,,a,b,,,,s,", "or a note"),
        (GOOD, "must have a figure once, got rtx3090 int8 score 2 times; keep one line"),
    ],
    ids=["table", "source", "number", "half a range", "infinite", "nothing", "twice"],
)
def test_a_bad_line_is_named(tmp_path, line, match):
    with pytest.raises(UserError, match=match):
        load_reported("toy", write(tmp_path, HEAD, GOOD, line))


def test_a_bad_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"toy.csv must have the columns table, source.*got a, b"):
        load_reported("toy", write(tmp_path, "a,b"))
    with pytest.raises(UserError, match="must be a readable CSV, got FileNotFoundError; restore"):
        load_reported("none", tmp_path)


def test_committed_figures_name_known_cards_and_belong_to_a_table(committed):
    cards = {gpu.gpu for gpu in load_peaks(committed.parent / "conf" / "gpus" / "peaks.csv")}
    files = sorted((committed / "paper").glob("*.csv"))
    assert len(files) == 8
    for file in files:
        rows = load_reported(file.stem)
        assert {row.gpu for row in rows} <= cards | {""}
        # a section is written only where it was seen
        assert {row.section for row in rows} <= {"", "abstract"}


def test_what_two_files_quote_of_one_card_is_the_same(committed):
    """conf/gpus/reported.csv has the papers' words, results/paper/speed.csv their numbers."""
    said = load_quotes(committed.parent / "conf" / "gpus" / "reported.csv")
    names = {"int8": "int8_unfused", "fused_int8": "fused_int8"}
    checked = 0
    for row in load_reported("speed"):
        quantity, _, size = row.quantity.rpartition("_")
        if row.variant in names and quantity in ("image_s", "peak_gb"):
            words, _ = said[row.gpu, names[row.variant], int(size)]
            numbers = {float(number) for number in re.findall(r"[0-9]+(?:[.][0-9]+)?", words)}
            assert {n for n in (row.value, row.low, row.high) if n is not None} <= numbers
            checked += 1
    assert checked == 6
