"""Ways to run a Triton kernel in a test (interpreted, on CUDA, only compiled), and one bound."""

import os
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("run_interpreted.py")


@pytest.fixture(scope="session")
def run_child():
    """Return a function that runs Python in a fresh process with the repo root on its path."""

    def run(*arguments: str, **variables: str) -> str:
        env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        path = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
        env |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | variables
        done = subprocess.run(
            [sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run


def major_minor(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version(package).split(".")[:2])


@pytest.fixture(scope="session")
def run_interpreted(run_child, tmp_path_factory):
    """Return a function: kernel module, {name: (launch args, config)} -> {name: args after}."""
    if major_minor("triton") < (3, 7) and major_minor("numpy") >= (2, 4):
        pytest.skip("the interpreter of Triton 3.6 runs no loop with numpy >= 2.4; take Triton 3.7")

    def run(module: str, cases: dict) -> dict:
        folder = tmp_path_factory.mktemp("interpreted")
        plain = {name: (args, asdict(config)) for name, (args, config) in cases.items()}
        torch.save({"module": module, "cases": plain}, folder / "in.pt")
        run_child(str(CHILD), str(folder / "in.pt"), str(folder / "out.pt"), TRITON_INTERPRET="1")
        return torch.load(folder / "out.pt", weights_only=True)

    return run


@pytest.fixture(scope="session")
def assert_within_two_eps():
    """Return a check of int8_gemm's output against fp64, to 2 eps(out dtype) of its terms.

    fp32 out: at most four roundings (sum to fp32, two scales, bias) of eps/2 each make 2 eps. bf16
    and fp16 out: one cast of eps/2, or eps where it truncates as Triton's interpreter does, and
    fp32's share is invisible beside it. The bound is relative to |product| + |bias| because the
    bias may cancel the product; below the smallest normal number the step no longer shrinks.
    """

    def check(x, x_scale, w, w_scale, bias, out):
        sums = x.double() @ w.double().t()  # exact: |sum| < 2^53
        product = sums * x_scale.double()[:, None] * w_scale.double()
        offset = torch.zeros_like(w_scale).double() if bias is None else bias.double()
        info = torch.finfo(out.dtype)
        bound = 2 * info.eps * (product.abs() + offset.abs()) + info.smallest_normal * info.eps
        excess = (out.double() - (product + offset)).abs() - bound
        worst = excess.flatten().topk(min(10, excess.numel()))
        assert (excess <= 0).all(), f"ten largest excesses {worst.values} at {worst.indices}"

    return check


@pytest.fixture
def cuda():
    """Return the CUDA device, or skip the test where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU, torch sees none")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def build_ptx(monkeypatch, tmp_path):
    """Return a function that compiles a kernel for a GPU that need not be there, to PTX."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 in this process: its kernels cannot be compiled")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # never a build of an earlier run

    def build(kernel, types: dict, constants: dict, capability: int, **options) -> str:
        names = list(kernel.arg_names)
        signature = {name: types.get(name, "constexpr") for name in names}
        # Pointers and sizes as a real launch finds them: divisible by 16, or the loads are narrow.
        aligned = [n for n in types if n != "M"]
        source = ASTSource(
            kernel,
            signature,
            {(names.index(n),): value for n, value in constants.items()},
            {(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
        )
        target = GPUTarget("cuda", capability, 32)
        return triton.compile(source, target=target, options=options).asm["ptx"]

    return build
