"""Run the code built for older GPUs on a newer one, and check that it is exact there.

    python scripts/run_ptx.py                                     # sm_80, 86, 89; two minutes
    python scripts/run_ptx.py --sm 86 --tiles 100                 # every tile offered on sm_86

The PTX that Triton writes for sm_80, sm_86 and sm_89 is given to the driver, which translates it
for the GPU that is there. So the instructions that those cards would run (mma.sync in place of
wgmma, their layouts and pipelines) do run, and their results are compared bit for bit: int8_gemm
with unit scales against torch._int_mm, quant_rows against its reference in torch.

The times are of this GPU. They order the mma.sync tiles roughly; they are no prediction for the
older cards, whose memory, caches and clocks are others. Writes <out>, by default
outputs/results/bench/ptx.csv. Prints one JSON document last. Exit code 1: a result differs.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

try:
    from dit8.conf.paths import ROOT, from_root, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"run_ptx: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

import pandas as pd

from dit8.eval.provenance import git_state
from dit8.kernels.shipped import configs_for
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically

SMS = (80, 86, 89)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--sm", type=int, nargs="+", choices=SMS, default=SMS)
    made.add_argument("--tiles", type=int, default=4, help="of those offered, evenly spread")
    made.add_argument("--out", default="outputs/results/bench/ptx.csv")
    return made


if __name__ == "__main__":
    parser().parse_args()  # help and mistakes end here: what follows takes seconds

import torch
import triton

from dit8.kernels import int8_gemm_triton, quant_rows_triton
from dit8.kernels.int8_gemm import accumulate
from dit8.kernels.quant_rows import quant_rows_reference
from dit8.scripts.arch_compile import Build, call_by_name, compiling_for
from dit8.scripts.arch_kernels import tile_name

Shape = tuple[int, int, int]  # M, N, K


LARGE: Shape = (4396, 4608, 4608)  # 1024 x 1024 pixels and 300 text tokens, attention.to_out


RAGGED: Shape = (333, 272, 1936)  # no size a multiple of a block


@dataclass(frozen=True)
class Trial:
    """One launch of one build, and what it must write."""

    kernel: str
    config: str
    sm: int
    shape: Shape
    dtype: str
    build: Build
    outputs: tuple[torch.Tensor, ...]
    expected: tuple[torch.Tensor, ...]
    operations: int  # integer multiplications and additions; 0: not counted


def spread(items: Sequence, count: int) -> list:
    """Pick at most `count` items, evenly spread, the first and the last among them."""
    if count >= len(items):
        return list(items)
    if count == 1:
        return [items[0]]
    return [items[i * (len(items) - 1) // (count - 1)] for i in range(count)]


def integer_sums(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Return x @ w.T exactly, int32: by torch._int_mm on CUDA, where it wants more than 16 rows."""
    if x.device.type == "cuda":
        return torch._int_mm(x, w.t())
    return accumulate(x, w)


def gemm_trials(sm: int, tiles: int, shape: Shape, device: torch.device) -> Iterator[Trial]:
    """Build int8_gemm with unit scales, fp32 and bf16 out, for some of the tiles offered on `sm`.

    The sums pass 2^24, so that fp32 rounds some of them; it rounds torch's the same way.
    """
    m, n, k = shape
    generator = torch.Generator(device).manual_seed(0)
    x, w = (
        torch.randint(-127, 128, size, dtype=torch.int8, device=device, generator=generator)
        for size in ((m, k), (n, k))
    )
    sums = integer_sums(x, w).float()
    values = {"x": x, "w": w, "bias": None, "gate": None, "residual": None}
    values |= {"x_scale": torch.ones(m, device=device), "w_scale": torch.ones(n, device=device)}
    for config in spread(configs_for(sm), tiles):
        for dtype in (torch.float32, torch.bfloat16):
            out = torch.full((m, n), float("nan"), dtype=dtype, device=device)
            with compiling_for(sm) as builds:
                call_by_name(int8_gemm_triton.launch, values | {"out": out, "config": config})
            name = str(dtype).removeprefix("torch.")
            (build,) = builds
            yield Trial(
                *("int8_gemm", tile_name(config), sm, shape, name, build),
                *((out,), (sums.to(dtype),), 2 * m * n * k),
            )


def quant_rows_trials(sm: int, shape: Shape, device: torch.device) -> Iterator[Trial]:
    """Build quant_rows with smoothing for rows of K; the reference runs on the CPU."""
    m, _, k = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(m, k, generator=generator).to(torch.bfloat16)
    smooth = torch.rand(k, generator=generator) + 0.5
    expected = tuple(part.to(device) for part in quant_rows_reference(x, smooth))
    codes = torch.full((m, k), -128, dtype=torch.int8, device=device)  # no code of any row
    scale = torch.full((m,), float("nan"), device=device)
    config = quant_rows_triton.choose_config(k)
    values = {"x": x.to(device), "smooth": smooth.to(device), "rotation": 0}
    values |= {"codes": codes, "scale": scale, "config": config}
    with compiling_for(sm) as builds:
        call_by_name(quant_rows_triton.launch, values)
    (build,) = builds
    name = f"k{config.block_k}-w{config.num_warps}"
    outputs = (codes, scale)
    yield Trial("quant_rows", name, sm, (m, 0, k), "int8", build, outputs, expected, 0)


def load_ptx(build: Build) -> Callable[[], None]:
    """Return a launch of the build's PTX on the GPU that is there.

    Triton's loader hands a kernel's binary to cuModuleLoadData, which takes PTX as well as machine
    code, and its launcher knows the order of the arguments and the scratch pointers behind them.
    """
    kernel = build.kernel
    kernel.kernel = kernel.asm["ptx"]
    launch = kernel[(*build.grid, 1, 1)[:3]]
    return lambda: launch(*build.arguments)


def time_ms(launch: Callable[[], None]) -> float:
    """Return the median time of one launch, with a cold L2 between launches."""
    return triton.testing.do_bench(launch, warmup=5, rep=20, return_mode="median")


def run_trial(
    trial: Trial,
    load: Callable[[Build], Callable[[], None]] = load_ptx,
    time: Callable[[Callable[[], None]], float] = time_ms,
) -> dict:
    """Launch a trial, compare what it wrote and time it; one row of the table."""
    launch = load(trial.build)
    launch()
    equal = all(map(torch.equal, trial.outputs, trial.expected))
    ms = time(launch)
    m, n, k = trial.shape
    return {
        "kernel": trial.kernel,
        "config": trial.config,
        "sm": trial.sm,
        "m": m,
        "n": n,
        "k": k,
        "dtype": trial.dtype,
        "equal": equal,
        "p50_ms": ms,
        "tops": trial.operations / ms / 1e9,
    }


def check(arguments: argparse.Namespace) -> dict:
    """Run every trial, print and write the rows."""
    if not torch.cuda.is_available():
        raise UserError(
            f"PTX must be run on an NVIDIA GPU, got a torch ({torch.__version__}) that "
            "sees none; scripts/check_arch.py compiles without one"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    here = {
        "gpu": torch.cuda.get_device_name(device),
        "triton": triton.__version__,
        "torch": torch.__version__,
        "commit": git_state(ROOT)["commit"],
    }
    rows = []
    for sm in arguments.sm:
        for shape in (LARGE, RAGGED):
            for trial in gemm_trials(sm, arguments.tiles, shape, device):
                rows.append(run_trial(trial) | here)
            for trial in quant_rows_trials(sm, shape, device):
                rows.append(run_trial(trial) | here)
    frame = pd.DataFrame(rows)
    print(frame.drop(columns=list(here)).to_string(index=False, float_format="{:.4g}".format))
    out = from_root(arguments.out)
    write_atomically(out, lambda path: frame.to_csv(path, index=False, float_format="%.6g"))
    large = frame[(frame["kernel"] == "int8_gemm") & (frame["m"] == LARGE[0])]
    return {
        "out": shorten(out),
        "rows": len(frame),
        "different": int((~frame["equal"]).sum()),
        "tops": {
            f"sm_{sm}": round(best, 1) for sm, best in large.groupby("sm")["tops"].max().items()
        },
    }


def main() -> None:
    with one_sentence("run_ptx"):
        document = check(parser().parse_args())
        print(json.dumps(document))
        sys.exit(1 if document["different"] else 0)


if __name__ == "__main__":
    main()
