import copy
import json
import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file

from dit8.quant.architectures import flux, ideogram4
from dit8.quant.checkpoint.read import MemorySource, StoredWeight
from dit8.quant.errors import UserError
from dit8.quant.lora import MergedSource, merged, read_lora, refuse_lora

K, FFN, RANK = 24, 40, 3
BRANCHES = ideogram4.BRANCHES
ARCHITECTURE = ideogram4.architecture(2)
SHAPES = {
    f"{name}.weight": {"w1": (FFN, K), "w3": (FFN, K), "w2": (K, FFN)}.get(name[-2:], (K, K))
    for name in ARCHITECTURE.linears
}
QKV, W2 = "layers.1.attention.qkv", "layers.0.feed_forward.w2"
TO_Q, TO_V = "layers.1.attention.to_q", "layers.1.attention.to_v"


@pytest.fixture
def factors():
    """Random A and B of a linear, in the dtype that trainers save."""
    generator = torch.Generator().manual_seed(5)

    def make(n, k, rank=RANK, dtype=torch.bfloat16):
        a = torch.randn(rank, k, generator=generator).to(dtype)
        return a, torch.randn(n, rank, generator=generator).to(dtype)

    return make


@pytest.fixture
def read(tmp_path):
    """Write tensors with the safetensors package and read them as a LoRA of the tiny model."""

    def write_and_read(tensors, metadata=None):
        path = tmp_path / "lora.safetensors"
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, path, metadata)
        return read_lora(path, ARCHITECTURE, BRANCHES, dict.fromkeys(BRANCHES, SHAPES))

    return write_and_read


def pair(stem, a, b, sides=("lora_A", "lora_B")):
    return {f"{stem}.{sides[0]}.weight": a, f"{stem}.{sides[1]}.weight": b}


def update(lora, key):
    """The update as peft computes it, in fp64."""
    low = lora.updates[key]
    return low.scaling * (low.b.double() @ low.a.double())


@pytest.mark.parametrize("scale", [1.0, -0.25])
@pytest.mark.parametrize("alpha", [None, 7.0])
def test_merging_is_the_arithmetic_of_peft(read, factors, alpha, scale):
    a, b = factors(K, FFN)
    extra = {} if alpha is None else {f"{W2}.alpha": torch.tensor(alpha)}
    lora = read(pair(W2, a, b) | extra)
    weight = torch.randn(K, FFN)
    got = merged(weight, lora, "conditional", W2, scale)
    expected = weight.double().clone()
    for i in range(K):
        for j in range(FFN):
            product = sum(b[i, r].double() * a[r, j].double() for r in range(RANK))
            expected[i, j] += scale * (RANK if alpha is None else alpha) / RANK * product
    assert got.dtype == torch.float32
    # r products and r + 1 sums in fp32, each within 2^-24 of terms that reach a few dozen
    assert (got - expected).abs().max() < (2 * RANK + 2) * 2**-24 * 64
    assert (got - weight).abs().max() > 0.5


@pytest.mark.parametrize(
    ("stem", "sides"),
    [
        ("{}", ("lora_A", "lora_B")),
        ("transformer.{}", ("lora_A", "lora_B")),
        ("conditional_transformer.{}", ("lora_A", "lora_B")),
        ("diffusion_model.{}", ("lora_A", "lora_B")),
        ("diffusion_model.{}", ("lora_down", "lora_up")),
        ("lora_unet_{}", ("lora_down", "lora_up")),
    ],
)
@pytest.mark.parametrize("name", [W2, TO_Q, "layers.0.attention.to_out.0", "adaln_proj"])
def test_every_spelling_names_the_conditional_branch(read, factors, stem, sides, name):
    a, b = factors(*SHAPES[f"{name}.weight"])
    spelled = stem.format(name.replace(".", "_") if stem.startswith("lora_unet") else name)
    lora = read(pair(spelled, a, b, sides))
    assert list(lora.updates) == [f"conditional.{name}"]
    low = lora.updates[f"conditional.{name}"]
    assert torch.equal(low.a, a.float()) and torch.equal(low.b, b.float()) and low.scaling == 1.0


def test_the_unconditional_branch_is_updated_only_by_name(read, factors):
    (a, b), (c, d) = factors(K, FFN), factors(K, FFN)
    lora = read(pair(f"unconditional_transformer.{W2}", a, b) | pair(W2, c, d))
    assert torch.equal(lora.updates[f"unconditional.{W2}"].a, a.float())
    assert torch.equal(lora.updates[f"conditional.{W2}"].a, c.float())
    weight = torch.randn(K, K)
    assert merged(weight, lora, "unconditional", TO_Q) is weight


@pytest.mark.parametrize("stem", [QKV, "lora_unet_layers_1_attention_qkv"])
def test_a_stacked_update_is_split_by_rows(read, factors, stem):
    a, b = factors(3 * K, K)
    lora = read(pair(stem, a, b) | {f"{stem}.alpha": torch.tensor(6, dtype=torch.int64)})
    whole = 2.0 * (b.double() @ a.double())
    for index, letter in enumerate("qkv"):
        rows = whole[index * K : (index + 1) * K]
        assert torch.equal(update(lora, f"conditional.layers.1.attention.to_{letter}"), rows)
    assert len(lora.updates) == 3


def test_the_published_name_of_the_output_is_understood(read, factors):
    lora = read(pair("diffusion_model.layers.0.attention.o", *factors(K, K)))
    assert list(lora.updates) == ["conditional.layers.0.attention.to_out.0"]


def adapter(**settings):
    return {"lora_adapter_metadata": json.dumps(settings)}


@pytest.mark.parametrize(
    ("settings", "scaling"),
    [
        ({"transformer.lora_alpha": 12}, 4.0),
        ({"lora_alpha": 12}, 4.0),
        ({"transformer.lora_alpha": None}, 1.0),
        ({"unconditional_transformer.lora_alpha": 12}, 1.0),
        ({"transformer.lora_alpha": 12, "transformer.use_rslora": True}, 12 / math.sqrt(RANK)),
        ({"transformer.lora_alpha": 12, "transformer.alpha_pattern": {W2: 6}}, 2.0),
        ({"transformer.lora_alpha": 12, "transformer.alpha_pattern": {f"^{W2}": 6}}, 2.0),
        ({"transformer.alpha_pattern": {"feed_forward.w2": 6}}, 2.0),
        ({"transformer.r": 99, "transformer.use_dora": False}, 1.0),
    ],
)
def test_alpha_comes_from_the_header_of_diffusers(read, factors, settings, scaling):
    lora = read(pair(f"transformer.{W2}", *factors(K, FFN)), adapter(**settings))
    assert lora.updates[f"conditional.{W2}"].scaling == pytest.approx(scaling, rel=1e-12)


def test_an_alpha_beside_the_factors_comes_before_the_header(read, factors):
    tensors = pair(W2, *factors(K, FFN)) | {f"{W2}.alpha": torch.tensor([6.0])}
    lora = read(tensors, adapter(lora_alpha=12, alpha_pattern={W2: 24}))
    assert lora.updates[f"conditional.{W2}"].scaling == 2.0


def test_an_alpha_belongs_to_the_linear_that_it_names(read, factors):
    tensors = pair(W2, *factors(K, FFN)) | pair(TO_Q, *factors(K, K))
    lora = read(tensors, adapter(lora_alpha=12, alpha_pattern={"to_q": 6}))
    assert lora.updates[f"conditional.{W2}"].scaling == 4.0
    assert lora.updates[f"conditional.{TO_Q}"].scaling == 2.0


def test_rows_merge_one_block_at_a_time(read, factors):
    lora = read(pair(W2, *factors(K, FFN)))
    weight = torch.randn(K, FFN)
    whole = merged(weight, lora, "conditional", W2)
    pieces = [merged(weight[i : i + 7], lora, "conditional", W2, start=i) for i in range(0, K, 7)]
    assert torch.allclose(torch.cat(pieces), whole, rtol=0, atol=1e-6)  # sums may be reordered
    with pytest.raises(ValueError, match=r"rows of conditional.* from 20 must be \(4, 40\) float"):
        merged(weight[:7], lora, "conditional", W2, start=20)
    with pytest.raises(ValueError, match=r"must be \(24, 40\) float32, got .*bfloat16"):
        merged(weight.bfloat16(), lora, "conditional", W2)


def test_a_source_with_a_lora_gives_merged_weights_and_leaves_the_rest(read, factors):
    lora = read(pair(W2, *factors(K, FFN)))
    tensors = {W2 + ".weight": torch.randn(K, FFN).bfloat16(), "norm.weight": torch.randn(K)}
    tensors[f"{TO_Q}.weight"] = torch.randn(K, K)
    plain = MemorySource(tensors)
    source = MergedSource(plain, lora, "conditional", 0.5)
    expected = merged(tensors[f"{W2}.weight"].float(), lora, "conditional", W2, 0.5)
    assert torch.equal(source.weight(W2).full(), expected)
    assert torch.equal(source.weight(W2).rows(3, 9), merged_rows(tensors, lora, 3, 9))
    assert torch.equal(source.tensor(f"{W2}.weight"), expected.bfloat16())
    assert torch.equal(source.weight(TO_Q).full(), tensors[f"{TO_Q}.weight"])
    assert source.tensor("norm.weight") is tensors["norm.weight"]
    assert source.weight(W2).kept_dtype == torch.bfloat16
    assert (source.shapes, source.dtypes) == (plain.shapes, plain.dtypes)


def merged_rows(tensors, lora, start, stop):
    rows = tensors[f"{W2}.weight"][start:stop].float()
    return merged(rows, lora, "conditional", W2, 0.5, start=start)


def test_a_float8_source_is_dequantized_before_it_is_merged(read, factors):
    lora = read(pair(W2, *factors(K, FFN)))
    stored = StoredWeight(torch.randn(K, FFN).to(torch.float8_e4m3fn), torch.rand(K))
    plain = SimpleNamespace(weight=lambda linear: stored, shapes={}, dtypes={})
    got = MergedSource(plain, lora, "conditional").weight(W2).full()
    weight = stored.values.float() * stored.scale[:, None]
    assert torch.equal(got, merged(weight, lora, "conditional", W2))


def test_a_flux_lora_is_read_by_the_same_code(tmp_path, factors):
    described = flux.architecture(1, 1)
    shapes = {"transformer": {f"{name}.weight": (K, K) for name in described.linears}}
    name, path = "single_transformer_blocks.0.proj_mlp", tmp_path / "flux.safetensors"
    save_file(pair(f"transformer.{name}", *factors(K, K)), path)
    lora = read_lora(path, described, flux.BRANCHES, shapes)
    assert list(lora.updates) == [f"transformer.{name}"]
    save_file(pair(f"unconditional_transformer.{name}", *factors(K, K)), path)
    with pytest.raises(UserError, match=r"got 'unconditional_transformer\.single_tr.*trained on"):
        read_lora(path, described, flux.BRANCHES, shapes)


@pytest.mark.parametrize("described", [ideogram4.architecture(34), flux.architecture(19, 38)])
def test_no_two_linears_have_one_name_in_underscores(described):
    names = {*described.linears, *(linear.name for linear in described.stored)}
    assert len({name.replace(".", "_") for name in names}) == len(names)


def bad_pairs():
    a, b = torch.randn(RANK, FFN), torch.randn(K, RANK)
    nan = b.clone()
    nan[2, 1] = math.nan
    qkv = pair(QKV, torch.randn(RANK, K), torch.randn(3 * K, RANK))
    alpha = {f"{W2}.alpha": torch.tensor(2.0)}
    flux_name = "transformer.single_transformer_blocks.0.proj_mlp"
    return {
        "another architecture": (
            pair(flux_name, a, b),
            rf"low-rank updates of this model's linears, such as .*, got '{flux_name}\.lora_A",
        ),
        "a text encoder": (pair("text_encoder.q_proj", a, b), r"got 'text_encoder\.q_proj"),
        "a layer that is not there": (pair("layers.2.feed_forward.w2", a, b), r"got 'layers\.2\."),
        "kohya, not there": (pair("lora_unet_nothing", a, b), r"got 'lora_unet_nothing\."),
        "dora": (
            pair(W2, a, b) | {f"{W2}.lora_magnitude_vector": torch.ones(K)},
            r"got 'layers\.0\.feed_forward\.w2\.lora_magnitude_vector'",
        ),
        "a bias": (pair(W2, a, b) | {f"{W2}.lora_B.bias": torch.ones(K)}, r"lora_B\.bias'"),
        "no B": ({f"{W2}.lora_A.weight": a}, r"got '.*w2\.lora_A\.weight' without its B"),
        "no A": ({f"{W2}.lora_B.weight": b}, r"got '.*w2\.lora_B\.weight' without its A"),
        "alpha alone": (alpha, r"got '.*w2\.alpha' without its A"),
        "ranks": (pair(W2, a, b[:, :2]), r"lora_B\.weight' .* rank of its A, 3 >= 1, got 2"),
        "rank 0": (pair(W2, a[:0], b[:, :0]), r"rank of its A, 0 >= 1, got 0"),
        "rows": (pair(W2, a, b[:-1]), r"lora_B\.weight' must have 24 rows .* got 23; use a LoRA"),
        "columns": (pair(W2, a[:, 1:], b), r"lora_A\.weight' must have 40 columns .* got 39"),
        "rows of qkv": (pair(QKV, a[:, :K], b), r"qkv\.lora_B\.weight' must have 72 rows .* 24"),
        "a convolution": (pair(W2, a[..., None], b), r"lora_A\.weight' .* a matrix, got shape"),
        "nan": (pair(W2, a, nan), r"lora_B\.weight' .* floating and finite, got NaN or infinity"),
        "integers": (pair(W2, a.int(), b), r"lora_A\.weight' .* floating and finite, got int32"),
        "twice": (
            qkv | pair(TO_V, torch.randn(RANK, K), torch.randn(K, RANK)),
            r"must update layers\.1\.attention\.to_v of branch conditional once, got",
        ),
        "two prefixes": (
            pair(W2, a, b) | pair(f"transformer.{W2}", a, b),
            r"must hold one A for layers\.0\.feed_forward\.w2, got '.*' and '.*'; remove one",
        ),
        "alpha 0": (
            pair(W2, a, b) | {f"{W2}.alpha": torch.tensor(0.0)},
            r"w2\.alpha' .* one number other than 0, got 0\.0",
        ),
        "two alphas": (
            pair(W2, a, b) | {f"{W2}.alpha": torch.ones(2)},
            r"one number other than 0, got \[1\.0, 1\.0\]",
        ),
    }


@pytest.mark.parametrize("name", bad_pairs())
def test_a_file_that_does_not_fit_is_refused_by_key(read, name):
    tensors, message = bad_pairs()[name]
    with pytest.raises(UserError, match=message):
        read(tensors)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (adapter(use_dora=True), r"must be a plain LoRA, got use_dora .* merge it .* with peft"),
        (adapter(**{"transformer.use_qalora": True}), r"a plain LoRA, got use_qalora"),
        (adapter(alpha_pattern={"w9": 2}), r"alpha_pattern .* got 'w9', which matches none"),
        (adapter(lora_alpha="much"), r"diffusers' JSON, got ValueError: could not convert"),
        ({"lora_adapter_metadata": "[1]"}, r"diffusers' JSON, got AttributeError"),
        ({"lora_adapter_metadata": "{"}, r"diffusers' JSON, got JSONDecodeError"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(read, factors, metadata, message):
    with pytest.raises(UserError, match=message):
        read(pair(W2, *factors(K, FFN)), metadata)


def test_an_empty_file_is_refused(read):
    with pytest.raises(UserError, match=r"must hold low-rank updates, got no tensor; use a LoRA"):
        read({})


def test_a_missing_file_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r"none\.safetensors.*use a LoRA that was trained on this"):
        read_lora(tmp_path / "none.safetensors", ARCHITECTURE, BRANCHES, {})


def test_a_quantized_pipeline_says_why_it_takes_no_lora():
    def make():
        return FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=20,
            axes_dims_rope=(4, 6, 6),
        )

    reason = r"quantized and cannot take a LoRA, .*merge it .*scripts/quantize\.py lora=<file>"
    untouched = make()
    pipeline = SimpleNamespace(transformer=make(), text_encoder=untouched)
    refuse_lora(pipeline)
    for module in (pipeline.transformer, copy.deepcopy(pipeline.transformer)):
        for attempt in (module.load_lora_adapter, module.add_adapter):
            with pytest.raises(UserError, match=reason):
                attempt("lora.safetensors", prefix=None)
    with pytest.raises(UserError, match=reason):
        pipeline.load_lora_weights("lora.safetensors", adapter_name="x")
    assert untouched.load_lora_adapter.__func__ is FluxTransformer2DModel.load_lora_adapter
