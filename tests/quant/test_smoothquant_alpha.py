import dataclasses
import math

import pytest
import torch

from dit8.quant.calibrate import absmax
from dit8.quant.checkpoint.read import StoredWeight
from dit8.quant.errors import UserError
from dit8.quant.int8 import quantize_rows, quantize_weight
from dit8.quant.recipe import resolve_recipe
from dit8.quant.smoothquant import (
    column_absmax,
    output_error,
    search_alphas,
    smoothing_scale,
    snap_power_of_two,
)
from dit8.quant.types import Recipe

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)


def resolve(tiny, stats, sources, **fields):
    recipe = Recipe("test", **{"alpha_grid": GRID, "protect": 0, **fields})
    return resolve_recipe(recipe, tiny.architecture, stats, sources, model_key="tiny")


def plain_error(x, weight, scale):
    """|| X W^T - Q(X / s) Q(W s)^T || / || X W^T ||, spelled out."""
    x_codes, x_scales = quantize_rows(x / scale)
    codes, scales = quantize_weight(weight * scale)
    made = (x_codes.float() * x_scales) @ (codes.float() * scales[:, None]).T
    exact = x @ weight.T
    return float((made - exact).norm() / exact.norm())


def test_output_error_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 64, generator=generator)
    weight = torch.randn(300, 64, generator=generator)
    scale = torch.rand(64, generator=generator) + 0.5
    expected = plain_error(x, weight, scale)
    # x / s and x * (1 / s) may round to neighbouring codes: far below the error itself
    assert output_error(x, [StoredWeight(weight)], scale) == pytest.approx(expected, rel=0.02)
    parts = [StoredWeight(part) for part in weight.split([100, 200])]
    assert output_error(x, parts, scale) == pytest.approx(expected, rel=0.02)
    assert output_error(torch.zeros(2, 64), parts, scale) == 0.0


@pytest.mark.parametrize("carrier", ["folded", "explicit"])
def test_every_group_gets_the_strength_of_the_smallest_error(tiny, tiny_stats, carrier):
    sources = tiny.make_sources()
    resolved = resolve(tiny, tiny_stats, sources, smoothing_carrier=carrier)
    found = search_alphas(resolved, tiny.architecture, tiny_stats, sources)
    chosen = set()
    for branch, source in sources.items():
        for group in tiny.architecture.groups:
            key = f"{branch}/{group.name}"
            scheme = found.schemes[key]
            if group.role == "rest":
                assert scheme == resolved.schemes[key]
                assert key not in found.reasons
                continue
            weights = [source.weight(target) for target in group.targets]
            stacked = torch.cat([weight.full() for weight in weights])
            samples = tiny_stats.samples[key].float()
            errors = {}
            for alpha in GRID:
                scale = smoothing_scale(absmax(tiny_stats, key), column_absmax(weights), alpha)
                scale = snap_power_of_two(scale) if carrier == "folded" else scale
                errors[alpha] = plain_error(samples, stacked, scale)
            if math.isnan(errors[0.0]):  # the unconditional branch has no text: 0 / 0
                assert scheme.alpha == GRID[0]
                continue
            best = min(errors.values())
            assert errors[scheme.alpha] <= best * 1.02  # as above
            assert scheme.carrier == carrier
            assert found.reasons[key].startswith(f"alpha {scheme.alpha:g} has the smallest output")
            assert all(f"{alpha:g}: " in found.reasons[key] for alpha in GRID)
            chosen.add(scheme.alpha)
    assert len(chosen) > 1  # the search does choose


def test_a_planted_outlier_asks_for_smoothing(tiny, tiny_stats):
    """Channel 3 of one activation is 200 times larger: no smoothing drowns the others."""
    sources, key = tiny.make_sources(), "conditional/layers.0.feed_forward.w2"
    samples, steps = dict(tiny_stats.samples), dict(tiny_stats.step_absmax)
    samples[key], steps[key] = samples[key].clone(), steps[key].clone()
    samples[key][:, 3] *= 200
    steps[key][:, 3] *= 200
    stats = dataclasses.replace(tiny_stats, samples=samples, step_absmax=steps)
    resolved = resolve(tiny, stats, sources, alpha_grid=(0.0, 0.5), alpha=None)
    found = search_alphas(resolved, tiny.architecture, stats, sources)
    assert found.schemes[key].alpha == 0.5


def test_ties_go_to_the_first(tiny, tiny_stats):
    """Without any activation every strength has error zero."""
    sources = tiny.make_sources()
    samples = {key: torch.zeros_like(value) for key, value in tiny_stats.samples.items()}
    stats = dataclasses.replace(tiny_stats, samples=samples)
    for grid in ((0.75, 0.25), (0.25, 0.75)):
        resolved = resolve(tiny, stats, sources, alpha_grid=grid)
        found = search_alphas(resolved, tiny.architecture, stats, sources)
        roles = {group.name: group.role for group in tiny.architecture.groups}
        assert {
            scheme.alpha
            for key, scheme in found.schemes.items()
            if roles[key.partition("/")[2]] != "rest"
        } == {grid[0]}


def test_kept_groups_those_without_statistics_and_the_given_recipe_stay(tiny, tiny_stats):
    sources = tiny.make_sources()
    resolved = resolve(tiny, tiny_stats, sources, quantize_text=False, quantize_rest=True)
    before = dict(resolved.schemes)
    found = search_alphas(resolved, tiny.architecture, tiny_stats, sources)
    assert found.schemes["conditional/llm_cond_proj"].kind == "keep"
    rest = "conditional/layers.0.adaln_modulation"
    assert found.schemes[rest] == before[rest]
    assert before[rest].is_int8
    assert resolved.schemes == before
    assert resolved.reasons == {}
    assert found.recipe == resolved.recipe


def test_refuses_statistics_without_samples(tiny, tiny_stats):
    sources = tiny.make_sources()
    resolved = resolve(tiny, tiny_stats, sources)
    stats = dataclasses.replace(tiny_stats, samples={})
    with pytest.raises(UserError, match="sample rows of conditional/layers.0.*calibration.samples"):
        search_alphas(resolved, tiny.architecture, stats, sources)
