import errno
import json
import os
import shutil
import sys
import weakref
from collections import namedtuple

import numpy as np
import pytest
import torch

from dit8.quant.checkpoint import gguf_file
from dit8.quant.checkpoint.gguf_file import GgufFile, GgufTensor, write_gguf
from dit8.quant.checkpoint.gguf_header import CHECKSUMS
from dit8.quant.errors import UserError
from dit8.quant.formats import q4_k, q8_0
from dit8.quant.types import TensorSpec

gguf = pytest.importorskip("gguf", reason="needs the extra: pip install -e .[gguf]")
HEADER = {"dit8": json.dumps({"source_sha256": "ab" * 32})}


def stored():
    weight = torch.randn(6, 512, generator=torch.Generator().manual_seed(0))
    return {
        "cond.a.weight": ("Q8_0", q8_0.encode(weight)[".weight"]),
        "cond.b.weight": ("Q4_K", q4_k.encode(weight)[".weight"]),
        "cond.norm.weight": ("F32", torch.arange(14.0)[::2]),
        "uncond.a.weight": ("BF16", weight[:3, :5].bfloat16()),
        "uncond.conv.weight": ("F16", weight[:5, :24].half().view(5, 2, 3, 4)),
    }


def wrap(name, kind, tensor):
    return GgufTensor(name, kind, TensorSpec(tuple(tensor.shape), tensor.dtype), lambda: tensor)


def tensors():
    return [wrap(name, kind, tensor) for name, (kind, tensor) in stored().items()]


def failing(error):
    def make():
        raise error

    return GgufTensor("last", "F32", TensorSpec((4,), torch.float32), make)


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "new" / "model.gguf"
    write_gguf(path, tensors(), HEADER, name="mini")
    with GgufFile(path) as file:
        assert file.metadata == {
            "general.architecture": "ideogram4",
            "general.file_type": gguf.LlamaFileType.MOSTLY_Q8_0,
            "general.quantization_version": 2,
            "general.name": "mini",
            **HEADER,
        }
        assert list(file.tensors) == list(stored())
        for name, (kind, tensor) in stored().items():
            assert file.tensors[name].kind == kind
            assert file.tensors[name].start % 32 == 0
            assert torch.equal(file.read(name), tensor)
        assert file.tensors["cond.b.weight"].shape == (6, 512)
    assert [file.name for file in path.parent.iterdir()] == ["model.gguf"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_gguf_py_reads_it_too(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, tensors(), HEADER)
    reader = gguf.GGUFReader(path)
    assert reader.get_field("general.architecture").contents() == "ideogram4"
    assert reader.get_field("dit8").contents() == HEADER["dit8"]
    for found, (name, (kind, tensor)) in zip(reader.tensors, stored().items(), strict=True):
        assert (found.name, found.tensor_type.name) == (name, kind)
        raw = tensor.contiguous().flatten().view(torch.uint8).numpy()
        assert found.data.tobytes() == raw.tobytes()
    assert reader.tensors[0].shape.tolist() == [512, 6]  # K first
    assert path.stat().st_size == reader.tensors[-1].data_offset + 256  # 240 and the gap


@pytest.mark.parametrize(
    "kind, file_type",
    [("Q8_0", "MOSTLY_Q8_0"), ("Q4_K", "MOSTLY_Q4_K_S"), ("F16", "MOSTLY_F16"), ("F32", "ALL_F32")],
)
def test_the_file_type_is_what_most_bytes_are(tmp_path, kind, file_type):
    most = {"F32": torch.ones(9, 288), "F16": torch.ones(9, 288).half()}
    main = most.get(kind, torch.zeros(9, 34 * 144, dtype=torch.uint8))
    path = tmp_path / "model.gguf"
    write_gguf(path, [wrap("norm", "F32", torch.ones(4)), wrap("main", kind, main)], {})
    with GgufFile(path) as file:
        assert file.metadata["general.file_type"] == gguf.LlamaFileType[file_type]


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_gguf(tmp_path / name, tensors(), HEADER)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "model.gguf"
    small = [
        wrap("cond.a.weight", "Q8_0", torch.arange(68, dtype=torch.uint8).view(1, 68)),
        wrap("norm", "F32", torch.ones(3)),
    ]
    write_gguf(path, small, HEADER)
    raw = path.read_bytes()
    with GgufFile(path) as file:
        used = [(e.start, e.start + e.spec.nbytes) for e in file.tensors.values()]
        offset_of_last = raw.index(b"norm", raw.rindex(b"cond.a.weight")) + 4 + 4 + 8 + 4
        header_end = offset_of_last + 8
    used.append((0, header_end))
    for start, end in used:
        for place in range(start, end):
            damaged = bytearray(raw)
            damaged[place] ^= 1 << place % 8
            path.write_bytes(damaged)
            with pytest.raises(UserError, match="damaged|truncated|must b|readable"):
                with GgufFile(path) as file:
                    for name in file.tensors:
                        file.read(name)


def test_a_damaged_tensor_and_a_rewritten_header_say_so(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, tensors(), HEADER)
    raw = bytearray(path.read_bytes())
    raw[-200] ^= 1
    path.write_bytes(raw)
    with GgufFile(path) as file:
        file.read("cond.b.weight")
        sums = r"\(checksum \w{8}, expected \w{8}\); download it again"
        with pytest.raises(UserError, match=f"'uncond.conv.weight' of .* is damaged {sums}"):
            file.read("uncond.conv.weight")
    path.write_bytes(raw.replace(b"abab", b"abac", 1))
    with pytest.raises(UserError, match="its header is damaged .*or another program rewrote it;"):
        GgufFile(path)


def test_memory_holds_one_tensor_at_a_time(tmp_path):
    made = []

    def make():
        assert all(array() is None for array in made), "a tensor before is still held"
        array = np.zeros(1000, dtype=np.float32)
        made.append(weakref.ref(array))
        return torch.from_numpy(array)

    spec = TensorSpec((1000,), torch.float32)
    write_gguf(tmp_path / "x", [GgufTensor(f"t{i}", "F32", spec, make) for i in range(3)], {})
    assert len(made) == 3


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), UserError("weight must be finite"), RuntimeError("bug")]
)
def test_nothing_stays_when_a_tensor_cannot_be_made(tmp_path, error):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"old")
    with pytest.raises(type(error)):
        write_gguf(path, [*tensors(), failing(error)], HEADER)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_up_is_one_sentence(tmp_path, monkeypatch):
    really, calls = os.pwrite, []

    def pwrite(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really(*arguments)

    monkeypatch.setattr(os, "pwrite", pwrite)
    # the first tensor, 3264 bytes, is on the disk
    with pytest.raises(UserError, match=r"model.gguf: No space left on device \(2048 bytes are"):
        write_gguf(tmp_path / "model.gguf", tensors(), HEADER)
    assert list(tmp_path.iterdir()) == []


def test_tensors_larger_than_one_read_or_write(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "PIECE_BYTES", 64)
    really = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: really(fd, bytes(data)[:70], at))
    write_gguf(tmp_path / "x", tensors(), HEADER)
    with GgufFile(tmp_path / "x") as file:
        for name, (_, tensor) in stored().items():
            assert torch.equal(file.read(name), tensor)
    monkeypatch.undo()
    write_gguf(tmp_path / "y", tensors(), HEADER)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_nothing_begins_without_the_room_for_it(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9999, 4656, 5343))
    made = failing(AssertionError("nothing may be made"))
    with pytest.raises(UserError, match=r"\(5344 bytes are needed, 5343 are free\); make room"):
        write_gguf(tmp_path / "model.gguf", [made, *tensors()], HEADER)
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    match = r"write_gguf: writing needs the package gguf, got .*; run pip install 'dit8\[gguf\]'"
    with pytest.raises(UserError, match=match):
        write_gguf(tmp_path / "model.gguf", tensors(), HEADER)


@pytest.mark.parametrize(
    "tensor, match",
    [
        (wrap("x", "Q5_K", torch.ones(4)), "'x' must be of a kind F32, .* got Q5_K"),
        (wrap("x", "F32", torch.ones(4).half()), "'x' must be of a kind F32, .* got F32 torch.fl"),
        (wrap("x", "F32", torch.tensor(1.0)), r"1 to 4 dimensions, got F32 torch.float32 \(\)"),
        (
            wrap("x", "Q8_0", torch.zeros(2, 35, dtype=torch.uint8)),
            r"'x' must have rows of whole blocks of 34 bytes, got \(2, 35\)",
        ),
        (wrap("cond.a.weight", "F32", torch.ones(4)), "must get every name once, got one twice"),
        (
            GgufTensor("x", "F32", TensorSpec((4,), torch.float32), lambda: torch.ones(5)),
            r"'x' must be made as \(4,\) torch.float32, got \(5,\) torch.float32",
        ),
    ],
)
def test_refuses_tensors_that_are_not_as_announced(tmp_path, tensor, match):
    with pytest.raises(ValueError, match=match) as caught:
        write_gguf(tmp_path / "model.gguf", [*tensors(), tensor], HEADER)
    assert not isinstance(caught.value, UserError)
    assert list(tmp_path.iterdir()) == []


def test_metadata_keeps_its_checksums_to_itself(tmp_path):
    write_gguf(tmp_path / "x", tensors(), {})
    with GgufFile(tmp_path / "x") as file:
        assert CHECKSUMS not in file.metadata
