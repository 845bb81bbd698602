import json

import pytest
import torch
from safetensors.torch import save_file

from dit8.quant.architectures.ideogram4 import BRANCHES
from dit8.quant.checkpoint.read import MemorySource, StoredWeight, open_sources, weight_files
from dit8.quant.errors import UserError

Q, K, V = (f"layers.0.attention.to_{letter}" for letter in "qkv")
QKV, OUT = "layers.0.attention.qkv", "layers.0.attention.to_out.0"


def state(tiny, seed=0, dtype=torch.bfloat16):
    return tiny.make_branch(seed, dtype).state_dict()


def original(tensors):
    made = dict(tensors)
    for index in range(2):
        block = f"layers.{index}.attention"
        for kind in ("weight", "weight_scale"):
            names = [f"{block}.to_{letter}.{kind}" for letter in "qkv"]
            if names[0] in made:
                made[f"{block}.qkv.{kind}"] = torch.cat([made.pop(name) for name in names])
                made[f"{block}.o.{kind}"] = made.pop(f"{block}.to_out.0.{kind}")
    return made


def fp8(tensors):
    made = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and ("attention" in name or "adaln_mod" in name):
            scale = tensor.float().abs().amax(dim=1) / 448
            made[name] = (tensor.float() / scale[:, None]).to(torch.float8_e4m3fn)
            made[f"{name}_scale"] = scale
    return made


@pytest.fixture
def write(tmp_path):
    """Write one branch's tensors into the folders of both, each in `count` shards."""

    def write(tensors, count=1):
        names = sorted(tensors)
        for subfolder in BRANCHES.values():
            folder = tmp_path / subfolder
            folder.mkdir(exist_ok=True)
            weight_map = {}
            for index in range(count):
                chunk = names[index::count]
                weight_map |= dict.fromkeys(chunk, f"m-{index}.safetensors")
                save_file({n: tensors[n].clone() for n in chunk}, folder / f"m-{index}.safetensors")
            if count > 1:
                index = folder / "m.safetensors.index.json"
                index.write_text(json.dumps({"weight_map": weight_map}))
        return tmp_path

    return write


def opened(path, tiny):
    return open_sources(path, tiny.architecture, BRANCHES)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("rename", [dict, original])
def test_both_namings_whole_and_in_shards(tiny, write, rename, count):
    tensors = state(tiny)
    with opened(write(rename(tensors), count), tiny) as sources:
        for source in sources.values():
            assert source.shapes == {name: tuple(t.shape) for name, t in tensors.items()}
            assert set(source.dtypes.values()) == {torch.bfloat16}
            for name in (Q, K, V, OUT, "llm_cond_proj"):
                assert torch.equal(source.weight(name).values, tensors[f"{name}.weight"])
            for name, tensor in tensors.items():
                assert torch.equal(source.tensor(name), tensor)


@pytest.mark.parametrize("rename", [dict, original])
def test_fp8_is_dequantized_row_by_row(tiny, write, rename):
    tensors = fp8(state(tiny))
    with opened(write(rename(tensors)), tiny) as sources:
        source = sources["conditional"]
        assert not [name for name in source.shapes if name.endswith("_scale")]
        for name in (Q, K, V, OUT):
            codes, scale = tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"]
            weight = source.weight(name)
            exact = codes.float() * scale[:, None]
            assert weight.shape == (128, 128)
            assert weight.kept_dtype == torch.bfloat16 == source.dtypes[f"{name}.weight"]
            assert torch.equal(weight.full(), exact)
            assert torch.equal(weight.rows(5, 70), exact[5:70])
        adaln = "layers.0.adaln_modulation.weight"
        exact = tensors[adaln].float() * tensors[f"{adaln}_scale"][:, None]
        assert torch.equal(source.tensor(adaln), exact.bfloat16())
        assert source.weight("llm_cond_proj").scale is None


def test_one_file_with_the_branch_in_front(tiny, tmp_path):
    branches = {branch: state(tiny, seed) for seed, branch in enumerate(BRANCHES)}
    path = tmp_path / "both.safetensors"
    save_file(
        {f"{branch}.{n}": t for branch, ts in branches.items() for n, t in original(ts).items()},
        path,
    )
    with opened(path, tiny) as sources:
        for branch, tensors in branches.items():
            assert torch.equal(sources[branch].weight(K).values, tensors[f"{K}.weight"])


def test_memory_and_file_say_the_same(tiny, write):
    tensors = state(tiny)
    memory = MemorySource(tensors)
    with opened(write(tensors), tiny) as sources:
        file = sources["conditional"]
        assert dict(file.shapes) == dict(memory.shapes)
        assert dict(file.dtypes) == dict(memory.dtypes)
        assert torch.equal(file.weight(Q).full(), memory.weight(Q).full())


def test_blocks_cover_every_row_once():
    weight = StoredWeight(torch.randn(300, 4608))
    assert weight.blocks() == [(0, 113), (113, 226), (226, 300)]  # 113 rows are 2 MiB in fp32
    rows = torch.cat([weight.rows(*block) for block in weight.blocks()])
    assert torch.equal(rows, weight.full())
    assert weight.kept_dtype == torch.float32


def put(name, tensor):
    return lambda tensors: tensors | {name: tensor}


def drop(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(f"{QKV}.weight", torch.ones(384, 128)), r"to_[qkv].weight' must be stored once, got "),
        (drop(f"{K}.weight"), rf"\(conditional\) must hold {K}.weight, got \d+ other tensors"),
        (
            drop(f"{K}.weight_scale"),
            f"'{K}.weight' .* is float8 and must have {K}.weight_scale bes",
        ),
        (put("input_proj.weight", torch.ones(3, dtype=torch.int8)), "must be floating, got int8"),
        (put("input_proj.weight", torch.ones(3, dtype=torch.float64)), "floating, got float64"),
        (lambda _: {"blocks.0.w": torch.ones(3)}, "first 'blocks.0.w'; is it a checkpoint of anot"),
    ],
)
def test_refuses_before_reading(tiny, write, change, message):
    path = write(change(fp8(state(tiny))))
    with pytest.raises(UserError, match=message):
        with opened(path, tiny):
            pass


@pytest.mark.parametrize(
    ("suffix", "tensor", "message"),
    [
        ("weight", torch.ones(383, 128), f"'{QKV}.weight' .* stack 3 equal parts, got 383 rows"),
        ("weight_scale", torch.ones(1), "must stack 3 equal parts, got 1 rows"),
        ("weight_scale", torch.tensor(1.0), "must stack 3 equal parts, got 0 rows"),
    ],
)
def test_refuses_stacks_that_do_not_split(tiny, write, suffix, tensor, message):
    path = write(original(fp8(state(tiny))) | {f"{QKV}.{suffix}": tensor})
    with pytest.raises(UserError, match=message):
        with opened(path, tiny):
            pass


def test_refuses_wrong_shapes_when_they_are_read(tiny, write):
    tensors = fp8(state(tiny)) | {
        f"{Q}.weight_scale": torch.ones(127),
        "llm_cond_proj.weight": torch.ones(4),
    }
    with opened(write(tensors), tiny) as sources:
        source = sources["conditional"]
        with pytest.raises(UserError, match=f"{Q}.weight_scale .* one scale a row, 128, got 127"):
            source.weight(Q)
        with pytest.raises(UserError, match=r"llm_cond_proj.weight .* a matrix, got shape \(4,\)"):
            source.weight("llm_cond_proj")
        with pytest.raises(UserError, match=r"must hold 'nothing', got \d+ other tensors"):
            source.tensor("nothing")


def test_refuses_what_is_no_model(tiny, write, tmp_path):
    with pytest.raises(UserError, match=r"transformer must hold \*.safetensors, got none; pass"):
        with opened(tmp_path / "nowhere", tiny):
            pass
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"<html>")
    with pytest.raises(UserError, match="HTML or XML page.*; pass the unquantized model"):
        with opened(path, tiny):
            pass
    folder = write(state(tiny), 2) / "transformer"
    shard = folder / "m-1.safetensors"
    shard.write_bytes(shard.read_bytes()[:-50])
    with pytest.raises(UserError, match="m-1.safetensors .* truncated, 50 of"):
        with opened(tmp_path, tiny):
            pass
    shard.unlink()
    with pytest.raises(UserError, match="the 2 shards of its index, m-1.safetensors is missing"):
        with opened(tmp_path, tiny):
            pass


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 5}}', '{"weight_map": 1}']
)
def test_refuses_a_damaged_index(tmp_path, text):
    (tmp_path / "m.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match="must be the JSON index of a sharded model, got .*Error"):
        weight_files(tmp_path)


def test_an_index_names_the_shards_and_nothing_outside(tmp_path):
    for name in ("a", "b", "left_over"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    index = tmp_path / "m.safetensors.index.json"
    index.write_text('{"weight_map": {"x": "b.safetensors", "y": "a.safetensors"}}')
    names = [path.name for path in weight_files(tmp_path)]
    assert names == ["a.safetensors", "b.safetensors"]
    index.write_text('{"weight_map": {"x": "../b.safetensors"}}')
    assert weight_files(tmp_path) == [tmp_path / "b.safetensors"]
