"""What is committed is what the committed rows give, byte for byte."""

import pytest

from dit8.eval.reproduce.render import render_latex
from dit8.eval.reproduce.table import KEY, tally
from dit8.eval.reproduce.tables import RENDERERS, write_tables


@pytest.fixture(scope="module")
def made(committed, built, tmp_path_factory):
    tables = tuple(built.values())
    return committed, tables, write_tables(tables, tmp_path_factory.mktemp("tables"))


def test_the_committed_tables_are_the_regenerated_ones(made):
    results, _, paths = made
    assert len(paths) == 9 * len(RENDERERS)
    for path in paths:
        committed = results / "tables" / path.name
        assert committed.read_bytes() == path.read_bytes(), path.name
    names = {path.name for path in (results / "tables").glob("table[0-9]*")}
    assert names == {path.name for path in paths}


def test_every_latex_table_compiles_as_far_as_a_small_parser_can_tell(made, check_latex):
    for table in made[1]:
        check_latex(render_latex(table))


def test_empty_cells_say_why_and_name_scripts_that_exist(made):
    results, tables, _ = made
    for table in tables:
        for row in table.rows:
            for cell in row:
                for word in cell.command.replace(";", " ").split():
                    if word.startswith("scripts/"):
                        assert (results.parent / word).is_file(), word


def test_the_mini_is_never_shown_as_the_real_model(made):
    for table in made[1]:
        for column in table.columns:
            if "mini" in column.where:
                assert "(not Ideogram 4)" in column.where
            assert column.kind == KEY or column.where
            assert (column.kind == "reported") == ("papers" in column.where + column.kind) or (
                column.where == "published files"
            )


def test_all_kinds_of_figures_are_there(made):
    assert all(count > 0 for count in tally(made[1]).values())


def test_sources_exist(made):
    results, tables, _ = made
    for table in tables:
        for source in table.sources:
            assert (results.parent / source).exists(), source
