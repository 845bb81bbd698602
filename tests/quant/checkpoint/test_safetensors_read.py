import json
import os
import pickle
import re

import pytest
import torch
from safetensors.torch import save_file

from dit8.quant.checkpoint.safetensors_file import PIECE_BYTES, SafetensorsFile, SafetensorsWriter
from dit8.quant.checkpoint.safetensors_header import DTYPES
from dit8.quant.checkpoint.tensor_file import write_tensors
from dit8.quant.errors import UserError
from dit8.quant.types import TensorSpec


def bits(tensor):
    """A tensor as bytes: equality holds for NaN too, and for every dtype."""
    return tensor.contiguous().flatten().view(torch.uint8)


def random_tensors():
    tensors = {"scalar": torch.tensor(1.5), "empty": torch.empty(0, 3), "none": torch.empty(2, 0)}
    for name, dtype in DTYPES.items():
        data = torch.randint(0, 256, (5 * 3 * dtype.itemsize,), dtype=torch.uint8)
        data = data & 1 if dtype == torch.bool else data
        tensors[f"é {name}"] = data.view(dtype).reshape(5, 3)
    return tensors


def raw_file(path, entries, data=b"", padding=b""):
    """Write a file by hand, right or wrong; `entries` may be the header's text."""
    text = (entries if isinstance(entries, bytes) else json.dumps(entries).encode()) + padding
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(start, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def test_reads_what_the_package_writes(tmp_path):
    tensors = random_tensors()
    save_file(tensors, tmp_path / "x", {"format": "pt", "é": "\n", "dit8 too": ""})
    with SafetensorsFile(tmp_path / "x") as file:
        assert file.metadata == {"format": "pt", "é": "\n", "dit8 too": ""}
        assert file.specs.keys() == tensors.keys()
        for name, tensor in tensors.items():
            read = file.read(name)
            assert file.specs[name] == TensorSpec(tuple(tensor.shape), tensor.dtype)
            assert (read.shape, read.dtype) == (tensor.shape, tensor.dtype)
            assert torch.equal(bits(read), bits(tensor))
    save_file({}, tmp_path / "nothing")
    with SafetensorsFile(tmp_path / "nothing") as file:
        assert file.specs == {} and file.metadata == {}


def test_reads_any_order_and_padding_in_the_header(tmp_path):
    entries = {"b": entry(8, 16), "a": entry(0, 8), "e": entry(8, 8, (0,))}
    data = bits(torch.arange(4.0)).numpy().tobytes()
    for padding in (b"", b" " * 3, b"\n" * 70):  # unaligned values too
        with SafetensorsFile(raw_file(tmp_path / "x", entries, data, padding)) as file:
            assert list(file.specs) == ["a", "e", "b"]  # as they lie, not as they are listed
            assert file.read("a").tolist() == [0.0, 1.0] and file.read("b").tolist() == [2.0, 3.0]


def test_a_header_that_begins_like_a_pickle_is_read(tmp_path):
    entries = json.dumps({"a": entry(0, 8)}).encode()
    path = raw_file(tmp_path / "x", entries, bytes(8), b" " * (0x0280 - len(entries)))
    assert path.read_bytes().startswith(b"\x80\x02")
    with SafetensorsFile(path) as file:
        assert file.read("a").tolist() == [0.0, 0.0]


def test_reads_rows(tmp_path):
    tensor = torch.arange(24.0).reshape(4, 3, 2).bfloat16()
    write_tensors(tmp_path / "x", {"a": tensor, "scalar": torch.tensor(1)}, "k", {})
    with SafetensorsFile(tmp_path / "x") as file:
        for start, stop in ((0, 4), (1, 3), (3, 4), (2, 2)):
            rows = file.read_rows("a", start, stop)
            assert rows.dtype == torch.bfloat16 and torch.equal(rows, tensor[start:stop])
        for start, stop in ((-1, 2), (3, 2), (0, 5)):
            with pytest.raises(ValueError, match=f"has no rows {start} to {stop}"):
                file.read_rows("a", start, stop)
        with pytest.raises(ValueError, match="'scalar' of shape .* has no rows"):
            file.read_rows("scalar", 0, 0)
        for read in (file.read, lambda name: file.read_rows(name, 0, 1)):
            with pytest.raises(ValueError, match="no tensor 'b' in .*x"):
                read("b")
    with pytest.raises(ValueError, match="closed file"):
        file.read("a")


def test_a_tensor_of_several_pieces_and_reads_that_return_less(tmp_path, monkeypatch):
    tensor = torch.randint(0, 256, (PIECE_BYTES * 2 + 5,), dtype=torch.uint8)
    write_tensors(tmp_path / "x", {"a": tensor}, "k", {})
    sizes, preadv = [], os.preadv

    def short(fd, views, offset):
        sizes.append(len(views[0]))
        return preadv(fd, [views[0][:9_999_999]], offset)

    with SafetensorsFile(tmp_path / "x") as file:
        monkeypatch.setattr(os, "preadv", short)
        assert torch.equal(file.read("a"), tensor)
    assert sizes[0] == PIECE_BYTES  # what is asked for at once


def test_reading_costs_the_tensor_and_no_more(tmp_path, monkeypatch):
    write_tensors(tmp_path / "x", {"a": torch.ones(8)}, "k", {})
    allocated, empty = [], torch.empty

    def counted(*args, **kwargs):
        allocated.append(empty(*args, **kwargs))
        return allocated[-1]

    monkeypatch.setattr(torch, "empty", counted)
    with SafetensorsFile(tmp_path / "x") as file:
        tensor = file.read("a")
    assert [block.nbytes for block in allocated] == [32]
    assert tensor.data_ptr() == allocated[0].data_ptr()  # filled in place, not copied


def test_every_cut_is_an_error(tmp_path):
    path = tmp_path / "x"
    write_tensors(path, {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.int8)}, "k", {})
    whole = path.read_bytes()
    data_start = 8 + int.from_bytes(whole[:8], "little")
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        reason = f"truncated, only {size} bytes are left" if size else "empty"
        if size >= 8:
            reason = f"truncated, {data_start - size} bytes of its header are missing"
        if size >= data_start:
            reason = f"truncated, {len(whole) - size} of {len(whole)} bytes are missing"
        with pytest.raises(UserError, match=f"x is not a readable.*: it is {reason}; do that"):
            SafetensorsFile(path, remedy="do that").close()
    path.write_bytes(whole + b"\0")
    with pytest.raises(UserError, match="1 bytes too many follow its last tensor"):
        SafetensorsFile(path)


def test_every_flipped_bit_is_an_error(tmp_path):
    path = tmp_path / "x"
    write_tensors(path, {"é": torch.ones(3, dtype=torch.int8)}, "k", {"alpha": 0.5})
    whole, missed = path.read_bytes(), []

    def put(byte, at):  # in place: truncating a file costs a write to the disk
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(bytes([byte]))

    for bit in range(8 * len(whole)):
        at = bit // 8
        put(whole[at] ^ 1 << bit % 8, at)
        try:  # thousands of cases: pytest.raises alone would take seconds
            with SafetensorsFile(path) as file:
                missed.append((bit, [file.read(name) for name in file.specs]))
        except UserError as error:
            assert re.search("x (is not a readable|is damaged).*; download it again$", str(error))
        put(whole[at], at)
    assert not missed
    assert path.read_bytes() == whole


def test_flipped_data_names_the_tensor(tmp_path):
    path = tmp_path / "x"
    write_tensors(path, {"a": torch.ones(2), "b": torch.zeros(2)}, "k", {})
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with SafetensorsFile(path, remedy="make it anew") as file:
        assert file.read("a").tolist() == [1.0, 1.0]
        message = r"tensor 'b' of .*x is damaged \(checksum \w{8}, expected \w{8}\); make it anew"
        with pytest.raises(UserError, match=message):
            file.read("b")
        assert file.read_rows("b", 0, 1).tolist() == [0.0]  # rows are not compared


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        (b'{"a": [}', r"its header is not JSON \(Expecting value"),
        (b'{"a": "\xff"}', r"its header is not JSON \('utf-8' codec"),
        (b'{"a":' * 100_000, r"its header is not JSON \(maximum recursion"),
        (b'{"a": 1, "a": 1}', "its header says something twice"),
        ({"__metadata__": {"x": 1}}, "must map strings to strings"),
        (
            {"a": entry(0, 20, (5,)), "__metadata__": {"dit8": "{"}},
            r"its metadata 'dit8' must be JSON \(",
        ),
        (
            {"a": entry(0, 20, (5,)), "__metadata__": {"dit8": "1"}},
            "its metadata 'dit8' must be a JSON object",
        ),
        ({"a": entry(0, 8), "b": entry(4, 12)}, "'b' overlaps the one before.* byte 4 .*pected 8"),
        ({"a": entry(0, 8), "b": entry(12, 20)}, "'b' leaves a gap before it.* 12 .*expected 8"),
        ({"a": entry(4, 12)}, "'a' leaves a gap before it"),
        ({"a": entry(0, 8), "b": entry(8, 2**70, (2**68 - 2,))}, "truncated, .* are missing"),
        ({"a": entry(0, 12)}, r"'a' of shape \(2,\) needs 8 bytes, its offsets give 12"),
        ({"a": entry(8, 0)}, "needs 8 bytes, its offsets give -8"),
        ({"a": entry(0, 8, (-2, -1))}, "'a' must have a shape and two data_offsets"),
        ({"a": entry(0, 8, (2.0,))}, "'a' must have a shape and two data_offsets"),
        ({"a": entry(0, 8, (True, 2))}, "'a' must have a shape and two data_offsets"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "'a' must have a shape and two data_offsets"),
        ({"a": 7}, "'a' must have a shape and two data_offsets, got '7'"),
        ({"a": entry(0, 8, dtype="U64")}, "'a' must have a type of F64, .* BOOL, got 'U64'"),
        ({"a": entry(0, 8, dtype=["F32"])}, "'a' must have a type of"),
    ],
)
def test_refuses_a_wrong_header(tmp_path, entries, reason):
    path = raw_file(tmp_path / "x", entries, bytes(20))
    with pytest.raises(UserError, match=f"x is not a readable safetensors file: .*{reason}"):
        SafetensorsFile(path)


def test_refuses_checksums_that_are_not_of_these_tensors(tmp_path):
    # what remains when another program keeps the metadata and writes other tensors
    write_tensors(tmp_path / "x", {"a": torch.ones(2)}, "k", {})
    whole = (tmp_path / "x").read_bytes()
    kept = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]
    save_file({"b": torch.ones(2)}, tmp_path / "y", kept)
    with pytest.raises(UserError, match="header is damaged .* or another program rewrote it"):
        SafetensorsFile(tmp_path / "y")
    named = whole.replace(rb"\"crc32\": {\"a\"", rb"\"crc32\": {\"b\"")
    (tmp_path / "y").write_bytes(named)
    with pytest.raises(UserError) as caught:
        SafetensorsFile(tmp_path / "y")
    found, stated = re.search(r"checksum (\w+), expected (\w+)", str(caught.value)).groups()
    (tmp_path / "y").write_bytes(named.replace(stated.encode(), found.encode()))
    with pytest.raises(UserError, match="checksums and tensors do not belong together"):
        SafetensorsFile(tmp_path / "y")
    content = {"crc32": {"b": "0" * 8}}
    save_file({"a": torch.ones(2)}, tmp_path / "y", {"dit8": json.dumps(content)})
    with pytest.raises(UserError, match="checksums and tensors do not belong together"):
        SafetensorsFile(tmp_path / "y")


def test_says_what_else_a_file_is(tmp_path):
    path = tmp_path / "x"

    def refused(reason):
        with pytest.raises(UserError, match=rf"x is not a readable safetensors file: {reason}"):
            SafetensorsFile(path, remedy="do that")

    with pytest.raises(UserError, match="no file at .*x; do that"):
        SafetensorsFile(path, remedy="do that")
    path.mkdir()
    refused("it is a folder; do that")
    path.rmdir()
    os.mkfifo(path)
    refused("it is not a regular file; do that")
    path.unlink()
    for page in (b"<!DOCTYPE html><p>404", b"\xef\xbb\xbf\n <?xml version='1.0'?><Error/>"):
        path.write_bytes(page)
        refused("it is an HTML or XML page, perhaps an error message; do that")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused("it is a Git LFS pointer, not the file it points to; run git lfs pull")
    path.write_bytes(b"GGUF\x03\0\0\0" + bytes(40))
    refused("it is a GGUF file; give it the suffix .gguf")
    for size in (7, 40):
        path.write_bytes(b"\xff" * size)
        refused("it is truncated, only 7 bytes are left; do that" if size == 7 else "it does not b")
    path.write_bytes(bytes(40))  # a header of length 0, as a file system leaves after a crash
    refused("it does not begin with the length of a header and a brace; do that")


def test_refuses_a_pickle_without_running_it(tmp_path):
    path = tmp_path / "x"
    ran = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(ran),))

    def save(new_zip):
        content = {"a": torch.ones(2), "b": Bomb()}
        torch.save(content, path, _use_new_zipfile_serialization=new_zip)

    for write in (
        lambda: save(True),
        lambda: save(False),
        lambda: path.write_bytes(pickle.dumps(Bomb())),
    ):
        write()
        message = (
            "x is not a readable safetensors file: it is a pickle / torch.save file, which can run "
            "code when opened; convert it to safetensors"
        )
        with pytest.raises(UserError, match=message):
            SafetensorsFile(path)
    assert not ran.exists()


def test_a_failing_disk_and_a_file_cut_under_our_hands(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_tensors(path, {"a": torch.ones(8)}, "k", {})
    with SafetensorsFile(path) as file:
        os.truncate(path, path.stat().st_size - 4)
        with pytest.raises(UserError, match="x is not .*: it was cut short while it was open"):
            file.read("a")

        def fail(*_):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(UserError, match="x is not .*: Input/output error; download it again"):
            file.read("a")
    with pytest.raises(UserError, match="x is not .*: Input/output error"):
        SafetensorsFile(path)


def test_a_file_that_may_not_be_opened(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    write_tensors(tmp_path / "x", {}, "k", {})
    monkeypatch.setattr("builtins.open", refuse)  # root may open whatever it likes
    with pytest.raises(UserError, match="x is not a readable .*: Permission denied; download"):
        SafetensorsFile(tmp_path / "x")


def test_a_plain_file_has_no_checksums(tmp_path):
    specs = {"a": TensorSpec((2,), torch.float32)}
    with SafetensorsWriter(tmp_path / "x", specs, {"format": "pt"}) as writer:
        writer.write("a", torch.ones(2))
    assert b"crc32" not in (tmp_path / "x").read_bytes()
    with SafetensorsFile(tmp_path / "x") as file:
        assert file.metadata == {"format": "pt"} and file.read("a").tolist() == [1.0, 1.0]
