import dataclasses

import pytest
import torch

from quant.act_stats import absmax
from quant.errors import UserError
from quant.int8 import quantize_weight
from quant.quantize import quantize_branch
from quant.smooth import smoothing_scale, snap_power_of_two
from quant.types import Recipe, ResolvedRecipe

W1, W2, W3 = (f"layers.0.feed_forward.w{number}" for number in (1, 2, 3))
BRANCH = "conditional"


def resolved(*protected, **fields):
    names = tuple(f"{BRANCH}.{name}" for name in protected)
    return ResolvedRecipe(Recipe("test", **fields), names, (), "tiny", "two")


def quantize(tiny, stats, recipe, tensors=None):
    tensors = tensors or tiny.make_branch(0).state_dict()
    return quantize_branch(tensors, tiny.architecture, BRANCH, recipe, stats)


def test_naive_codes_are_those_of_the_plain_weights(tiny):
    tensors = tiny.make_branch(0).state_dict()
    got = quantize(tiny, None, resolved(alpha=None)).tensors
    block = "layers.1.attention"
    qkv = torch.cat([tensors[f"{block}.to_{letter}.weight"] for letter in "qkv"])
    for name, weight in {
        f"{block}.qkv": qkv,
        f"{block}.o": tensors[f"{block}.to_out.0.weight"],
        W2: tensors[f"{W2}.weight"],
        "llm_cond_proj": tensors["llm_cond_proj.weight"],
    }.items():
        codes, scales = quantize_weight(weight)
        assert torch.equal(got[f"{name}.wq"], codes)
        assert torch.equal(got[f"{name}.ws"], scales)
    assert not [name for name in got if name.endswith(".smooth") or ".to_" in name]
    assert torch.equal(got["llm_cond_proj.bias"], tensors["llm_cond_proj.bias"])


@pytest.mark.parametrize("carrier", ["folded", "explicit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_listed_linears_and_fold_sources_change(tiny, tiny_stats, carrier, dtype):
    tensors = {name: t.to(dtype) for name, t in tiny.make_branch(0).state_dict().items()}
    got = quantize(tiny, tiny_stats, resolved(smoothing_carrier=carrier), tensors).tensors
    sources = {fold.source for fold in tiny.architecture.folds}
    for name, tensor in tensors.items():
        module = name.rpartition(".")[0]
        if module in tiny.architecture.linears:
            continue
        assert got[name].dtype == dtype  # stored as the source has it
        assert torch.equal(got[name], tensor) == (module not in sources or carrier == "explicit")


def test_explicit_smooth_is_the_true_scale_and_multiplies_the_columns(tiny, tiny_stats):
    tensors = tiny.make_branch(0).state_dict()
    got = quantize(tiny, tiny_stats, resolved(smoothing_carrier="explicit")).tensors
    up = [tensors[f"{name}.weight"] for name in (W1, W3)]
    scale = smoothing_scale(absmax(tiny_stats, f"{BRANCH}/layers.0.feed_forward.up"), up, 0.5)
    for name in (W1, W3):
        assert torch.equal(got[f"{name}.smooth"], scale)
        assert torch.equal(got[f"{name}.wq"], quantize_weight(tensors[f"{name}.weight"] * scale)[0])
    assert not torch.equal(scale, snap_power_of_two(scale))


def test_folded_weights_carry_snapped_scales_columns_then_rows(tiny, tiny_stats):
    tensors = tiny.make_branch(0).state_dict()
    got = quantize(tiny, tiny_stats, resolved()).tensors
    columns, rows = (
        snap_power_of_two(
            smoothing_scale(
                absmax(tiny_stats, f"{BRANCH}/layers.0.feed_forward.{fold}"),
                [tensors[f"{name}.weight"] for name in targets],
                0.5,
            )
        )
        for fold, targets in (("up", (W1, W3)), ("w2", (W2,)))
    )
    w3 = tensors[f"{W3}.weight"] * columns / rows[:, None]
    assert torch.equal(got[f"{W3}.wq"], quantize_weight(w3)[0])
    assert torch.equal(got[f"{W3}.ws"], quantize_weight(w3)[1])
    norm = "layers.0.ffn_norm1.weight"
    assert torch.equal(got[norm], tensors[norm] / columns)


def test_protected_down_projection_keeps_its_weight(tiny, tiny_stats):
    tensors = {name: t.bfloat16() for name, t in tiny.make_branch(0).state_dict().items()}
    got = quantize(tiny, tiny_stats, resolved(W2), tensors)
    assert torch.equal(got.tensors[f"{W2}.weight"], tensors[f"{W2}.weight"])
    assert got.tensors[f"{W2}.weight"].dtype == torch.bfloat16
    assert f"{W2}.wq" not in got.tensors


def test_protected_layer_that_shares_a_fold_absorbs_the_scale(tiny, tiny_stats):
    tensors = tiny.make_branch(0).state_dict()
    got = quantize(tiny, tiny_stats, resolved(W1)).tensors
    norm = "layers.0.ffn_norm1.weight"
    scale = tensors[norm] / got[norm]
    assert (scale != 1).any()
    assert torch.equal(got[f"{W1}.weight"], tensors[f"{W1}.weight"] * scale)
    explicit = quantize(tiny, tiny_stats, resolved(W1, smoothing_carrier="explicit")).tensors
    assert torch.equal(explicit[f"{W1}.weight"], tensors[f"{W1}.weight"])
    assert f"{W1}.smooth" not in explicit


def test_unquantized_text_projection_is_left_alone(tiny, tiny_stats):
    tensors = tiny.make_branch(0).state_dict()
    got = quantize(tiny, tiny_stats, resolved(quantize_llm_projection=False)).tensors
    for name in ("llm_cond_proj.weight", "llm_cond_proj.bias", "llm_cond_norm.weight"):
        assert torch.equal(got[name], tensors[name])


def test_report_has_crest_protection_and_weight_error(tiny, tiny_stats):
    reports = quantize(tiny, tiny_stats, resolved(W2)).reports
    assert [report.name for report in reports] == [x.name for x in tiny.architecture.stored]
    assert [report.name for report in reports if report.protected] == [W2]
    for report in reports:
        assert report.branch == BRANCH
        assert report.crest >= 1
        # uniform weights: a step is max / 127, its rounding error 1 / sqrt(12) of it, the weight
        # max / sqrt(3): about 0.4 %; smoothed rows are less even
        assert 0.002 < report.weight_error < 0.02
    assert quantize(tiny, None, resolved(alpha=None)).reports[0].crest is None


def test_the_source_is_left_as_it_was(tiny, tiny_stats):
    tensors = tiny.make_branch(0).state_dict()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    quantize(tiny, tiny_stats, resolved(), tensors)
    assert all(torch.equal(tensors[name], before[name]) for name in before)


def test_refuses_a_branch_that_lacks_a_linear_or_is_not_finite(tiny, tiny_stats):
    tensors = tiny.make_branch(0).state_dict()
    lacking = {name: tensor for name, tensor in tensors.items() if name != f"{W2}.weight"}
    with pytest.raises(UserError, match=f"conditional must hold {W2}.weight"):
        quantize(tiny, tiny_stats, resolved(), lacking)
    tensors[f"{W2}.weight"] = torch.full_like(tensors[f"{W2}.weight"], torch.nan)
    with pytest.raises(UserError, match=rf"conditional.{W2} \(128, 256\) must be finite"):
        quantize(tiny, None, resolved(alpha=None), tensors)


def test_refuses_missing_or_foreign_statistics(tiny, tiny_stats):
    with pytest.raises(UserError, match="smooths and needs activation statistics"):
        quantize(tiny, None, resolved())
    with pytest.raises(UserError, match="must be of model tiny, got other"):
        quantize(tiny, dataclasses.replace(tiny_stats, model_key="other"), resolved())
