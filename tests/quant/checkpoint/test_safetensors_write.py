import errno
import json
import os
import stat
import zlib

import pytest
import torch
from safetensors import safe_open

from dit8.quant.checkpoint.safetensors_file import PIECE_BYTES, SafetensorsFile, SafetensorsWriter
from dit8.quant.checkpoint.safetensors_header import DTYPES, encode
from dit8.quant.errors import UserError
from dit8.quant.types import TensorSpec

SPECS = {"b": TensorSpec((4, 3), torch.bfloat16), "a": TensorSpec((5,), torch.int8)}
HEADER = {"dit8": '{"kind": "k"}'}


def make(specs):
    tensors = {}
    for name, spec in specs.items():
        data = torch.randint(0, 256, (spec.nbytes,), dtype=torch.uint8)
        data = data & 1 if spec.dtype == torch.bool else data
        tensors[name] = data.view(spec.dtype).reshape(spec.shape)
    return tensors


def write(path, tensors, specs=SPECS, metadata=HEADER):
    with SafetensorsWriter(path, specs, metadata) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


def bits(tensor):
    return tensor.contiguous().flatten().view(torch.uint8)


def header_of(path):
    raw = path.read_bytes()
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])


def test_the_package_and_we_read_the_same(tmp_path):
    specs = {f"é.{name}": TensorSpec((5, 3), dtype) for name, dtype in DTYPES.items()}
    specs |= {"scalar": TensorSpec((), torch.float32), "empty": TensorSpec((0, 3), torch.int64)}
    tensors = make(specs)
    path = tmp_path / "deep" / "x"
    write(path, tensors, specs, HEADER | {"format": "pt", "é": "ü"})
    with safe_open(path, framework="pt") as theirs, SafetensorsFile(path) as ours:
        assert set(theirs.keys()) == specs.keys() == ours.specs.keys()
        assert ours.metadata == HEADER | {"format": "pt", "é": "ü"}
        assert theirs.metadata()["format"] == "pt" and theirs.metadata()["é"] == "ü"
        for name, tensor in tensors.items():
            for read in (theirs.get_tensor(name), ours.read(name)):
                assert (read.shape, read.dtype) == (tensor.shape, tensor.dtype)
                assert torch.equal(bits(read), bits(tensor))
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_the_checksums_are_those_of_the_bytes(tmp_path):
    tensors = make(SPECS)
    write(tmp_path / "x", tensors)
    content = json.loads(header_of(tmp_path / "x")["__metadata__"]["dit8"])
    for name, tensor in tensors.items():
        assert content["crc32"][name] == f"{zlib.crc32(bits(tensor).numpy().tobytes()):08x}"
    assert content.keys() == {"kind", "crc32", "header_crc32"}


def test_values_lie_at_multiples_of_their_size(tmp_path):
    specs = {f"{i}{name}": TensorSpec((i,), t) for i in (1, 3) for name, t in DTYPES.items()}
    write(tmp_path / "x", make(specs), specs)
    data_start = int.from_bytes((tmp_path / "x").read_bytes()[:8], "little") + 8
    for name, found in header_of(tmp_path / "x").items():
        if name != "__metadata__":
            assert (data_start + found["data_offsets"][0]) % specs[name].dtype.itemsize == 0


def test_order_changes_no_byte(tmp_path):
    tensors = make(SPECS)
    write(tmp_path / "x", tensors, SPECS, {"b": "1", "a": "2", "dit8": '{"y": 1, "x": 2}'})
    turned = dict(reversed(SPECS.items()))
    metadata = {"dit8": '{"x": 2, "y": 1}', "a": "2", "b": "1"}
    write(tmp_path / "y", dict(reversed(tensors.items())), turned, metadata)
    with SafetensorsWriter(tmp_path / "z", SPECS, metadata) as writer:
        writer.write_rows("b", 0, tensors["b"][:1])
        writer.write("a", torch.stack([tensors["a"]] * 2, dim=1)[:, 0])  # strided
        writer.write_rows("b", 1, tensors["b"][1:1])
        writer.write_rows("b", 1, tensors["b"][1:])
    whole = (tmp_path / "x").read_bytes()
    assert (tmp_path / "y").read_bytes() == whole == (tmp_path / "z").read_bytes()


def test_pieces_and_writes_that_take_less(tmp_path, monkeypatch):
    specs = {"a": TensorSpec((PIECE_BYTES + 5,), torch.uint8)}
    tensors, pwrite, sizes = make(specs), os.pwrite, []

    def short(fd, view, offset):
        sizes.append(len(view))
        return pwrite(fd, view[:9_999_999], offset)

    monkeypatch.setattr(os, "pwrite", short)
    write(tmp_path / "x", tensors, specs)
    assert sizes[0] == PIECE_BYTES
    with SafetensorsFile(tmp_path / "x") as file:
        assert torch.equal(file.read("a"), tensors["a"])


@pytest.mark.parametrize("fail_at", [0, 1, 2])  # a tensor, the other one, the header
@pytest.mark.parametrize("has_old", [False, True])
def test_a_full_disk_leaves_nothing_new(tmp_path, monkeypatch, fail_at, has_old):
    path = tmp_path / "x"
    tensors = make(SPECS)
    if has_old:
        write(path, tensors)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    pwrite, calls = os.pwrite, []

    def full(fd, view, offset):
        calls.append(len(view))
        if len(calls) == fail_at + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, view, offset)

    monkeypatch.setattr(os, "pwrite", full)
    message = r"cannot write .*x: No space left on device \((\d+) bytes are needed, \d+ are free\)"
    with pytest.raises(UserError, match=message + "; make room") as caught:
        write(path, tensors)
    monkeypatch.undo()
    whole = len(encode(SPECS, HEADER, {})) + 24 + 5
    written = sum(calls[:fail_at])
    assert f"({whole - written} bytes are needed" in str(caught.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_disk_that_is_too_small_is_seen_beforehand(tmp_path, monkeypatch):
    specs = {"a": TensorSpec((1 << 50,), torch.int8)}
    monkeypatch.setattr(
        "dit8.quant.checkpoint.safetensors_file.FileIO", None
    )  # would be called to make the file
    message = (
        rf"cannot write .*\({(1 << 50) + len(encode(specs, {}, {}))} bytes are needed, \d+ are"
    )
    with pytest.raises(UserError, match=message):
        with SafetensorsWriter(tmp_path / "x", specs, {}):
            pytest.fail("the block must not begin")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch):
    pwrite = os.pwrite

    def interrupted(fd, view, offset):
        pwrite(fd, view[:2], offset)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "pwrite", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "x", make(SPECS))
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_block_passes_unchanged(tmp_path):
    with pytest.raises(OSError, match="of somebody else"):
        with SafetensorsWriter(tmp_path / "x", SPECS, HEADER) as writer:
            writer.write("a", make(SPECS)["a"])
            raise OSError("of somebody else")
    assert list(tmp_path.iterdir()) == []


def test_an_incomplete_file_does_not_appear(tmp_path):
    tensors = make(SPECS)
    for rows in (0, 3):
        with pytest.raises(ValueError, match="x must get 2 tensors, 1 are not complete.* is 'b'"):
            with SafetensorsWriter(tmp_path / "x", SPECS, HEADER) as writer:
                writer.write("a", tensors["a"])
                writer.write_rows("b", 0, tensors["b"][:rows])
    assert list(tmp_path.iterdir()) == []


def test_the_file_reaches_the_disk_before_its_name_does(tmp_path, monkeypatch):
    order, replace, fsync = [], os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), replace(a, b)))
    write(tmp_path / "x", make(SPECS))
    assert order == ["fsync", "rename"]


def test_refuses_what_was_not_announced(tmp_path):
    tensors = make(SPECS)
    b = tensors["b"]
    with SafetensorsWriter(tmp_path / "x", SPECS, HEADER) as writer:
        with pytest.raises(ValueError, match="'c' must be a tensor of the file"):
            writer.write("c", b)
        with pytest.raises(
            ValueError, match="'b' must be of type torch.bfloat16, got torch.float16"
        ):
            writer.write_rows("b", 0, b.half())
        with pytest.raises(
            ValueError, match=r"'b' must be written once in shape \(4, 3\), got.*3, 4"
        ):
            writer.write("b", b.T)
        for start, rows in ((1, b[1:]), (-1, b[:1]), (0, b[:, :2]), (0, b[0, 0])):
            with pytest.raises(ValueError, match=rf"in order, got .* at row {start} after 0 bytes"):
                writer.write_rows("b", start, rows)
        with pytest.raises(ValueError, match="'b' has 4 rows, got rows 0 to 5"):
            writer.write_rows("b", 0, torch.cat([b, b[:1]]))
        writer.write_rows("b", 0, b[:2])
        with pytest.raises(ValueError, match="in order, got .* at row 0 after 12 bytes"):
            writer.write_rows("b", 0, b[:2])
        with pytest.raises(ValueError, match="'b' must be written once .* after 12 bytes"):
            writer.write("b", b)
        writer.write_rows("b", 2, b[2:])
        writer.write("a", tensors["a"])
    with SafetensorsFile(tmp_path / "x") as file:
        assert torch.equal(bits(file.read("b")), bits(b))


def test_refuses_names_types_and_metadata_that_the_format_lacks(tmp_path):
    good = TensorSpec((1,), torch.int8)
    for specs in ({"a": TensorSpec((1,), torch.complex64)}, {"__metadata__": good}):
        with pytest.raises(ValueError, match="must have a type of F64,.* and another name than"):
            SafetensorsWriter(tmp_path / "x", specs, {})
    for text in ("[]", '{"crc32": 1}', '{"header_crc32": 1}'):
        with pytest.raises(ValueError, match="'dit8' must be a JSON object without crc32"):
            SafetensorsWriter(tmp_path / "x", {"a": good}, {"dit8": text})
    with pytest.raises(ValueError, match="only 'dit8' may speak of header_crc32"):
        SafetensorsWriter(tmp_path / "x", {}, {"dit8": '{"a": {"header_crc32": "0"}}'})
    with pytest.raises(ValueError, match="write inside its with block"):
        SafetensorsWriter(tmp_path / "x", {"a": good}, {}).write("a", torch.ones(1).to(torch.int8))


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*choose a folder that you may write to"):
        write(tmp_path / "file" / "x", {}, {})
