import os
import struct

import numpy as np
import pytest
import torch

from dit8.quant.checkpoint.gguf_file import GgufFile
from dit8.quant.checkpoint.gguf_header import FOREIGN_KINDS, KINDS
from dit8.quant.errors import UserError
from dit8.quant.formats import q4_k, q8_0
from dit8.quant.types import TensorSpec

NEED_GGUF = "needs the extra: pip install -e .[gguf]"


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key, kind, raw):
    return text(key) + struct.pack("<I", kind) + raw


def tensor(name, dims, number, offset):
    """A tensor's line in the header; dims as they stand in the file: K first."""
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, number, offset)


def build(entries=(), tensors=(), data=b"", version=3, alignment=32, magic=b"GGUF"):
    raw = magic + struct.pack("<IQQ", version, len(tensors), len(entries))
    raw += b"".join(entries) + b"".join(tensors)
    return raw + bytes(-len(raw) % alignment) + data


def two_tensors(**options):
    """ "a" (2, 3) fp32 and "b" (1, 64) Q8_0."""
    a = torch.arange(6.0)
    b = q8_0.encode(torch.arange(64.0)[None])[".weight"]
    data = a.numpy().tobytes() + bytes(8) + b.numpy().tobytes()
    lines = [tensor("a", (3, 2), 0, 0), tensor("b", (64, 1), 8, 32)]
    return build(tensors=lines, data=data, **options), a.view(2, 3), b


@pytest.fixture
def save(tmp_path):
    def write(raw):
        path = tmp_path / "model.gguf"
        path.write_bytes(raw)
        return path

    return write


def refused(path, match):
    with pytest.raises(UserError, match=match) as caught:
        GgufFile(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    assert message.endswith("download it again, or make it with scripts/quantize.py")


@pytest.mark.parametrize("version", [2, 3])
def test_reads_a_hand_built_file(save, version):
    raw, a, b = two_tensors(version=version)
    with GgufFile(save(raw)) as file:
        assert list(file.tensors) == ["a", "b"] and file.metadata == {}
        assert [(e.kind, e.shape) for e in file.tensors.values()] == [
            ("F32", (2, 3)),
            ("Q8_0", (1, 64)),
        ]
        assert file.spec("a") == TensorSpec((2, 3), torch.float32)
        assert file.spec("b") == TensorSpec((1, 68), torch.uint8)
        assert torch.equal(file.read("a"), a)
        assert torch.equal(file.read("b"), b)


def test_reads_every_type_of_metadata(save):
    numbers = [(0, "B", 7), (1, "b", -7), (2, "H", 700), (3, "h", -700), (4, "I", 70000)]
    numbers += [(5, "i", -70000), (6, "f", 0.5), (10, "Q", 2**40), (11, "q", -(2**40))]
    numbers += [(12, "d", 0.1), (7, "?", True)]
    entries = [entry(f"n{kind}", kind, struct.pack(f"<{form}", v)) for kind, form, v in numbers]
    entries.append(entry("s", 8, text("Grüße")))
    entries.append(entry("ai", 9, struct.pack("<IQ3i", 5, 3, 1, -2, 3)))
    entries.append(entry("as", 9, struct.pack("<IQ", 8, 2) + text("x") + text("")))
    with GgufFile(save(build(entries))) as file:
        expected = {f"n{kind}": value for kind, _, value in numbers}
        expected |= {"s": "Grüße", "ai": [1, -2, 3], "as": ["x", ""]}
        assert file.metadata == expected


def test_an_alignment_of_the_file_is_kept(save):
    line = tensor("a", (2,), 0, 0)
    entries = [entry("general.alignment", 4, struct.pack("<I", 256))]
    raw = build(entries, [line], struct.pack("<2f", 1.0, 2.0), alignment=256)
    with GgufFile(save(raw)) as file:
        assert file.tensors["a"].start == 256
        assert file.read("a").tolist() == [1.0, 2.0]


def test_reads_what_gguf_py_wrote_and_agrees_with_its_reader(tmp_path):
    gguf = pytest.importorskip("gguf", reason=NEED_GGUF)
    path = tmp_path / "made.gguf"
    kinds = gguf.GGMLQuantizationType
    weight = torch.randn(4, 512)
    plain = weight.numpy()
    blocks = {
        "Q8_0": gguf.quants.quantize(plain, kinds.Q8_0),
        "BF16": gguf.quants.quantize(plain, kinds.BF16),
        "Q4_K": q4_k.encode(weight)[".weight"].numpy(),
    }
    writer = gguf.GGUFWriter(path, "ideogram4")
    writer.add_uint32("ideogram4.block_count", 34)
    writer.add_array("some.names", ["a", "b"])
    writer.add_tensor("f32", plain)
    writer.add_tensor("f16", plain.astype(np.float16))
    writer.add_tensor("conv", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    for name, raw in blocks.items():
        writer.add_tensor(name.lower(), raw, raw_dtype=kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with GgufFile(path) as file:
        assert file.metadata == {
            "general.architecture": "ideogram4",
            "ideogram4.block_count": 34,
            "some.names": ["a", "b"],
        }
        assert torch.equal(file.read("f32"), weight)
        assert torch.equal(file.read("f16"), weight.half())
        assert torch.equal(file.read("bf16"), weight.bfloat16())
        assert torch.equal(file.read("conv"), torch.arange(24.0).view(2, 3, 4))
        for name in ("Q8_0", "Q4_K"):
            assert file.tensors[name.lower()].shape == (4, 512)
            assert torch.equal(file.read(name.lower()), torch.from_numpy(blocks[name]))
        theirs = {t.name: t for t in gguf.GGUFReader(path).tensors}
        assert list(theirs) == list(file.tensors)
        for name, found in file.tensors.items():
            assert found.start == theirs[name].data_offset
            assert found.spec.nbytes == theirs[name].n_bytes
            assert list(found.shape) == theirs[name].shape.tolist()[::-1]


def test_sizes_and_names_of_types_are_those_of_gguf_py():
    gguf = pytest.importorskip("gguf", reason=NEED_GGUF)
    for name, kind in KINDS.items():
        theirs = gguf.GGMLQuantizationType[name]
        assert theirs.value == kind.number
        assert gguf.GGML_QUANT_SIZES[theirs] == (kind.values, kind.nbytes)
    for number, name in FOREIGN_KINDS.items():
        assert gguf.GGMLQuantizationType(number).name == name


def test_refuses_what_is_no_file(tmp_path):
    with pytest.raises(UserError, match="GgufFile: no file at .*absent.gguf; remedy"):
        GgufFile(tmp_path / "absent.gguf", remedy="remedy")
    refused(tmp_path, "it is a folder;")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    refused(pipe, "it is not a regular file;")


@pytest.mark.parametrize(
    "raw, match",
    [
        (b"", "it is empty;"),
        (b"\n <!DOCTYPE html><title>401</title>", "it is an HTML or XML page, perhaps an error"),
        (b"version https://git-lfs.github.com/spec/v1", "it is a Git LFS pointer"),
        (b"\x08\0\0\0\0\0\0\0{}      ", "it looks like a safetensors file"),
        (b"PK\x03\x04 data.pkl", r"it must begin with b'GGUF', got b'PK\\x03\\x04'"),
        (b"GG", "it must begin with b'GGUF', got b'GG'"),
        (b"GGUF\x03", "it is truncated, its header goes on after its 5 bytes;"),
        (build(version=1), "it must be of version 2 or 3, got 1;"),
        (build(version=3 << 24), r"it must be of version 2 or 3, got 50331648 \(big-endian\?\);"),
    ],
)
def test_refuses_other_files(save, raw, match):
    refused(save(raw), match)


def test_refuses_a_file_that_was_cut_short_anywhere(save):
    raw, *_ = two_tensors()
    header = raw.index(b"b", 40) + 1 + 4 + 2 * 8 + 4 + 8  # to the end of the line of "b"
    for size in range(5, len(raw)):
        missing = rf"it is truncated, {len(raw) - size} of {len(raw)} bytes are missing;"
        inside = f"it is truncated, its header goes on after its {size} bytes;"
        refused(save(raw[:size]), inside if size < header else missing)


@pytest.mark.parametrize(
    "number, kind", [(13, "Q5_K"), (2, "Q4_0"), (26, "I32"), (77, "number 77")]
)
def test_refuses_types_it_cannot_read_by_name(save, number, kind):
    raw = build(tensors=[tensor("cond.x.weight", (256, 2), number, 0)], data=bytes(4096))
    refused(
        save(raw),
        "tensor 'cond.x.weight' must be of type F32, F16, BF16, Q8_0, Q4_K, "
        f"got {kind}, which dit8 does not read;",
    )


@pytest.mark.parametrize(
    "lines, match",
    [
        ([tensor("a", (8,), 0, 0)] * 2, "it has the tensor 'a' twice;"),
        (
            [tensor("a", (8,), 0, 0), tensor("b", (8,), 0, 16)],
            "tensor 'b' begins inside 'a';",
        ),
        (
            [tensor("a", (384, 2), 12, 0)],
            r"tensor 'a' of type Q4_K must have rows of a multiple of 256 values, got shape "
            r"\(2, 384\);",
        ),
        ([tensor("a", (), 0, 0)], r"of a multiple of 1 values, got shape \(\);"),
        ([tensor(b"\xff", (8,), 0, 0)], r"its header is damaged \(b'\\xff' is no UTF-8\);"),
        ([text("a") + struct.pack("<I", 2**31)], "it is truncated, its header goes on after"),
    ],
    ids=["twice", "overlap", "K", "no dimensions", "name", "dimensions"],
)
def test_refuses_impossible_tensors(save, lines, match):
    refused(save(build(tensors=lines, data=bytes(4096))), match)


@pytest.mark.parametrize(
    "entries, match",
    [
        ([entry("k", 0, b"\1"), entry("k", 0, b"\2")], "it has the metadata key 'k' twice;"),
        ([entry("k", 13, b"")], "no type of metadata has the number 13"),
        ([entry("k", 9, struct.pack("<IQ", 9, 1))], "no type of metadata has the number 9"),
        ([entry("k", 9, struct.pack("<IQ", 10, 2**62))], "it is truncated, its header goes on"),
        (
            [entry("general.alignment", 4, struct.pack("<I", 0))],
            "its general.alignment must be a positive number, got 0;",
        ),
        ([entry("dit8", 8, text("{}"))], r"its header is damaged \(no checksums in dit8.crc32\);"),
        ([entry("dit8.crc32", 8, text("[]"))], r"its header is damaged \(no checksums in"),
    ],
    ids=["twice", "type", "nested", "length", "alignment", "lost checksums", "no checksums"],
)
def test_refuses_impossible_metadata(save, entries, match):
    refused(save(build(entries)), match)


def test_a_damaged_length_does_not_fill_the_memory(tmp_path):
    path = tmp_path / "sparse.gguf"
    with open(path, "wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**32))
        file.truncate(2**33)
    refused(path, r"its header is damaged \(more than 100000000 bytes long\);")


def test_a_file_cut_short_while_open_is_noticed(save):
    raw, *_ = two_tensors()
    path = save(raw)
    with GgufFile(path) as file:
        os.truncate(path, len(raw) - 1)
        with pytest.raises(UserError, match="it was cut short while it was open; download it"):
            file.read("b")


def test_a_name_that_is_not_there_is_the_callers_mistake(save):
    raw, *_ = two_tensors()
    with GgufFile(save(raw)) as file:
        for ask in (file.spec, file.read):
            with pytest.raises(ValueError, match="GgufFile: no tensor 'c' in"):
                ask("c")
