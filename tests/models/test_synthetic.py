import hashlib
import json
import math
from collections import namedtuple

import pytest
import torch
from diffusers import Ideogram4Transformer2DModel
from safetensors.torch import load_file

import dit8.models.synthetic as synthetic
from dit8.models.synthetic import Options, bytes_needed, describe, synthetic_key, write_synthetic
from dit8.models.synthetic_values import PATTERN, Pattern, synthetic_stats
from dit8.quant.architectures.ideogram4 import BRANCHES, source_sha256
from dit8.quant.calibrate import channel_crest, load_stats, save_stats
from dit8.quant.checkpoint.read import open_sources
from dit8.quant.errors import UserError
from dit8.quant.types import TensorSpec

TINY = {
    "in_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 64,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "adaln_dim": 64,
    "llm_features_dim": 832,
    "mrope_section": [12, 10, 10],
}


@pytest.fixture(scope="module")
def tiny():
    return describe(TINY)


@pytest.fixture
def write(tiny, tmp_path):
    """Write a tiny checkpoint; returns its folder."""

    def run(name="model", **options):
        write_synthetic(tmp_path / name, tiny, Options(**options))
        return tmp_path / name

    return run


def branch_tensors(folder, branch="conditional"):
    files = sorted((folder / BRANCHES[branch]).glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_official_layout_has_scales_exactly_where_weights_are_float8(write):
    tensors = branch_tensors(write())
    fp8 = {n.removesuffix("_scale") for n in tensors if n.endswith(".weight_scale")}
    assert fp8 == {n for n, t in tensors.items() if t.dtype == torch.float8_e4m3fn}
    blocks = ("to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3", "adaln_modulation")
    linears = [n for n in tensors if n.startswith("layers.") and tensors[n].ndim == 2]
    assert {n for n in fp8 if n.startswith("layers.")} == set(linears)
    assert all(n.removesuffix(".weight").endswith(blocks) for n in linears) and len(linears) == 16
    others = {"llm_cond_proj.weight", "final_layer.adaln_modulation.weight"}
    assert fp8 - set(linears) == others
    for name, tensor in tensors.items():
        if name in fp8:
            scale = tensors[f"{name}_scale"]
            assert scale.dtype == torch.float32 and scale.shape == tensor.shape[:1]
        elif not name.endswith(".weight_scale"):
            assert tensor.dtype == torch.bfloat16


def test_every_row_reaches_the_largest_code_and_has_the_deviation_of_a_linear(write):
    tensors = branch_tensors(write())
    for name in (n for n in tensors if tensors[n].dtype == torch.float8_e4m3fn):
        codes, scale = tensors[name].float(), tensors[f"{name}_scale"]
        assert torch.equal(codes.abs().amax(dim=1), torch.full((codes.shape[0],), 448.0))
        assert bool((codes[::2] == 448).any(dim=1).all() and (codes[1::2] == -448).any(dim=1).all())
        weight = codes * scale[:, None]
        assert torch.isfinite(weight).all() and (scale > 0).all()
        # e^(0.2 z) raises it by 1.04, the planted maxima by up to 1.1 at K = 64
        assert 0.9 < float(weight.std()) * math.sqrt(codes.shape[1]) < 1.25, name
        assert len(torch.unique(codes, dim=0)) == codes.shape[0], name
        assert scale.unique().numel() == scale.numel(), name


def test_what_is_not_float8_has_values_of_its_kind(write):
    tensors = branch_tensors(write(dtype="bf16"))
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert tensors["layers.0.ffn_norm1.weight"].float().mean() == pytest.approx(1.0, abs=0.05)
    assert tensors["layers.0.adaln_modulation.bias"].float().std() == pytest.approx(0.02, rel=0.2)
    w2 = tensors["layers.0.feed_forward.w2.weight"].float()
    assert float(w2.std()) * math.sqrt(256) == pytest.approx(1.0, rel=0.05)


def test_both_layouts_hold_the_same_values(write):
    split, fused = branch_tensors(write("a")), branch_tensors(write("b", layout="original"))
    assert not any("to_q" in name or "to_out" in name for name in fused)
    for suffix in ("weight", "weight_scale"):
        parts = [split[f"layers.1.attention.to_{letter}.{suffix}"] for letter in "qkv"]
        stacked = fused[f"layers.1.attention.qkv.{suffix}"]
        assert torch.equal(stacked.view(torch.uint8), torch.cat(parts).view(torch.uint8))
        renamed = split[f"layers.1.attention.to_out.0.{suffix}"].view(torch.uint8)
        assert torch.equal(fused[f"layers.1.attention.o.{suffix}"].view(torch.uint8), renamed)
    same = [name for name in split if name in fused]
    assert len(same) == len(split) - 2 * 8
    assert all(torch.equal(split[n].view(torch.uint8), fused[n].view(torch.uint8)) for n in same)


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_shards_hold_what_one_file_holds_and_are_indexed(write, layout):
    whole, folder = write("a", layout=layout), write("b", layout=layout, shards=3)
    files = sorted((folder / "transformer").glob("*.safetensors"))
    assert [file.name[-24:] for file in files] == [
        f"-{number:05d}-of-00003.safetensors"[-24:] for number in (1, 2, 3)
    ]
    index = json.loads(
        (folder / "transformer" / f"{synthetic.STEM}.safetensors.index.json").read_text()
    )
    held = {name: file.name for file in files for name in load_file(file)}
    assert index["weight_map"] == held
    first, second = branch_tensors(whole), branch_tensors(folder)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n].view(torch.uint8), second[n].view(torch.uint8)) for n in first)
    sizes = [file.stat().st_size for file in files]
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in second.values())
    assert max(sizes) < 0.6 * sum(sizes)


def test_more_shards_than_tensors_leave_no_file_empty(write, tiny):
    folder = write(shards=10_000)
    files = sorted((folder / "transformer").glob("*.safetensors"))
    assert all(load_file(file) for file in files)
    assert f"of-{len(files):05d}" in files[0].name
    assert len(files) <= len(branch_tensors(folder))


def test_equal_seeds_give_equal_bytes_and_branches_differ(write):
    first = write("a", seed=3)
    assert digests(first) == digests(write("b", seed=3))
    other = digests(write("c", seed=4))
    assert all((digests(first)[n] == other[n]) == n.endswith(".json") for n in other)
    both = [branch_tensors(first, branch) for branch in BRANCHES]
    changed = [n for n in both[0] if not torch.equal(*(b[n].view(torch.uint8) for b in both))]
    assert len(changed) == len(both[0])
    alone = write("d", seed=3, branches=("unconditional",))
    assert not (alone / "transformer").exists()
    file = f"{synthetic.STEM}.safetensors"
    folder = "unconditional_transformer"
    assert digests(alone / folder)[file] == digests(first / folder)[file]


def test_diffusers_loads_the_folder(write, tiny):
    folder = write(dtype="bf16", shards=2)
    module = Ideogram4Transformer2DModel.from_pretrained(
        folder / "transformer", torch_dtype=torch.bfloat16, local_files_only=True
    )
    stored = branch_tensors(folder)
    state = module.state_dict()
    assert state.keys() == stored.keys() and all(torch.equal(state[n], stored[n]) for n in state)
    assert module.config.intermediate_size == 256
    assert (
        json.loads((folder / "model_index.json").read_text())["_class_name"] == synthetic.PIPELINE
    )


@pytest.mark.parametrize("options", [{}, {"layout": "original", "shards": 2}])
def test_the_converter_reads_what_was_written(write, tiny, options):
    folder = write(**options)
    plain = branch_tensors(write("plain"), "unconditional")
    with open_sources(folder, tiny.architecture, BRANCHES) as sources:
        source = sources["unconditional"]
        assert dict(source.shapes) == tiny.shapes
        for linear in tiny.architecture.linears:
            name = f"{linear}.weight"
            expected = plain[name].float()
            if f"{name}_scale" in plain:
                expected = expected * plain[f"{name}_scale"][:, None]
            assert torch.equal(source.weight(linear).full(), expected), name


def test_the_bytes_are_known_beforehand(write, tiny):
    for options in ({}, {"dtype": "bf16", "branches": ("conditional",)}):
        folder = write(f"model{len(options)}", **options)
        tensors = [
            t for b in options.get("branches", BRANCHES) for t in branch_tensors(folder, b).values()
        ]
        assert bytes_needed(tiny, Options(**options)) == sum(t.nbytes for t in tensors)


def test_the_real_size_needs_18_7_gigabytes():
    real = describe({})
    assert sum(math.prod(shape) for shape in real.shapes.values()) == 9_279_288_448
    assert bytes_needed(real, Options()) / 1e9 == pytest.approx(18.67, abs=0.02)


Disk = namedtuple("Disk", "total used free")


def test_a_full_disk_is_noticed_before_anything_is_written(write, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic.shutil, "disk_usage", lambda path: Disk(0, 0, 1000))
    with pytest.raises(
        UserError, match=r"model must have 0\.00 GB of disk, got 0\.00 GB free; make"
    ):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing(write, tmp_path, monkeypatch):
    calls = []

    def fail_later(*arguments, real=synthetic._moments):
        calls.append(arguments)
        if len(calls) == 60:
            raise OSError(5, "Input/output error")
        return real(*arguments)

    monkeypatch.setattr(synthetic, "_moments", fail_later)
    with pytest.raises(UserError, match=r"cannot write .*model: Input/output error; choose a"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(write):
    folder = write()
    before = digests(folder)
    with pytest.raises(UserError, match=r"model exists already; delete it to write it again"):
        write(seed=1)
    assert digests(folder) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branches": ("both",)}, r"branches must be among conditional, unconditional, got 'both'"),
        ({"branches": ()}, r"branches must be among conditional, unconditional, got None"),
        ({"dtype": "int8"}, r"dtype must be among fp8, bf16, got 'int8'; use fp8"),
        ({"layout": "gguf"}, r"layout must be among diffusers, original, got 'gguf'"),
        ({"shards": 0}, r"shards must be at least 1, got 0; use 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Options(**options)


@pytest.mark.parametrize(
    "overrides", [{"layers": 2}, {"num_layers": "2"}, {"attention_head_dim": -1}]
)
def test_a_configuration_that_diffusers_refuses_is_named(overrides):
    key = next(iter(overrides))
    with pytest.raises(UserError, match=rf"must suit Ideogram4Transformer2DModel, got .*{key}"):
        describe(overrides)


def test_the_pattern_has_a_prime_length_and_repeats_no_row_before_it_ends():
    assert all(PATTERN % divisor for divisor in range(2, math.isqrt(PATTERN) + 1))
    spec = TensorSpec((5000, 4608), torch.float8_e4m3fn)
    blocks = list(Pattern(0).blocks(spec, PATTERN - 5, 0.0, 1.0))
    assert all(block.numel() <= PATTERN for block in blocks)
    rows = torch.cat(blocks).view(torch.int64)
    assert rows.shape == (5000, 4608 // 8)
    assert len(torch.unique(rows[:, 100:140], dim=0)) == 5000


def test_statistics_cover_what_calibration_covers(tiny, tmp_path):
    stats = synthetic_stats(tiny.shapes, tiny.architecture, list(BRANCHES), seed=2, model_key="k")
    groups = [group for group in tiny.architecture.groups if group.role != "rest"]
    assert set(stats.step_absmax) == {f"{b}/{group.name}" for b in BRANCHES for group in groups}
    for branch in BRANCHES:
        for group in groups:
            values = stats.step_absmax[f"{branch}/{group.name}"]
            assert values.shape == (2, tiny.shapes[f"{group.targets[0]}.weight"][1])
            assert values.dtype == torch.float32 and bool((values > 0).all())
    maxima = list(stats.step_absmax.values())
    crests = {float(channel_crest(values).max()) for values in maxima}
    # without outliers a few hundred log-normal channels have a crest of e^(0.5 * 3) = 4.5
    assert len(crests) == len(maxima) and 8 < sorted(crests)[len(crests) // 2] < 100
    # and the largest channel would be another one at the other step
    largest = [values.argmax(dim=1) for values in maxima]
    assert sum(bool(first == second) for first, second in largest) > 0.8 * len(maxima)
    assert (len(stats.done), stats.model_key, set(stats.rows)) == (stats.total, "k", set(BRANCHES))
    save_stats(stats, tmp_path / "a")
    loaded = load_stats(tmp_path / "a")
    assert all(torch.equal(loaded.step_absmax[k], v) for k, v in stats.step_absmax.items())


def test_statistics_depend_on_the_seed_and_the_branch_alone(tiny):
    def make(seed, branches):
        return synthetic_stats(
            tiny.shapes, tiny.architecture, branches, seed=seed, model_key="k"
        ).step_absmax

    both, again, other = (
        make(2, list(BRANCHES)),
        make(2, ["unconditional"]),
        make(3, list(BRANCHES)),
    )
    assert all(torch.equal(both[key], values) for key, values in again.items())
    assert not any(torch.equal(both[key], values) for key, values in other.items())
    keys = [key.removeprefix("unconditional") for key in again]
    assert not any(torch.equal(both[f"conditional{k}"], both[f"unconditional{k}"]) for k in keys)


def test_the_key_is_the_models(write):
    assert synthetic_key(write()) == source_sha256(write("again"))[:12]
    assert len(synthetic_key(write("alone", branches=("unconditional",)))) == 12


def test_the_script_writes_checkpoint_and_statistics(tmp_path, monkeypatch, capsys):
    from dit8.scripts import make_synthetic

    folder, stats = tmp_path / "model", tmp_path / "stats.safetensors"
    monkeypatch.setattr(
        "sys.argv",
        ["make_synthetic.py", str(folder), "--layers", "1", "--config", json.dumps(TINY)]
        + ["--stats", str(stats), "--shards", "2", "--seed", "5"],
    )
    make_synthetic.main()
    output = capsys.readouterr()
    document = json.loads(output.out.splitlines()[-1])
    assert "needs 0.00 GB of disk" in output.err
    assert document["model_key"] == load_stats(stats).model_key == source_sha256(folder)[:12]
    assert json.loads((folder / "transformer" / "config.json").read_text())["num_layers"] == 1
    tensors = [t for b in BRANCHES for t in branch_tensors(folder, b).values()]
    assert document["bytes"] == sum(t.nbytes for t in tensors)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_the_script_refuses_a_configuration_that_is_no_object(text):
    from dit8.scripts.make_synthetic import parse_config

    with pytest.raises(UserError, match=r"--config must be a JSON object, got"):
        parse_config(text, None)
