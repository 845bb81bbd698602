import pytest
import torch

from dit8.quant.errors import UserError
from dit8.quant.formats import q4_k, q8_0
from dit8.scripts import parity_gguf
from dit8.scripts.parity_gguf import build, compare, matrices

WEIGHT = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))


def ours(codec):
    return lambda weight: codec.encode(weight)[".weight"]


def test_a_library_that_is_there_is_not_built_again(tmp_path, monkeypatch):
    monkeypatch.setattr(parity_gguf, "_run", lambda command: pytest.fail("nothing may run"))
    library = tmp_path / "ggml-python-0.0.45.so"
    library.touch()
    assert build(tmp_path) == library


def test_without_compilers_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"got no cc and no c\+\+ on the PATH; install them, on"):
        build(tmp_path)


def test_another_source_package_is_refused(tmp_path, monkeypatch):
    def run(command):
        assert "download" in command, "a package that was not examined must not be compiled"
        place = command[command.index("--dest") + 1]
        (parity_gguf.Path(place) / "ggml_python-0.0.45.tar.gz").write_bytes(b"other")

    monkeypatch.setattr(parity_gguf, "_run", run)
    monkeypatch.setattr(parity_gguf.shutil, "which", lambda name: name)
    with pytest.raises(UserError, match=r"ggml_python-0.0.45.tar.gz must have the sha256 10aac5"):
        build(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_step_is_one_sentence():
    with pytest.raises(UserError, match="build: false must succeed, got '\\?'; ggml is only"):
        parity_gguf._run(["false"])


def test_a_row_compares_both_errors():
    row = compare("w", WEIGHT, q4_k.CODEC, ours(q4_k.CODEC))
    mse = (q4_k.decode(q4_k.encode(WEIGHT), torch.float32) - WEIGHT).square().mean()
    assert row["mse_ours"] == row["mse_ggml"] == pytest.approx(float(mse), rel=1e-6)  # fp64 mean
    assert (row["matrix"], row["format"], row["ratio"]) == ("w", "q4_k", 1.0)


def test_other_bytes_of_q8_0_are_a_failure():
    def off_by_one(weight):
        blocks = ours(q8_0.CODEC)(weight)
        blocks[0, 2] += 1
        return blocks

    with pytest.raises(UserError, match="Q8_0 of w must equal ggml's bytes, got 1 of 2176 that"):
        compare("w", WEIGHT, q8_0.CODEC, off_by_one)


def test_a_larger_error_of_q4_k_is_a_failure(monkeypatch):
    monkeypatch.setattr(parity_gguf, "RATIO_MAX", 0.99)
    with pytest.raises(UserError, match="q4_k of w must have at most 0.99 of .* got 1.0000; corr"):
        compare("w", WEIGHT, q4_k.CODEC, ours(q4_k.CODEC))


def test_the_matrices_are_the_same_in_every_run():
    model = parity_gguf.from_root("models/mini")
    once, again = dict(matrices(2, model)), dict(matrices(2, model))
    assert list(once) == list(again) and len(once) == 12
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert all(weight.shape[1] % 256 == 0 for weight in once.values())
