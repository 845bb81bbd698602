import dataclasses

import pytest
import torch

from dit8.kernels.hadamard import rotate
from dit8.quant.calibrate import absmax
from dit8.quant.checkpoint.entries import branch_entries
from dit8.quant.checkpoint.read import MemorySource, StoredWeight
from dit8.quant.errors import UserError
from dit8.quant.formats.table import FORMATS
from dit8.quant.int8 import quantize_weight
from dit8.quant.recipe import resolve_recipe
from dit8.quant.smoothquant import column_absmax, fold, smoothing_scale, snap_power_of_two
from dit8.quant.types import Recipe

W1, W2, W3 = (f"layers.0.feed_forward.w{number}" for number in (1, 2, 3))
BRANCH = "conditional"


def convert(tiny, stats, tensors=None, *, format="w8a8", **fields):
    """Return all tensors and reports of a branch, after holding them against their specs."""
    source = MemorySource(tensors or tiny.make_branch(0).state_dict())
    resolved = None
    if FORMATS[format].has_recipe:
        recipe = Recipe("test", **{"protect": 0, **fields})
        resolved = resolve_recipe(
            recipe, tiny.architecture, stats, {BRANCH: source}, model_key="tiny"
        )
    made, reports = {}, []
    for entry in branch_entries(
        source, tiny.architecture, BRANCH, FORMATS[format], resolved, stats
    ):
        tensors, report = entry.make()
        assert tensors.keys() == entry.specs.keys()
        for name, tensor in tensors.items():
            assert tuple(tensor.shape) == tuple(entry.specs[name].shape)
            assert tensor.dtype == entry.specs[name].dtype
        made |= tensors
        reports += [] if report is None else [report]
    return made, reports


def true_scale(stats, tensors, group, targets):
    columns = column_absmax([StoredWeight(tensors[f"{name}.weight"]) for name in targets])
    return smoothing_scale(absmax(stats, f"{BRANCH}/{group}"), columns, 0.5)


def test_naive_codes_are_those_of_the_plain_weights(tiny):
    tensors = tiny.make_branch(0).state_dict()
    got, _ = convert(tiny, None, alpha=None)
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
    adaln = "layers.0.adaln_modulation.weight"
    assert torch.equal(got[adaln], tensors[adaln])


@pytest.mark.parametrize("carrier", ["folded", "explicit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_quantized_linears_and_sources_change(tiny, tiny_stats, carrier, dtype):
    tensors = {name: t.to(dtype) for name, t in tiny.make_branch(0).state_dict().items()}
    got, _ = convert(tiny, tiny_stats, tensors, smoothing_carrier=carrier)
    sources = {group.source for group in tiny.architecture.groups}
    quantized = {t for g in tiny.architecture.groups if g.role != "rest" for t in g.targets}
    for name, tensor in tensors.items():
        module = name.rpartition(".")[0]
        if module in quantized:
            continue
        assert got[name].dtype == dtype  # stored as the source has it
        assert torch.equal(got[name], tensor) == (module not in sources or carrier == "explicit")


def test_explicit_smooth_is_the_true_scale_and_multiplies_the_columns(tiny, tiny_stats):
    tensors = tiny.make_branch(0).state_dict()
    got, _ = convert(tiny, tiny_stats, smoothing_carrier="explicit")
    scale = true_scale(tiny_stats, tensors, "layers.0.feed_forward.up", (W1, W3))
    for name in (W1, W3):
        assert torch.equal(got[f"{name}.smooth"], scale)
        assert torch.equal(got[f"{name}.wq"], quantize_weight(tensors[f"{name}.weight"] * scale)[0])
    assert not torch.equal(scale, snap_power_of_two(scale))


def test_streamed_folding_equals_folding_a_state_dict(tiny, tiny_stats):
    """Columns and rows at once, block by block, against group after group on whole tensors."""
    tensors = tiny.make_branch(0).state_dict()
    groups = [group for group in tiny.architecture.groups if group.source is not None]
    scales = {
        group.name: snap_power_of_two(true_scale(tiny_stats, tensors, group.name, group.targets))
        for group in groups
    }
    folded = fold(tensors, groups, scales, exact=True)
    got, _ = convert(tiny, tiny_stats)
    for name in (W1, W2, W3, "llm_cond_proj"):
        codes, row_scales = quantize_weight(folded[f"{name}.weight"])
        assert torch.equal(got[f"{name}.wq"], codes)
        assert torch.equal(got[f"{name}.ws"], row_scales)
    value = "layers.0.attention.to_v.weight"
    assert not torch.equal(folded[value], tensors[value])
    assert torch.equal(got["layers.0.attention.qkv.wq"][256:], quantize_weight(folded[value])[0])
    for group in groups:
        if group.source_kind == "norm":
            assert torch.equal(got[f"{group.source}.weight"], folded[f"{group.source}.weight"])


def test_kept_linear_divides_its_rows_for_what_it_feeds(tiny, tiny_stats):
    """w1 and w3 stay in bf16, but w3's rows absorb the scale of the smoothed w2."""
    tensors = {name: t.bfloat16() for name, t in tiny.make_branch(0).state_dict().items()}
    got, reports = convert(tiny, tiny_stats, tensors, keep=(f"{BRANCH}.{W1}",))
    rows = snap_power_of_two(true_scale(tiny_stats, tensors, "layers.0.feed_forward.w2", (W2,)))
    assert torch.equal(got[f"{W1}.weight"], tensors[f"{W1}.weight"])
    assert torch.equal(got[f"{W3}.weight"], (tensors[f"{W3}.weight"] / rows[:, None]).bfloat16())
    assert not torch.equal(got[f"{W3}.weight"], tensors[f"{W3}.weight"])
    norm = "layers.0.ffn_norm1.weight"
    assert torch.equal(got[norm], tensors[norm])  # nothing int8 reads it
    assert [r.name for r in reports if r.protected and "feed_forward" in r.name] == [W1, W3]


def test_folding_that_would_round_is_refused(tiny, tiny_stats):
    tensors = tiny.make_branch(0).state_dict()
    tensors[f"{W3}.weight"][0] = 1e-40  # dividing by a scale above 1 leaves the range of fp32
    tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    stats = dataclasses.replace(
        tiny_stats,
        step_absmax={
            key: value * (1e30 if key.endswith("0.feed_forward.w2") else 1)
            for key, value in tiny_stats.step_absmax.items()
        },
    )
    with pytest.raises(UserError, match="must fold without rounding .*smoothing_carrier=explicit"):
        convert(tiny, stats, tensors, keep=(f"{BRANCH}.{W1}",))


def test_protected_down_projection_keeps_its_weight(tiny, tiny_stats):
    tensors = {name: t.bfloat16() for name, t in tiny.make_branch(0).state_dict().items()}
    got, reports = convert(tiny, tiny_stats, tensors, protect=2)
    assert torch.equal(got[f"{W2}.weight"], tensors[f"{W2}.weight"])
    assert got[f"{W2}.weight"].dtype == torch.bfloat16
    assert f"{W2}.wq" not in got
    assert {r.name for r in reports if r.protected and r.name.endswith("w2")} == {
        "layers.0.feed_forward.w2",
        "layers.1.feed_forward.w2",
    }


def test_text_projection_and_the_rest_follow_the_recipe(tiny, tiny_stats):
    tensors = tiny.make_branch(0).state_dict()
    got, _ = convert(tiny, tiny_stats, quantize_text=False)
    for name in ("llm_cond_proj.weight", "llm_cond_proj.bias", "llm_cond_norm.weight"):
        assert torch.equal(got[name], tensors[name])
    got, _ = convert(tiny, tiny_stats, quantize_rest=True)
    for name in ("layers.1.adaln_modulation", "final_layer.linear", "t_embedding.mlp_in"):
        assert torch.equal(got[f"{name}.wq"], quantize_weight(tensors[f"{name}.weight"])[0])
        assert torch.equal(got[f"{name}.bias"], tensors[f"{name}.bias"])
    stored = {linear.name for linear in tiny.architecture.stored}
    assert {name.removesuffix(".wq") for name in got if name.endswith(".wq")} == stored


def test_rotated_codes_are_those_of_the_rotated_weight(tiny):
    tensors = tiny.make_branch(0).state_dict()
    got, _ = convert(tiny, None, alpha=None, rotation=256)
    # 128 = 2 * 64 and 256 itself: the largest power of 4 that divides K
    for name, group in ((W1, 64), (W2, 256)):
        codes, scales = quantize_weight(rotate(tensors[f"{name}.weight"], group))
        assert torch.equal(got[f"{name}.wq"], codes)
        assert torch.equal(got[f"{name}.ws"], scales)


def test_per_tensor_has_one_scale_for_the_weight_and_one_for_the_activation(tiny, tiny_stats):
    tensors = tiny.make_branch(0).state_dict()
    got, _ = convert(tiny, tiny_stats, alpha=None, activation_scale="tensor")
    scale = tensors[f"{W2}.weight"].abs().max() / 127
    assert torch.equal(got[f"{W2}.ws"], scale.expand(128))
    assert torch.equal(got[f"{W2}.wq"], (tensors[f"{W2}.weight"] / scale).round().to(torch.int8))
    act = absmax(tiny_stats, f"{BRANCH}/layers.0.feed_forward.w2").max()
    assert torch.equal(got[f"{W2}.x_scale"], act / 127)


@pytest.mark.parametrize("format", ["fp8", "q8_0", "nf4"])
def test_weight_only_formats_encode_whole_linears(tiny, format):
    if format == "nf4":
        pytest.importorskip("bitsandbytes")
    tensors = tiny.make_branch(0).state_dict()
    got, reports = convert(tiny, None, format=format)
    codec = FORMATS[format].codec
    qkv = torch.cat([tensors[f"layers.0.attention.to_{letter}.weight"] for letter in "qkv"])
    for suffix, tensor in codec.encode(qkv).items():
        assert torch.equal(
            got[f"layers.0.attention.qkv{suffix}"].view(torch.uint8), tensor.view(torch.uint8)
        )
    assert reports == []
    adaln = got["layers.0.adaln_modulation.weight"]
    assert adaln.is_floating_point() == (format == "fp8")


def test_bf16_keeps_every_value_of_a_bf16_model(tiny):
    tensors = {name: t.bfloat16() for name, t in tiny.make_branch(0).state_dict().items()}
    got, _ = convert(tiny, None, tensors, format="bf16")
    assert torch.equal(got["input_proj.weight"], tensors["input_proj.weight"])
    assert all(tensor.dtype == torch.bfloat16 for tensor in got.values())


def test_comfy_refuses_what_its_layout_cannot_say(tiny, tiny_stats):
    with pytest.raises(UserError, match="comfy carries .*got a scheme with a smoothing vector for"):
        convert(tiny, tiny_stats, format="comfy", smoothing_carrier="explicit")
    with pytest.raises(UserError, match="got a scheme with a static scale for conditional"):
        convert(tiny, tiny_stats, format="comfy", alpha=None, activation_scale="tensor")


def test_report_has_crest_protection_and_weight_error(tiny, tiny_stats):
    _, reports = convert(tiny, tiny_stats)
    assert [report.name for report in reports] == [x.name for x in tiny.architecture.stored]
    for report in reports:
        group = next(g for g in tiny.architecture.groups if report.name.startswith(g.name[:12]))
        assert report.branch == BRANCH
        assert (report.crest is None) == (group.role == "rest")
        # uniform weights: a step is max / 127, its rounding error 1 / sqrt(12) of it, the weight
        # max / sqrt(3): about 0.4 %; smoothed rows are less even
        assert 0.002 < report.weight_error < 0.02
    assert convert(tiny, None, alpha=None)[1][0].crest is None


def test_the_source_is_left_as_it_was(tiny, tiny_stats):
    tensors = tiny.make_branch(0).state_dict()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    convert(tiny, tiny_stats, tensors, protect=1)
    assert all(torch.equal(tensors[name], before[name]) for name in before)


def test_a_zero_row_has_zero_codes(tiny):
    tensors = tiny.make_branch(0).state_dict()
    tensors[f"{W2}.weight"][3] = 0
    got, _ = convert(tiny, None, tensors, alpha=None)
    assert not got[f"{W2}.wq"][3].any()
    assert got[f"{W2}.ws"][3] > 0


@pytest.mark.parametrize("format", ["w8a8", "fp8", "q8_0", "bf16"])
@pytest.mark.parametrize("name", [f"{W2}.weight", "layers.0.attention_norm2.weight"])
def test_refuses_weights_that_are_not_finite(tiny, format, name):
    tensors = tiny.make_branch(0).state_dict()
    tensors[name].view(-1)[5] = torch.nan
    with pytest.raises(UserError, match=rf"{name.removesuffix('.weight')}.*must be finite"):
        convert(tiny, None, tensors, format=format, alpha=None)


def test_refuses_a_branch_that_lacks_a_linear(tiny):
    tensors = tiny.make_branch(0).state_dict()
    del tensors[f"{W2}.weight"]
    with pytest.raises(UserError, match=f"conditional must hold {W2}.weight, got"):
        convert(tiny, None, tensors, format="fp8")
