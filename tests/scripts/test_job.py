"""The name of a recipe in the ledger: of a file of conf/recipe, or of what was changed in it."""

from dataclasses import replace

import pytest

from dit8.conf.paths import ROOT
from dit8.eval.job import prepare, recipe_config, recipe_label
from dit8.scripts.cli import compose

RECIPES = sorted(path.stem for path in (ROOT / "conf" / "recipe").glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_as_its_file_has_it_keeps_its_name(name):
    config = compose("evaluate", [f"recipe={name}"])
    assert config.recipe == recipe_config(name)
    assert recipe_label(config.recipe) == name


def test_what_the_command_line_changed_is_in_the_name():
    words = ["recipe.protect=2", "recipe.alpha=0.3", "recipe.keep=[a,b]"]
    recipe = compose("evaluate", words).recipe
    assert recipe_label(recipe) == 'smoothquant+alpha=0.3+keep=["a","b"]+protect=2'
    same = compose("evaluate", ["recipe.alpha=0.5"]).recipe
    assert recipe_label(same) == "smoothquant"
    assert recipe_label(replace(recipe, name="my_own")) == "my_own"
    assert recipe_config("my_own") is None


def test_a_changed_recipe_is_another_column_and_the_default_keeps_its_run(place):
    plain, same, changed, bf16 = (
        prepare(compose("evaluate", [*place.evaluation, f"variant={variant}", *words])).key
        for variant, words in (
            ("int8", []),
            ("int8", ["recipe.alpha=0.5"]),
            ("int8", ["recipe.alpha=0.3"]),
            ("bf16", ["recipe.alpha=0.3"]),
        )
    )
    assert plain == same and plain.recipe == "smoothquant"
    assert changed.recipe == "smoothquant+alpha=0.3" and changed.run_id != plain.run_id
    assert bf16.recipe == "none"
