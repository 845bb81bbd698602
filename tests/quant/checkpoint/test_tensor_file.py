import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dit8.quant.checkpoint.tensor_file import read_tensors, write_tensors
from dit8.quant.errors import UserError

ROOT = Path(__file__).parents[3]  # `python -c` imports from its working folder


def test_round_trip_of_any_layout(tmp_path):
    tensors = {"b": torch.arange(6).reshape(2, 3).T, "a": torch.ones(4)[::2].bfloat16()}
    write_tensors(tmp_path / "x", tensors, "kind 1", {"text": "é", "list": [1]})
    read, header = read_tensors(tmp_path / "x", "kind 1", remedy="no")
    assert header == {"kind": "kind 1", "text": "é", "list": [1]}
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert read["a"].dtype == torch.bfloat16
    assert read_tensors(tmp_path / "x", "kind 1", remedy="no", header_only=True)[0] == {}


def test_equal_content_gives_equal_bytes_in_every_process(tmp_path):
    # The order of several metadata entries changes between processes: write from two of them.
    code = (
        "import sys, torch; from dit8.quant.checkpoint.tensor_file import write_tensors;"
        "write_tensors(sys.argv[1], {n: torch.ones(3) for n in 'dcba'}, 'k',"
        " {n: 1 for n in 'zyxwv'})"
    )
    for name in ("x", "y"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True, cwd=ROOT)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_refuses_what_it_did_not_write(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(UserError, match="no kind 1 file at .*; do that"):
        read_tensors(path, "kind 1", remedy="do that")
    path.write_bytes(b"\0" * 40)
    with pytest.raises(UserError, match="not a readable safetensors file: .*; do that"):
        read_tensors(path, "kind 1", remedy="do that")
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(UserError, match="must be of kind 'kind 1', got None; do that"):
        read_tensors(path, "kind 1", remedy="do that")
    write_tensors(path, {"a": torch.ones(8)}, "kind 1", {})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="truncated, 8 of .* bytes are missing; do that"):
        read_tensors(path, "kind 1", remedy="do that")
    write_tensors(path, {"a": torch.ones(8)}, "kind 1", {})
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(UserError, match="tensor 'a' of .* is damaged .*; do that"):
        read_tensors(path, "kind 1", remedy="do that")
    assert read_tensors(path, "kind 1", remedy="", header_only=True) == ({}, {"kind": "kind 1"})
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="it is a folder; do that"):
        read_tensors(path, "kind 1", remedy="do that")
