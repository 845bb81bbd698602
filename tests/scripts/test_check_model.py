import json
import math

import pytest
import torch

from dit8.models.engine.forward import EngineBranch
from dit8.models.random_ideogram4 import build_random
from dit8.quant.errors import UserError
from dit8.quant.linear import Int8Linear
from dit8.scripts import check_model as check_module
from dit8.scripts.check_model import check_model, error_of, unfused
from dit8.scripts.random_variants import make_branches

CPU = torch.device("cpu")


def check(path, variants=("bf16", "fused_int8", "rotated")):
    return check_model(CPU, variants, 2, 5, 64, path, full=False, say=lambda line: None)


def test_the_engine_is_within_its_bounds(tmp_path):
    document = check(tmp_path / "check.json")
    assert document["passes"] and document["checked"] == 8
    rows = json.loads((tmp_path / "check.json").read_text())["rows"]
    assert {(row["branch"], row["variant"]) for row in rows} == {
        (branch, variant)
        for branch in ("conditional", "unconditional")
        for variant in ("fp32", "bf16", "fused_int8", "rotated")
    }
    for row in rows:
        assert 0 < row["engine_error"] <= row["bound"]
        if row["variant"] == "bf16":
            assert row["bound"] == row["stock_error"]  # no further than stock
        elif row["variant"] != "fp32":
            assert row["bound"] == pytest.approx(1.1 * row["stock_error"])


def test_a_wrong_engine_is_refused_and_its_errors_kept(tmp_path, monkeypatch):
    right = EngineBranch.velocity
    monkeypatch.setattr(EngineBranch, "velocity", lambda *a: right(*a).mul_(1.02))
    with pytest.raises(UserError, match=r"got more for fp32 conditional, bf16 conditional, .*json"):
        check(tmp_path / "check.json")
    rows = json.loads((tmp_path / "check.json").read_text())["rows"]
    assert all(row["engine_error"] > 0.01 for row in rows)


def test_memory_that_is_left_unwritten_shows(tmp_path, monkeypatch):
    right = EngineBranch.velocity

    def partly_written(self, latents, step):
        answer = right(self, latents, step)
        fresh = torch.empty(4)
        answer[0, 0, 0] += (
            0.0 * fresh.nan_to_num(posinf=0.0)[0] if fresh.isfinite()[0] else fresh[0]
        )
        return answer

    monkeypatch.setattr(EngineBranch, "velocity", partly_written)
    with pytest.raises(UserError, match="got more for"):
        check(tmp_path / "check.json", ("bf16",))


def test_an_answer_that_is_not_written_again_shows(tmp_path, monkeypatch):
    right, seen = EngineBranch.velocity, {}

    def stale(self, latents, step):
        if (id(self), step) not in seen:
            seen[id(self), step] = right(self, latents, step), self  # keeps the id taken
        return seen[id(self), step][0]

    monkeypatch.setattr(EngineBranch, "velocity", stale)
    with pytest.raises(UserError, match="got more for"):
        check(tmp_path / "check.json", ("bf16",))
    rows = json.loads((tmp_path / "check.json").read_text())["rows"]
    assert all(math.isnan(row["engine_error"]) for row in rows)


def test_stock_is_measured_unfused_and_the_engine_fused(tmp_path, monkeypatch):
    stock, engine = check_module.stock_velocities, check_module.engine_velocities
    seen = []

    def record(kind, run):
        def recorded(module, *rest):
            gemms = {x.gemm for x in module.modules() if isinstance(x, Int8Linear)}
            seen.append((kind, *gemms))
            return run(module, *rest)

        return recorded

    monkeypatch.setattr(check_module, "stock_velocities", record("stock", stock))
    monkeypatch.setattr(check_module, "engine_velocities", record("engine", engine))
    check(tmp_path / "check.json", ("rotated",))
    assert seen.count(("stock", "fake_quant")) == 2 and seen.count(("engine", "fused")) == 4


def test_nan_is_no_error_that_passes():
    reference = [torch.ones(1, 2, 2)]
    assert math.isnan(error_of(reference, [torch.full((1, 2, 2), torch.nan)]))
    assert error_of(reference, [torch.full((1, 2, 2), 1.5)]) == 0.5


def test_unfused_is_put_back():
    source = build_random(1, full=False, dtype=torch.bfloat16, device=CPU, seed=0)
    module = make_branches("fused_int8", source)["conditional"]
    gemms = lambda: {x.gemm for x in module.modules() if isinstance(x, Int8Linear)}  # noqa: E731
    with unfused(module):
        assert gemms() == {"fake_quant"}
    assert gemms() == {"fused"}


def test_copied_codes_cannot_be_checked(tmp_path):
    with pytest.raises(UserError, match="must have weights of their own, got q4_k, nf4"):
        check(tmp_path / "check.json", ("bf16", "q4_k", "nf4"))


@pytest.mark.gpu
def test_the_engine_is_within_its_bounds_on_a_gpu(tmp_path):
    variants, cuda = ("bf16", "fused_int8", "rotated"), torch.device("cuda")
    assert check_model(cuda, variants, 2, 5, 64, tmp_path / "check.json", full=False)["passes"]
