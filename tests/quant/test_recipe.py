import dataclasses
import json

import pytest

from dit8.kernels.backend import KernelError
from dit8.quant.calibrate import channel_crest
from dit8.quant.errors import UserError
from dit8.quant.recipe import quantized_linears, resolve_recipe, scheme_for
from dit8.quant.types import Group, Recipe, Scheme, recipe_from_json, recipe_to_json


@pytest.fixture
def sources(tiny):
    return tiny.make_sources()


def resolve(tiny, stats, sources, model_key="tiny", **fields):
    recipe = Recipe("test", **fields)
    return resolve_recipe(recipe, tiny.architecture, stats, sources, model_key=model_key)


def test_half_protects_the_larger_crest_of_each_branch(tiny, tiny_stats, sources):
    resolved = resolve(tiny, tiny_stats, sources)
    crest = {
        (branch, layer): channel_crest(tiny_stats.step_absmax[f"{branch}/{layer}"]).max().item()
        for branch in sources
        for layer in tiny.architecture.down_projections
    }
    expected = tuple(
        f"{branch}."
        + max(tiny.architecture.down_projections, key=lambda layer, b=branch: crest[b, layer])
        for branch in sources
    )
    assert resolved.protected == expected  # 1 of 2 in each branch
    assert {layer.name: layer.crest for layer in resolved.why} == {
        f"{branch}.{layer}": value for (branch, layer), value in crest.items()
    }
    assert all(layer.damage > 0 for layer in resolved.why)


def test_a_count_protects_that_many(tiny, tiny_stats, sources):
    assert len(resolve(tiny, tiny_stats, sources, protect=2).protected) == 4
    assert resolve(tiny, tiny_stats, sources, protect=0).protected == ()
    with pytest.raises(UserError, match="at most 2, .*got 3"):
        resolve(tiny, tiny_stats, sources, protect=3)


def test_naive_recipe_needs_no_statistics(tiny, sources):
    resolved = resolve(tiny, None, sources, alpha=None, protect=0)
    assert (resolved.protected, resolved.why, resolved.prompts_key) == ((), (), None)
    for fields in ({"alpha": None}, {"protect": 0}):
        with pytest.raises(UserError, match="needs activation statistics.*scripts/calibrate.py"):
            resolve(tiny, None, sources, **fields)


def test_refuses_incomplete_or_foreign_statistics(tiny, tiny_stats, sources):
    incomplete = dataclasses.replace(tiny_stats, done=("a",))
    with pytest.raises(UserError, match="must cover 2 prompts, got 1; run scripts/calibrate.py"):
        resolve(tiny, incomplete, sources)
    with pytest.raises(UserError, match="must be of model other, got tiny"):
        resolve(tiny, tiny_stats, sources, model_key="other")


def test_quantized_linears_follow_the_recipe(tiny, tiny_stats, sources):
    resolved = resolve(tiny, tiny_stats, sources, quantize_text=False)
    names = {x.name for x in quantized_linears(tiny.architecture, resolved, "conditional")}
    protected = {name.removeprefix("conditional.") for name in resolved.protected}
    blocks = {t for g in tiny.architecture.groups if g.role == "block" for t in g.targets}
    expected = {x.name for x in tiny.architecture.stored if x.parts[0] in blocks}
    assert names == expected - protected
    assert protected


def test_schemes_follow_the_rule_of_the_recipe(tiny, tiny_stats, sources):
    block, text, adaln = (
        Group("a", "norm", "norm", ("a",)),
        next(g for g in tiny.architecture.groups if g.role == "text"),
        next(g for g in tiny.architecture.groups if g.role == "rest"),
    )
    recipe = Recipe("test")
    assert scheme_for(recipe, block, 128) == Scheme("int8", 0.5, "folded")
    assert scheme_for(recipe, Group("a", None, "none", ("a",)), 128).carrier == "explicit"
    assert scheme_for(recipe, adaln, 128) == Scheme("keep")
    assert scheme_for(Recipe("test", quantize_rest=True), adaln, 128) == Scheme("int8")
    assert scheme_for(Recipe("test", quantize_text=False), text, 128) == Scheme("keep")
    rotated = Recipe("test", alpha=None, rotation=256)
    assert scheme_for(rotated, block, 768) == Scheme("int8", rotation=256)
    assert scheme_for(rotated, block, 832) == Scheme("int8", rotation=64)
    with pytest.raises(KernelError, match="834"):
        scheme_for(rotated, block, 834)
    static = Recipe("test", alpha=None, activation_scale="tensor")
    assert scheme_for(static, block, 128) == Scheme("int8", static=True)


def test_keeping_a_linear_keeps_its_group(tiny, tiny_stats, sources):
    name = "unconditional.layers.1.feed_forward.w3"
    resolved = resolve(tiny, tiny_stats, sources, protect=0, keep=(name,))
    kept = {key for key, scheme in resolved.schemes.items() if not scheme.is_int8}
    rest = {
        f"{branch}/{group.name}"
        for branch in sources
        for group in tiny.architecture.groups
        if group.role == "rest"
    }
    assert kept - rest == {"unconditional/layers.1.feed_forward.up"}
    with pytest.raises(UserError, match="keep names 'layers.9.w2', expected a linear of this"):
        resolve(tiny, tiny_stats, sources, keep=("layers.9.w2",))


@pytest.mark.parametrize("fields", [{}, {"alpha": None, "protect": 2, "smoothing_carrier": "x"}])
def test_json_gives_an_equal_recipe_back(tiny, tiny_stats, sources, fields):
    if fields:
        fields = {**fields, "smoothing_carrier": "explicit"}
    resolved = resolve(tiny, tiny_stats, sources, **fields)
    text = recipe_to_json(resolved)
    assert recipe_from_json(text) == resolved
    assert json.loads(text)["protected"] == list(resolved.protected)
    assert resolved.schemes.keys() == json.loads(text)["schemes"].keys()


def test_json_refuses_what_it_did_not_write(tiny, sources):
    resolved = resolve(tiny, None, sources, alpha=None, protect=0)
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
        ({"quantize_text": 1}, "quantize_text must be true or false, got 1"),
        ({"quantize_rest": "no"}, "quantize_rest must be true or false, got 'no'"),
        ({"alpha_grid": (0.5, 2.0)}, r"alpha must lie in \[0, 1\] or be null, got 2.0"),
        ({"activation_scale": "row"}, "one of token, tensor, got 'row'"),
        ({"method": "best"}, "one of rule, auto, got 'best'"),
        ({"rotation": 128}, "rotation must be one of 0, 4, 16, 64, 256, got 128"),
        ({"rotation": 64}, "rotation goes without smoothing, got rotation 64 and alpha 0.5"),
        ({"alpha": None, "rotation": 64, "activation_scale": "tensor"}, "scales per token"),
        ({"latency": 0}, "latency must be positive, got 0"),
    ],
)
def test_recipe_refuses_fields_out_of_range(fields, message):
    with pytest.raises(UserError, match=message):
        Recipe(**{"name": "test", **fields})
