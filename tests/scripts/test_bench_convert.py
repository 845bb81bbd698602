"""One block of the real width: memory, sizes and loading, each in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dit8.quant.architectures import architecture_of

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30

LOAD = """
import json, sys
from types import SimpleNamespace
import dit8.models  # before diffusers: mends torchvision beside a CPU torch
from accelerate import init_empty_weights
from diffusers import Ideogram4Transformer2DModel
from dit8.quant.checkpoint.load import load_quantized
from dit8.models.memory import peak_rss_bytes

class Ideogram4Pipeline(SimpleNamespace):
    pass

with init_empty_weights():
    branches = [Ideogram4Transformer2DModel(num_layers=1).bfloat16() for _ in range(2)]
pipeline = Ideogram4Pipeline(transformer=branches[0], unconditional_transformer=branches[1])
before = peak_rss_bytes()
load_quantized(pipeline, sys.argv[2])
tensors = {t.data_ptr(): t.nbytes for b in branches for t in (*b.parameters(), *b.buffers())}
print(json.dumps({"grown": peak_rss_bytes() - before, "held": sum(tensors.values())}))
"""


def run(*command: str) -> dict:
    ended = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=600, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory, run_here):
    folder = tmp_path_factory.mktemp("one") / "model"
    stats = folder.with_name("stats.safetensors")
    ended = run_here("make_synthetic", str(folder), "--layers", "1", "--stats", str(stats))
    assert ended.code == 0, ended.stderr
    return folder, stats


def convert(synthetic, target: str, out: Path) -> dict:
    folder, stats = synthetic
    script = str(ROOT / "scripts" / "bench_convert.py")
    return run(script, str(folder), "--stats", str(stats), "--one", target, "--out", str(out))


def linear_bytes(config: dict, blocks: int, per_weight: float, per_row: float, kept: int) -> float:
    """Add up both branches: block linears and text projection int8, `kept` w2 and the rest bf16."""
    hidden, ffn, adaln, text, latent = 4608, 12288, 512, 53248, 128
    block = 4 * hidden * hidden + 3 * hidden * ffn
    rows = 5 * hidden + 2 * ffn  # q, k, v, o, w2 have 4608 each, w1 and w3 12288
    assert architecture_of(config).down_projections[-1] == f"layers.{blocks - 1}.feed_forward.w2"
    quantized = blocks * block + hidden * text - kept * hidden * ffn
    all_rows = blocks * rows + hidden - kept * hidden
    bf16 = 2 * (kept * hidden * ffn + blocks * (adaln + 1) * 4 * hidden)
    # time embedding; adaln_proj and the final adaLN; input and output projection
    outside = 2 * 2 * (hidden * hidden + adaln * hidden + latent * hidden)
    return 2 * (quantized * per_weight + all_rows * per_row + bf16 + outside)


@pytest.mark.slow
def test_w8a8_streams_in_little_memory_and_loads_once(synthetic, tmp_path):
    row = convert(synthetic, "smoothquant", tmp_path / "w8a8")
    assert row["branches"] == 2 and row["blocks"] == 1
    assert row["weights"] == pytest.approx(2 * 558_097_024)
    # 1.0 to 1.8 GB were seen, as the allocator has it; both branches in bf16 are 2.1 GiB, the
    # largest linear in fp32 0.9
    assert row["peak_rss_bytes"] <= 1.9 * GIB
    config = json.loads((synthetic[0] / "transformer" / "config.json").read_text())
    # of one w2 a branch none is kept, half of it; norms, biases, header: the per mille left over
    expected = linear_bytes(config, 1, per_weight=1, per_row=4, kept=0)
    assert row["size_bytes"] == pytest.approx(expected, rel=1e-3)

    loaded = run("-c", LOAD, str(ROOT), str(tmp_path / "w8a8" / "model.safetensors"))
    assert loaded["held"] == pytest.approx(row["size_bytes"], rel=1e-2)
    # What comes on top does not grow with the blocks: the largest linear once more (0.25 GB) and
    # memory that the allocator keeps. It is 1.7 % of the real 21.2 GB; a second copy would be 1.9.
    assert loaded["grown"] - loaded["held"] <= 0.35e9


@pytest.mark.slow
def test_q8_0_streams_in_little_memory(synthetic, tmp_path):
    """One branch: both go through the same code, one after the other."""
    (tmp_path / "transformer").symlink_to(synthetic[0] / "transformer")
    row = convert((tmp_path, synthetic[1]), "q8_0", tmp_path / "q8_0")
    assert row["branches"] == 1
    assert row["peak_rss_bytes"] <= 1.5 * GIB
    # 34 bytes hold 32 weights of every linear; norms and the embedding stay in fp32
    assert row["size_bytes"] == pytest.approx(row["weights"] * 34 / 32, rel=1e-3)
