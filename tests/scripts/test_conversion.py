"""models/artifacts.py as scripts/quantize.py calls it: formats, recipes, LoRA, refusals."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dit8.conf.paths import ROOT
from dit8.models.pipeline import load_pipeline
from dit8.quant.architectures.ideogram4 import BRANCHES, architecture, branch_modules
from dit8.quant.checkpoint.load import load_quantized
from dit8.quant.errors import UserError
from dit8.quant.formats.table import FORMATS

CPU = torch.device("cpu")
DESCRIBED = architecture(2)  # of the tiny model
RECIPES = sorted(path.stem for path in (ROOT / "conf" / "recipe").glob("*.yaml"))
DOWN = len(DESCRIBED.down_projections)
TOO_HIGH = [f"ladder_{count}" for count in range(9) if count > DOWN]
COUNTS = {f"ladder_{count}": count for count in range(9)} | dict.fromkeys(
    ("alpha_search", "protect_only", "published", "smooth_true", "smoothquant"), DOWN // 2
)  # protected in each branch; none elsewhere
# what every int8 scheme of a recipe must be, adaLN and the like aside
SCHEMES = {
    "naive": lambda s: s["alpha"] is None and not s["rotation"] and not s["static"],
    "rotate": lambda s: s["rotation"] in (16, 64, 256),  # K is 13 * 32, 128 or 256
    "per_tensor": lambda s: s["static"],
    "smooth_true": lambda s: s["carrier"] == "explicit" and s["alpha"] == 0.5,
    "alpha_search": lambda s: 0.2 <= s["alpha"] <= 0.8,
    "smoothquant": lambda s: s["carrier"] == "folded" and s["alpha"] == 0.5,
}


def files_of(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(file.relative_to(path.parent)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def stock(tiny_model):
    return load_pipeline(tiny_model, "float32", "float32", CPU)


@pytest.fixture
def loaded(place, stock):
    """Load a checkpoint into fresh branches; text encoder and VAE are the stock pipeline's."""
    shared = {name: stock.components[name] for name in ("text_encoder", "vae")}

    def load(checkpoint, gemm="fused"):
        options = {"branches": False, "components": shared}
        pipeline = load_pipeline(place.model, "float32", "float32", CPU, **options)
        return load_quantized(pipeline, checkpoint, gemm)

    return load


def int8_groups(folder: Path) -> dict[str, dict]:
    schemes = json.loads((folder / "recipe.json").read_text())["schemes"]
    return {key: scheme for key, scheme in schemes.items() if scheme["kind"] == "int8"}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_written_and_loads(place, stock, loaded, run_here, name):
    if name == "nf4":
        pytest.importorskip("bitsandbytes")
    if name in ("q8_0", "q4_k"):
        pytest.importorskip("gguf")
    target = FORMATS[name]
    change = ["recipe=rotate"] if target.has_recipe else []  # needs no calibration
    ended = run_here("quantize", *place.common, f"format={name}", *change)
    assert ended.code == 0, ended.stderr
    assert ended.lines == []  # nothing was calibrated
    document = ended.document
    assert document["format"] == name
    assert document["recipe"] == ("rotate" if target.has_recipe else None)
    path = Path(document["checkpoint"])
    suffix = {"file": ".safetensors", "gguf": ".gguf"}.get(target.container, "")
    assert path.is_file() == bool(suffix) and (path.suffix == suffix or path.is_dir())
    weights = {k: v for k, v in files_of(path).items() if k.endswith((".safetensors", ".gguf"))}
    assert sum(map(len, weights.values())) == document["bytes"]
    assert len(weights) == (1 if suffix else len(BRANCHES))
    again = run_here("quantize", *place.common, f"format={name}", *change).document
    same = ("checkpoint", "format", "recipe", "linears", "protected", "bytes")
    assert {key: again[key] for key in same} == {key: document[key] for key in same}

    before = branch_modules(stock)
    for branch, module in branch_modules(loaded(path)).items():
        kinds = {type(module.get_submodule(linear)) for linear in DESCRIBED.linears}
        assert kinds - {torch.nn.Linear} or name == "bf16"
        for key in ("input_proj.bias", "layers.0.attention_norm2.weight"):
            value = before[branch].state_dict()[key]
            value = value.bfloat16().float() if name == "bf16" else value
            assert torch.equal(module.state_dict()[key], value)


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in TOO_HIGH])
def test_every_recipe_is_applied_and_loads(place, loaded, run_here, recipe):
    ended = run_here("quantize", *place.common, f"recipe={recipe}")
    assert ended.code == 0, ended.stderr
    document = ended.document
    assert document["recipe"] == recipe
    folder = Path(document["checkpoint"]).parent
    assert folder.name.startswith(f"{recipe}-")
    assert document["protected"] == len(BRANCHES) * COUNTS.get(recipe, 0)
    groups, expected = int8_groups(folder), SCHEMES.get(recipe, lambda s: True)
    rest = {f"{b}/{g.name}" for b in BRANCHES for g in DESCRIBED.groups if g.role == "rest"}
    assert groups and all(expected(scheme) for key, scheme in groups.items() if key not in rest)
    assert bool(groups.keys() & rest) == (recipe == "published")
    for gemm in ("fused", "fake_quant"):
        loaded(document["checkpoint"], gemm)


@pytest.mark.parametrize("recipe", TOO_HIGH)
def test_a_ladder_higher_than_the_model_is_one_sentence(place, run_here, one_sentence, recipe):
    ended = run_here("quantize", *place.common, f"recipe={recipe}")
    pattern = rf"protect must be at most {DOWN}, the down-projections of a branch, got \d; use half"
    one_sentence(ended, "quantize", pattern)
    assert not list(place.checkpoints.glob("*ladder*"))


def test_alpha_search_and_auto_say_why(place, run_here):
    """Every group has a reason, on stderr and in recipe.json."""
    for recipe, word in (("alpha_search", "smallest output error"), ("auto", "damage")):
        ended = run_here("quantize", *place.common, f"recipe={recipe}")
        assert ended.code == 0, ended.stderr
        folder = Path(ended.document["checkpoint"]).parent
        reasons = json.loads((folder / "recipe.json").read_text())["reasons"]
        assert set(int8_groups(folder)) <= set(reasons)
        for key, reason in reasons.items():
            assert f"{key}: {reason}" in ended.lines
            assert word in reason


def test_auto_measures_once_and_spends_what_it_is_given(place, run_here, monkeypatch):
    def make(*change):
        ended = run_here("quantize", *place.common, "recipe=auto", *change)
        assert ended.code == 0, ended.stderr
        return int8_groups(Path(ended.document["checkpoint"]).parent)

    make()
    (damage,) = place.checkpoints.glob("damage-*.json")
    before = damage.stat().st_mtime_ns

    def refuse(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr("dit8.models.artifacts.load_pipeline", refuse)
    monkeypatch.setattr("dit8.models.auto_recipe.load_pipeline", refuse)
    # with enough time nothing is quantized but what no picture can show: text without a prompt
    assert set(make("recipe.latency=100")) <= {"unconditional/llm_cond_proj"}
    assert damage.stat().st_mtime_ns == before


def test_kept_linears_stay_and_an_unknown_one_is_one_sentence(place, run_here, one_sentence):
    kept = "conditional.layers.1.attention.qkv"
    naive = [*place.common, "recipe=naive"]
    plain = run_here("quantize", *naive).document
    ended = run_here("quantize", *naive, f"recipe.keep=[{kept}]")
    assert ended.code == 0, ended.stderr
    assert ended.document["linears"] == plain["linears"] - 1
    tensors = load_file(ended.document["checkpoint"])
    assert f"{kept}.weight" in tensors and f"{kept}.wq" not in tensors
    assert f"un{kept}.wq" in tensors
    wrong = "conditional.layers.9.attention.qkv"
    ended = run_here("quantize", *naive, f"recipe.keep=[{wrong}]")
    pattern = f"keep names '{wrong}', expected a linear of this model such as '.*'; correct the na"
    one_sentence(ended, "quantize", pattern)


def test_an_unknown_format_is_one_sentence(place, run_here, one_sentence):
    ended = run_here("quantize", *place.common, "format=int3")
    one_sentence(ended, "quantize", "format must be one of w8a8, comfy, fp8, .*, got 'int3'")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", FORMATS)
def test_a_weight_that_is_no_number_is_one_sentence(place, run_here, one_sentence, name, value):
    if name in ("q8_0", "q4_k"):
        pytest.importorskip("gguf")
    model = shutil.copytree(place.model, place.folder / "broken")
    path = model / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["layers.1.feed_forward.w2.weight"][3, 5] = value
    save_file(tensors, path, metadata={"format": "pt"})
    options = [*place.common, f"model.path={model}", f"format={name}", "recipe=naive"]
    before = set(place.checkpoints.glob("*"))
    ended = run_here("quantize", *options)
    one_sentence(ended, "quantize", r"layers\.1\.feed_forward\.w2.*(finite|NaN)")
    assert set(place.checkpoints.glob("*")) - before == {place.checkpoints / ".building.lock"}


@pytest.fixture
def lora_file(place):
    """A rank-2 update of one linear of the conditional branch, in peft's names."""
    generator = torch.Generator().manual_seed(3)
    linear = "layers.0.feed_forward.w1"
    tensors = load_file(place.model / "transformer" / "diffusion_pytorch_model.safetensors")
    n, k = tensors[f"{linear}.weight"].shape
    path = place.folder / "lora.safetensors"
    factors = {
        f"transformer.{linear}.lora_A.weight": torch.randn(2, k, generator=generator) / 8,
        f"transformer.{linear}.lora_B.weight": torch.randn(n, 2, generator=generator) / 8,
    }
    save_file(factors, path)
    return path


@pytest.mark.parametrize("name", ["w8a8", "fp8"])
def test_a_lora_is_merged_before_quantizing(place, run_here, lora_file, name):
    options = [*place.common, f"format={name}", "recipe=naive"]

    def tensors(*change):
        ended = run_here("quantize", *options, *change)
        assert ended.code == 0, ended.stderr
        path = Path(ended.document["checkpoint"])
        path = path / "transformer/diffusion_pytorch_model.safetensors" if path.is_dir() else path
        return ended.document["checkpoint"], load_file(path)

    plain_path, plain = tensors()
    path, merged = tensors(f"lora={lora_file}")
    half_path, half = tensors(f"lora={lora_file}", "lora_scale=0.5")
    assert len({plain_path, path, half_path}) == 3
    changed = {key for key in plain if not equal_bits(plain[key], merged[key])}
    stem = "conditional.layers.0.feed_forward.w1" if name == "w8a8" else "layers.0.feed_forward.w1"
    own = {"w8a8": (".wq", ".ws"), "fp8": (".weight", ".weight_scale")}[name]
    assert changed == {f"{stem}{suffix}" for suffix in own}
    assert not equal_bits(half[f"{stem}{own[0]}"], merged[f"{stem}{own[0]}"])
    # the decoded weight is W + B A up to the rounding, and at scale 0.5 half of it is added
    source = load_file(place.model / "transformer/diffusion_pytorch_model.safetensors")
    factors = load_file(lora_file)
    weight = source["layers.0.feed_forward.w1.weight"].float()
    update = (
        factors[next(k for k in factors if "lora_B" in k)]
        @ factors[next(k for k in factors if "lora_A" in k)]
    )
    for made, scale in ((merged, 1.0), (half, 0.5), (plain, 0.0)):
        decoded = made[f"{stem}{own[0]}"].float() * made[f"{stem}{own[1]}"].float()[:, None]
        exact = weight + scale * update
        assert (decoded - exact).norm() / exact.norm() < 0.04  # e4m3: 2.6 %; int8: below 1 %
    assert update.norm() / weight.norm() > 0.2  # so that the bound above tells the three apart


def equal_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def test_a_quantized_pipeline_takes_no_lora(place, loaded, run_here, lora_file):
    checkpoint = run_here("quantize", *place.common, "recipe=naive").document["checkpoint"]
    pipeline = loaded(checkpoint)
    with pytest.raises(UserError, match="is quantized and cannot take a LoRA.*quantize.py lora="):
        pipeline.load_lora_weights(lora_file)


def test_a_lora_of_another_model_is_one_sentence(place, run_here, one_sentence, lora_file):
    tensors = {key.replace("w1", "w9"): value for key, value in load_file(lora_file).items()}
    save_file(tensors, lora_file)
    ended = run_here("quantize", *place.common, "recipe=naive", f"lora={lora_file}")
    one_sentence(ended, "quantize", f"{lora_file} must hold only low-rank updates.*w9")
    ended = run_here("quantize", *place.common, "recipe=naive", "lora=none.safetensors")
    one_sentence(ended, "quantize", "none.safetensors")
