"""Search the fastest tile of the int8 GEMM for each product and keep it for this GPU.

    python scripts/tune.py                                     # the real model's, 5 to 10 min
    python scripts/tune.py --shapes qkv ffn_down --m 1088 4396
    python scripts/tune.py --model mini                        # the bundled mini's shapes

Every tile that fits the GPU is timed once, under a CUDA graph; the best few are timed again under
sustained load, in turn, beside cuBLAS in bf16. Winners go into kernels/tuned/<gpu>.json, which
`int8_gemm` reads; products that were not tuned this time keep their entry. Products on which bf16
is faster are named at the end. The last line is one JSON document.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

try:
    from dit8.conf.paths import shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"tune: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from tqdm import tqdm

from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically

ROWS = (1, 17, 64, 128, 256, 512, 1088, 2304, 2604, 4096, 4396, 6221)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--model", choices=("ideogram4", "mini"), default="ideogram4")
    made.add_argument("--shapes", nargs="+", help="names of the products; all by default")
    made.add_argument("--m", nargs="+", type=int, default=list(ROWS), help="row counts")
    made.add_argument("--processes", type=int, default=4, help="that compile beforehand")
    return made


if __name__ == "__main__":
    parser().parse_args()  # help and mistakes end here: what follows takes seconds

import torch

from dit8.kernels.backend import backend_name
from dit8.scripts.timing import Call, cuda_sampler, interleave, percentiles

MODEL_SHAPES = {  # name: op, N, K
    "qkv": ("gemm", 13824, 4608),
    "attn_out": ("gemm", 4608, 4608),
    "ffn_up": ("gemm", 12288, 4608),
    "ffn_up2": ("gemm", 24576, 4608),
    "ffn_swiglu": ("swiglu", 12288, 4608),
    "ffn_down": ("gemm", 4608, 12288),
    "llm_proj": ("gemm", 4608, 53248),
}
MINI_SHAPES = {
    "qkv": ("gemm", 768, 256),
    "attn_out": ("gemm", 256, 256),
    "ffn_swiglu": ("swiglu", 768, 256),
    "ffn_down": ("gemm", 256, 768),
}
GROUPS = (4, 8, 16)  # row blocks that share one sweep over N
FINALISTS = 5
ROUNDS = 3
COARSE_ROUNDS = 3
COLD_BYTES = 200_000_000  # of operands that the copies take: three times an H200's L2


@dataclass(frozen=True)
class Product:
    """One product to tune; for SwiGLU, n outputs from 2n columns."""

    name: str
    op: str
    m: int
    n: int
    k: int


def candidates(op: str, capability: int) -> list:
    """List the choices that are timed for every product on a GPU: 36 or more of them.

    Every tile that is offered there, with several heights of the band of rows that one sweep over N
    serves. Tall tiles are not spared few rows: what they waste is soon seen.
    """
    from dit8.kernels import int8_gemm_tma
    from dit8.kernels.shipped import configs_for
    from dit8.kernels.tiles import Choice

    found = [
        Choice("mma", replace(config, group_m=group_m))
        for config in configs_for(capability, swiglu=op == "swiglu")
        for group_m in GROUPS
    ]
    if capability == 90:
        found += [
            Choice("tma", config)
            for config in int8_gemm_tma.CONFIGS
            if int8_gemm_tma.offered(config, swiglu=op == "swiglu")
        ]
    return found


def launch_of(product: Product, choice, operands: dict[str, torch.Tensor]) -> Call:
    """Bind one launch to its operands."""
    from dit8.kernels import int8_gemm_tma, int8_gemm_triton

    kernel = {"tma": int8_gemm_tma, "mma": int8_gemm_triton}[choice.kind]
    o = operands
    return partial(
        kernel.launch, o["x"], o["x_scale"], o["w"], o["w_scale"], None, o["out"], choice.config,
        swiglu=product.op == "swiglu",
    )  # fmt: skip


def draw(product: Product, device: torch.device, seed: int) -> dict[str, torch.Tensor]:
    """Draw codes as quantized Gaussian values have them: zeros would draw less power."""
    generator = torch.Generator(device).manual_seed(seed)
    columns = 2 * product.n if product.op == "swiglu" else product.n

    def codes(rows: int) -> torch.Tensor:
        values = torch.randn(rows, product.k, generator=generator, device=device)
        return (values * 30).round_().clamp_(-127, 127).to(torch.int8)

    x, w = codes(product.m), codes(columns)
    return {
        "x": x,
        "w": w,
        "x_scale": torch.full((product.m,), 1e-2, device=device),
        "w_scale": torch.full((columns,), 1e-3, device=device),
        "out": torch.empty(product.m, product.n, dtype=torch.bfloat16, device=device),
        "x_bf16": x.to(torch.bfloat16),
        "w_bf16": w.to(torch.bfloat16),
    }


def bf16_call(operands: dict[str, torch.Tensor]) -> Call:
    """Bind cuBLAS on the same shape; for SwiGLU the product alone."""
    return lambda: torch.nn.functional.linear(operands["x_bf16"], operands["w_bf16"])


def fastest(choices: Sequence, sampler_of: Callable, rounds: int = ROUNDS) -> tuple:
    """Time all choices shortly and the best few thoroughly.

    Args:
        choices: what to choose from.
        sampler_of: (choice or "bf16", thorough) -> a sampler, or None where it cannot run.
        rounds: of the thorough timing.

    Returns:
        the winner, its median ms, and bf16's.

    Raises:
        UserError: no choice can run.
    """
    coarse = {choice: sampler_of(choice, False) for choice in choices}
    coarse = {choice: sampler for choice, sampler in coarse.items() if sampler is not None}
    if not coarse:
        raise UserError(
            f"none of {len(choices)} tiles runs on this GPU, expected at least one; "
            "add a smaller one to CONFIGS in kernels/int8_gemm_triton.py"
        )
    times = interleave(coarse, COARSE_ROUNDS)
    best = sorted(coarse, key=lambda choice: min(times[choice]))[:FINALISTS]
    finals = {choice: sampler_of(choice, True) for choice in (*best, "bf16")}
    medians = {
        key: percentiles(samples).p50_ms for key, samples in interleave(finals, rounds).items()
    }
    bf16_ms = medians.pop("bf16")
    winner = min(medians, key=medians.get)
    return winner, medians[winner], bf16_ms


def tune(product: Product, device: torch.device, capability: int):
    """Return the table's entry of one product."""
    from triton.runtime.errors import OutOfResources

    from dit8.kernels.tiles import Entry

    per_copy = product.k * (product.m + product.n * (2 if product.op == "swiglu" else 1))
    copies = max(2, min(8, -(-COLD_BYTES // per_copy)))
    operands = [draw(product, device, seed) for seed in range(copies)]

    def sampler_of(choice, thorough: bool):
        if choice == "bf16":
            calls = [bf16_call(o) for o in operands]
        else:
            calls = [launch_of(product, choice, o) for o in operands]
        if thorough:
            return cuda_sampler(calls, graph=True)
        try:
            return cuda_sampler(calls, graph=True, rest_ms=0.1, counted_ms=2.0)
        except OutOfResources:
            return None

    choice, ms, bf16_ms = fastest(candidates(product.op, capability), sampler_of)
    return Entry(
        product.op, product.m, product.n, product.k, choice, round(ms, 5), round(bf16_ms, 5)
    )


def compile_share(share: int, shares: int, products: Sequence[Product], capability: int) -> None:
    """Run every n-th tile once on few rows, so that Triton's cache on disk holds its build."""
    device = torch.device("cuda")
    todo = {}
    for product in products:
        for choice in candidates(product.op, capability):
            todo.setdefault((product.op, product.n % 16, product.k % 256, choice), product)
    for (_, _, _, choice), product in list(todo.items())[share::shares]:
        few = Product(product.name, product.op, 16, product.n, product.k)
        try:
            launch_of(few, choice, draw(few, device, 0))()
        except Exception as error:  # reported, with its reason, when the tile is timed
            print(f"{choice}: {type(error).__name__}", file=sys.stderr)


def merge(old: Sequence, new: Sequence) -> tuple:
    """Replace the entries that were tuned again and sort all by op, K, N and M."""
    entries = {(e.op, e.k, e.n, e.m): e for e in (*old, *new)}
    return tuple(entries[key] for key in sorted(entries))


def report(entries: Sequence) -> str:
    """Say what was found, a line a product."""
    lines = []
    for e in entries:
        operations = 2e-9 * e.m * e.n * e.k * (2 if e.op == "swiglu" else 1)
        slower = "  SLOWER THAN BF16" if e.ms > e.bf16_ms else ""
        lines.append(
            f"{e.op:7} M {e.m:5} N {e.n:6} K {e.k:6}  {e.ms:9.4f} ms {operations / e.ms:7.0f} TOPS "
            f"{e.bf16_ms / e.ms:5.2f}x bf16  {e.choice.kind} {e.choice.config}{slower}"
        )
    return "\n".join(lines)


def main() -> None:
    """Read the command line and tune."""
    args = parser().parse_args()
    shapes = MODEL_SHAPES if args.model == "ideogram4" else MINI_SHAPES
    unknown = sorted(set(args.shapes or ()) - shapes.keys())
    if unknown:
        raise UserError(
            f"--shapes must be among {', '.join(shapes)}, got {', '.join(unknown)}; "
            "correct the name"
        )
    if min(args.m) < 1:
        raise UserError(f"--m must be row counts from 1 on, got {min(args.m)}; leave it out")
    if not torch.cuda.is_available():
        raise UserError(
            "tiles are timed on the GPU that they are for, got a machine without one; "
            "untuned GPUs use the rule in kernels/tiles.py"
        )
    device = torch.device("cuda")
    backend_name(device)
    print(json.dumps(run(shapes, args, device)))


def run(shapes: dict, args: argparse.Namespace, device: torch.device) -> dict:
    """Tune, keep after every product, report."""
    import triton

    from dit8.kernels.tiles import Table, table_document, table_of, table_path

    gpu = torch.cuda.get_device_name(device)
    major, minor = torch.cuda.get_device_capability(device)
    capability = 10 * major + minor
    products = [
        Product(name, op, m, n, k)
        for name, (op, n, k) in shapes.items()
        if args.shapes is None or name in args.shapes
        for m in args.m
    ]
    context = multiprocessing.get_context("forkserver")
    workers = [
        context.Process(target=compile_share, args=(i, args.processes, products, capability))
        for i in range(args.processes)
    ]
    for worker in workers:
        worker.start()
    for worker in tqdm(workers, desc="compile", unit="share"):
        worker.join()
    table = table_of(gpu)
    kept, found = () if table is None else table.entries, []
    for product in tqdm(products, desc="tune", unit="product"):
        found.append(tune(product, device, capability))
        document = table_document(Table(gpu, triton.__version__, merge(kept, found)))
        text = json.dumps(document, indent=1) + "\n"
        write_atomically(table_path(gpu), lambda path, text=text: path.write_text(text))
    print(report(found))
    slower = [e for e in found if e.ms > e.bf16_ms]
    return {
        "gpu": gpu,
        "triton": triton.__version__,
        "products": len(found),
        "slower_than_bf16": [[e.op, e.m, e.n, e.k] for e in slower],
        "table": shorten(table_path(gpu)),
    }


if __name__ == "__main__":
    with one_sentence("tune"):
        main()
