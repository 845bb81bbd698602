import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dit8.quant.architectures.ideogram4 import BRANCHES
from dit8.quant.checkpoint.safetensors_file import SafetensorsWriter
from dit8.quant.checkpoint.stored import checkpoint_files, open_checkpoint, read_header
from dit8.quant.errors import UserError
from dit8.quant.types import TensorSpec

QKV = "layers.0.attention.qkv"


@pytest.fixture
def w8a8(tiny, tmp_path):
    return tiny.save(tmp_path / "w8a8", alpha=None, protect=0)


def names(path):
    with open_checkpoint(path, BRANCHES) as stored:
        return {branch: set(found.specs) for branch, found in stored.branches.items()}


def write_with_header(path, text):
    spec = TensorSpec((1,), torch.float32)
    names = [f"{branch}.x" for branch in BRANCHES]
    with SafetensorsWriter(path, dict.fromkeys(names, spec), {"dit8": text}) as writer:
        for name in names:
            writer.write(name, torch.ones(1))


def test_tensors_come_by_their_name_without_the_branch(w8a8):
    tensors = load_file(w8a8)
    with open_checkpoint(w8a8, BRANCHES) as stored:
        assert stored.format == "w8a8"
        assert stored.model_key == "tiny"
        assert stored.resolved.recipe.alpha is None
        for branch, found in stored.branches.items():
            assert {f"{branch}.{name}" for name in found.specs} == {
                name for name in tensors if name.startswith(f"{branch}.")
            }
            assert found.specs[f"{QKV}.wq"] == TensorSpec((384, 128), torch.int8)
            assert torch.equal(found.read(f"{QKV}.wq"), tensors[f"{branch}.{QKV}.wq"])


@pytest.mark.parametrize(
    "prefixes",
    [
        ("conditional.", "unconditional."),
        ("cond.", "uncond."),
        ("transformer.", "unconditional_transformer."),
    ],
)
def test_known_branch_prefixes(tmp_path, prefixes):
    path = tmp_path / "any.safetensors"
    save_file({f"{prefix}{i}.x": torch.ones(1) for i, prefix in enumerate(prefixes)}, path)
    assert names(path) == {"conditional": {"0.x"}, "unconditional": {"1.x"}}
    header = read_header(path, BRANCHES)
    assert (header.resolved, header.model_key, header.format) == (None, None, None)


def test_folders_with_one_file_two_files_or_two_subfolders(tmp_path):
    one, two, sub = tmp_path / "one", tmp_path / "two", tmp_path / "sub"
    one.mkdir()
    save_file({f"{branch}.x": torch.ones(1) for branch in BRANCHES}, one / "name.safetensors")
    two.mkdir()
    for branch, subfolder in BRANCHES.items():
        save_file({"x": torch.ones(1)}, two / f"{branch}.safetensors")
        (sub / subfolder).mkdir(parents=True)
        save_file({"x": torch.ones(1)}, sub / subfolder / "model.safetensors")
    for folder, count in ((one, 1), (two, 2), (sub, 2)):
        assert names(folder) == {"conditional": {"x"}, "unconditional": {"x"}}
        assert len(checkpoint_files(folder, BRANCHES)) == count


def test_one_branch_needs_no_prefix(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1)}, path)
    with open_checkpoint(path, {"transformer": "transformer"}) as stored:
        assert set(stored.branches["transformer"].specs) == {"a"}


def test_refuses_what_is_not_there(tmp_path, w8a8):
    with pytest.raises(UserError, match="no checkpoint at .*nowhere; make it with scripts/quant"):
        read_header(tmp_path / "nowhere", BRANCHES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="must hold one .*, got 0 weight files"):
        read_header(tmp_path / "empty", BRANCHES)
    shutil.copy(w8a8, w8a8.with_name("second.safetensors"))
    with pytest.raises(UserError, match="must hold one .*, got 2 weight files"):
        read_header(w8a8.parent, BRANCHES)
    for subfolder in BRANCHES.values():
        (tmp_path / "empty" / subfolder).mkdir()
    with pytest.raises(UserError, match=r"transformer must hold \*.safetensors, got none"):
        read_header(tmp_path / "empty", BRANCHES)


@pytest.mark.parametrize("only", BRANCHES)
def test_refuses_a_file_without_one_branch(tmp_path, w8a8, only):
    other = next(branch for branch in BRANCHES if branch != only)
    path = tmp_path / "half.safetensors"
    tensors = {n: t for n, t in load_file(w8a8).items() if n.startswith(f"{only}.")}
    save_file(tensors, path)
    with pytest.raises(
        UserError, match=f"got no tensor of {other} .first name in the file: '{only}"
    ):
        read_header(path, BRANCHES)


def test_refuses_a_name_that_two_shards_hold(tmp_path):
    for subfolder in BRANCHES.values():
        (tmp_path / subfolder).mkdir()
        for part in "ab":
            save_file({"x": torch.ones(1)}, tmp_path / subfolder / f"{part}.safetensors")
    with pytest.raises(UserError, match="'x' must be stored once in .*remove the file that does"):
        read_header(tmp_path, BRANCHES)


def test_refuses_headers_of_another_kind(tmp_path):
    path = tmp_path / "x.safetensors"
    write_with_header(path, json.dumps({"kind": "W8A8 checkpoint 1", "recipe": "{}"}))
    with pytest.raises(UserError, match="kind 'dit8 checkpoint 2', got 'W8A8 checkpoint 1'; make"):
        read_header(path, BRANCHES)
    write_with_header(path, json.dumps({"kind": "dit8 checkpoint 2", "recipe": "{}"}))
    with pytest.raises(UserError, match="must be a recipe written by this version"):
        read_header(path, BRANCHES)
    save_file({"x": torch.ones(1)}, path, {"dit8": "no JSON"})
    with pytest.raises(UserError, match="metadata 'dit8' must be JSON"):
        read_header(path, BRANCHES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>404</html>", "it is an HTML or XML page"),
        (pickle.dumps({"a": 1}), "which can run code when opened; convert it to safetensors"),
        (b"\x10\0\0\0\0\0\0\0{", "it is truncated, 15 bytes of its header are missing"),
        (b"GGUF\x03\0\0\0", "it is a GGUF file; give it the suffix .gguf"),
    ],
)
def test_refuses_what_is_no_safetensors(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_header(path, BRANCHES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable GGUF file: it is empty"),
        (b"<html>", "it is an HTML or XML page"),
        (b"GGUF\x03\0\0\0\x01", "not a readable GGUF file"),
    ],
)
def test_refuses_what_is_no_gguf(tmp_path, content, message):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_header(path, BRANCHES)


def test_refuses_a_torch_file(tmp_path):
    path = tmp_path / "x.safetensors"
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(UserError, match="pickle / torch.save file, which can run code when opened"):
        read_header(path, BRANCHES)


def test_refuses_a_file_cut_short(w8a8):
    data = w8a8.read_bytes()
    w8a8.write_bytes(data[:-100])
    with pytest.raises(UserError, match=r"it is truncated, 100 of \d+ bytes are missing"):
        read_header(w8a8, BRANCHES)


def test_a_flipped_bit_is_found_where_it_is_read(w8a8):
    data = bytearray(w8a8.read_bytes())
    data[-1] ^= 1
    w8a8.write_bytes(data)
    with open_checkpoint(w8a8, BRANCHES) as stored:
        with pytest.raises(UserError, match="tensor '.*' of .* is damaged .checksum .*; make it"):
            for found in stored.branches.values():
                for name in found.specs:
                    found.read(name)
