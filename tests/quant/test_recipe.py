import dataclasses
import json

import pytest

from quant.act_stats import channel_crest
from quant.errors import UserError
from quant.recipe import quantized_linears, recipe_from_json, recipe_to_json, resolve_recipe
from quant.types import Recipe


@pytest.fixture
def state_dicts(tiny):
    modules = tiny.branch_modules(tiny.make_pipeline())
    return {branch: module.state_dict() for branch, module in modules.items()}


def resolve(tiny, stats, state_dicts, model_key="tiny", **fields):
    recipe = Recipe("test", **fields)
    return resolve_recipe(recipe, tiny.architecture, stats, state_dicts, model_key=model_key)


def test_half_protects_the_larger_crest_of_each_branch(tiny, tiny_stats, state_dicts):
    resolved = resolve(tiny, tiny_stats, state_dicts)
    crest = {
        (branch, layer): channel_crest(tiny_stats.step_absmax[f"{branch}/{layer}"]).max().item()
        for branch in state_dicts
        for layer in tiny.architecture.down_projections
    }
    expected = tuple(
        f"{branch}."
        + max(tiny.architecture.down_projections, key=lambda layer, b=branch: crest[b, layer])
        for branch in state_dicts
    )
    assert resolved.protected == expected  # 1 of 2 in each branch
    assert {layer.name: layer.crest for layer in resolved.why} == {
        f"{branch}.{layer}": value for (branch, layer), value in crest.items()
    }
    assert all(layer.damage > 0 for layer in resolved.why)


def test_a_count_protects_that_many(tiny, tiny_stats, state_dicts):
    assert len(resolve(tiny, tiny_stats, state_dicts, protect=2).protected) == 4
    assert resolve(tiny, tiny_stats, state_dicts, protect=0).protected == ()
    with pytest.raises(UserError, match="at most 2, .*got 3"):
        resolve(tiny, tiny_stats, state_dicts, protect=3)


def test_naive_recipe_needs_no_statistics(tiny, state_dicts):
    resolved = resolve(tiny, None, state_dicts, alpha=None, protect=0)
    assert (resolved.protected, resolved.why, resolved.prompts_key) == ((), (), None)
    for fields in ({"alpha": None}, {"protect": 0}):
        with pytest.raises(UserError, match="needs activation statistics.*scripts/calibrate.py"):
            resolve(tiny, None, state_dicts, **fields)


def test_refuses_incomplete_or_foreign_statistics(tiny, tiny_stats, state_dicts):
    incomplete = dataclasses.replace(tiny_stats, done=("a",))
    with pytest.raises(UserError, match="must cover 2 prompts, got 1; run scripts/calibrate.py"):
        resolve(tiny, incomplete, state_dicts)
    with pytest.raises(UserError, match="must be of model other, got tiny"):
        resolve(tiny, tiny_stats, state_dicts, model_key="other")


def test_quantized_linears_follow_the_recipe(tiny, tiny_stats, state_dicts):
    resolved = resolve(tiny, tiny_stats, state_dicts, quantize_llm_projection=False)
    names = {x.name for x in quantized_linears(tiny.architecture, resolved, "conditional")}
    protected = {name.removeprefix("conditional.") for name in resolved.protected}
    assert names == {x.name for x in tiny.architecture.stored} - protected - {"llm_cond_proj"}


@pytest.mark.parametrize("fields", [{}, {"alpha": None, "protect": 2, "smoothing_carrier": "x"}])
def test_json_gives_an_equal_recipe_back(tiny, tiny_stats, state_dicts, fields):
    if fields:
        fields = {**fields, "smoothing_carrier": "explicit"}
    resolved = resolve(tiny, tiny_stats, state_dicts, **fields)
    text = recipe_to_json(resolved)
    assert recipe_from_json(text) == resolved
    assert json.loads(text)["protected"] == list(resolved.protected)


def test_json_refuses_what_it_did_not_write(tiny, state_dicts):
    resolved = resolve(tiny, None, state_dicts, alpha=None, protect=0)
    value = json.loads(recipe_to_json(resolved))
    match = "must be a recipe written by this version, got"
    broken = [
        "{",
        "[]",
        json.dumps({**value, "extra": 1}),
        json.dumps({name: value[name] for name in value if name != "why"}),
        json.dumps({**value, "recipe": {"name": "x", "alpa": 0.5}}),
    ]
    for text in broken:
        with pytest.raises(UserError, match=match):
            recipe_from_json(text)
    with pytest.raises(UserError, match="alpha must lie in"):
        recipe_from_json(json.dumps({**value, "recipe": {"name": "x", "alpha": 2}}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "name must be a non-empty string, got ''"),
        ({"alpha": 1.5}, r"alpha must lie in \[0, 1\] or be null, got 1.5"),
        ({"alpha": True}, r"alpha must lie in \[0, 1\] or be null, got True"),
        ({"alpha": "0.5"}, r"alpha must lie in \[0, 1\] or be null, got '0.5'"),
        ({"smoothing_carrier": "fold"}, "one of folded, explicit, got 'fold'"),
        ({"protect": "all"}, "'half' or a count of layers per branch >= 0, got 'all'"),
        ({"protect": -1}, "got -1; use half"),
        ({"protect": True}, "got True; use half"),
        ({"quantize_llm_projection": 1}, "must be true or false, got 1"),
    ],
)
def test_recipe_refuses_fields_out_of_range(fields, message):
    with pytest.raises(UserError, match=message):
        Recipe(**{"name": "test", **fields})
