import copy

import pytest
import torch

from dit8.kernels.hadamard import rotate
from dit8.models.random_ideogram4 import build_random
from dit8.quant.errors import UserError
from dit8.quant.int8 import dequantize, relative_error
from dit8.quant.linear import Int8Linear, WeightOnlyLinear
from dit8.scripts.random_variants import (
    VARIANTS,
    make_branches,
    quantized_linears,
    share_tensors,
    storage_bytes,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source():
    return build_random(3, full=False, dtype=torch.bfloat16, device=CPU, seed=0)


def linears_of(module, kind):
    return {name: x for name, x in module.named_modules() if isinstance(x, kind)}


def test_every_second_down_projection_is_protected(source):
    made = make_branches("fused_int8", source)
    assert list(made) == list(source)
    found = linears_of(made["conditional"], Int8Linear)
    downs = [name for name in found if name.endswith("w2")]
    assert downs == ["layers.0.feed_forward.w2", "layers.2.feed_forward.w2"]
    assert len(found) == 3 * 7 - 1 + 1  # block linears less one w2, and the text projection
    assert {linear.gemm for linear in found.values()} == {"fused"}
    assert {linear.rotation for linear in found.values()} == {0}
    with torch.device("meta"):
        meta = torch.device("meta")
        full = build_random(34, full=True, dtype=torch.bfloat16, device=meta, seed=0)
    groups = quantized_linears(full["conditional"], VARIANTS["fused_int8"])
    assert sum("w2" in names[0] for names in groups) == 17


def test_rotated_protects_nothing_and_turns_both_sides(source):
    found = linears_of(make_branches("rotated", source)["conditional"], Int8Linear)
    assert len(found) == 3 * 7 + 1
    # K of the toy: hidden 128 and FFN 256; 208 text features have no power of 4 above 16
    groups = {linear.in_features: linear.rotation for linear in found.values()}
    assert groups == {128: 64, 256: 256, 208: 16}
    name = "layers.1.feed_forward.w2"
    weight = source["conditional"].get_submodule(name).weight.float()
    rotated = dequantize(found[name].wq, found[name].ws[:, None], torch.float32)
    # 8 bits: half a step of max / 127, about 1 % of a uniform weight's size
    assert relative_error(weight, rotate(rotated, 256)) < 0.02
    assert relative_error(weight, rotated) > 0.5


def test_the_source_stays_and_what_is_not_quantized_is_shared(source):
    before = copy.deepcopy(source["conditional"].state_dict())
    made = make_branches("int8", source)["conditional"]
    for name, tensor in source["conditional"].state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not linears_of(source["conditional"], Int8Linear)
    for name in ("attention_norm1.weight", "adaln_modulation.weight"):
        name = f"layers.0.{name}"
        assert (
            made.state_dict()[name].data_ptr()
            == source["conditional"].get_parameter(name).data_ptr()
        )
    protected = "layers.1.feed_forward.w2.weight"
    assert made.get_parameter(protected) is source["conditional"].get_parameter(protected)


def test_bf16_is_the_source(source):
    made = make_branches("bf16", source)
    assert made == source


@pytest.mark.parametrize("variant", ["fp8", "q8_0"])
def test_weight_only_variants_decode_to_the_weights_they_encode(source, variant):
    found = linears_of(make_branches(variant, source)["conditional"], WeightOnlyLinear)
    name = "layers.0.attention.to_q"  # the first of its shape, also where codes are copied
    weight = source["conditional"].get_submodule(name).weight.float()
    decoded = found[name].codec.decode(found[name].tensors, torch.float32)
    assert relative_error(weight, decoded) < 0.04  # e4m3: 2^-4 at most, 2.7 % for a uniform weight
    # official FP8 leaves adaLN alone, GGUF files do not
    assert ("layers.0.adaln_modulation" in found) == (variant == "q8_0")


def test_copied_codes_have_memory_of_their_own(source):
    made = make_branches("q8_0", source)
    one, other = (
        made["conditional"].get_submodule(f"layers.{index}.attention.to_q") for index in (0, 1)
    )
    name = ".weight"
    assert torch.equal(one.tensors[name], other.tensors[name])
    assert one.tensors[name].data_ptr() != other.tensors[name].data_ptr()


def test_an_unknown_variant_is_named(source):
    with pytest.raises(UserError, match=r"variant must be one of bf16, .*rotated, got 'int4'"):
        make_branches("int4", source)


def test_shared_memory_and_views_count_once():
    linear = torch.nn.Linear(8, 8, bias=False)
    view = torch.nn.Linear(8, 4, bias=False)
    view.weight = torch.nn.Parameter(linear.weight.detach()[:4])
    assert storage_bytes([linear, view, share_tensors(linear)]) == 8 * 8 * 4
    assert storage_bytes([linear, copy.deepcopy(linear)]) == 2 * 8 * 8 * 4
