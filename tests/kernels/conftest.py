"""Ways to run a Triton kernel in a test (interpreted, on CUDA, only compiled), and GEMM bounds."""

import json
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


def environment(**variables: str) -> dict[str, str]:
    """Return the variables of a process that finds the checkout and computes with one thread."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    path = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    return env | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | variables


@pytest.fixture(scope="session")
def run_child():
    """Return a function that runs Python in a fresh process with the repo root on its path."""

    def run(*arguments: str, **variables: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment(**variables),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run


def major_minor(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version(package).split(".")[:2])


@pytest.fixture(scope="session")
def interpreter():
    """Start run_interpreted.py, once for all modules of a pytest process."""
    child = subprocess.Popen(
        [sys.executable, str(CHILD)],
        env=environment(TRITON_INTERPRET="1"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield child
    child.stdin.close()
    assert child.wait(timeout=60) == 0


@pytest.fixture(scope="session")
def run_interpreted(interpreter, tmp_path_factory):
    """Return a function: kernel module, cases -> {name: args after the launch}.

    A case is {name: (launch args, config)} or {name: (launch args, config, keyword args)}.
    """
    if major_minor("triton") < (3, 7) and major_minor("numpy") >= (2, 4):
        pytest.skip("the interpreter of Triton 3.6 runs no loop with numpy >= 2.4; take Triton 3.7")

    def run(module: str, cases: dict) -> dict:
        folder = tmp_path_factory.mktemp("interpreted")
        plain = {
            name: (args, asdict(config), dict(*keywords))
            for name, (args, config, *keywords) in cases.items()
        }
        torch.save({"module": module, "cases": plain}, folder / "in.pt")
        print(folder / "in.pt", folder / "out.pt", sep="\t", file=interpreter.stdin, flush=True)
        said = json.loads(interpreter.stdout.readline())
        assert said == "", said
        return torch.load(folder / "out.pt", weights_only=True)

    return run


@pytest.fixture(scope="session")
def draw_codes():
    """Return a function: shape -> full-range int8 codes."""

    def draw(*shape, device="cpu", seed=0):
        generator = torch.Generator(device).manual_seed(seed)
        return torch.randint(-127, 128, shape, dtype=torch.int8, device=device, generator=generator)

    return draw


@pytest.fixture(scope="session")
def draw_product(draw_codes):
    """Return a function: sizes, epilogue, dtype -> a GEMM launch's tensors and its keywords.

    The epilogue is "plain", "bias", "rest" (bias, gate and residual) or "swiglu"; the output is
    full of NaN.
    """

    def draw(m, n, k, epilogue, dtype, device="cpu", skip_rows=False):
        generator = torch.Generator(device).manual_seed(3)
        swiglu = epilogue == "swiglu"
        rows = 2 * n if swiglu else n
        x = draw_codes(2 * m, k, device=device, seed=1)

        def uniform(size):
            return torch.rand(size, device=device, generator=generator)

        def normal(*size):
            return torch.randn(*size, device=device, generator=generator).to(dtype)

        args = [
            x[::2] if skip_rows else x[:m],
            uniform(m) * (0.0025 if swiglu else 0.02),  # silu of sums of a few units
            draw_codes(rows, k, device=device, seed=2),
            uniform(rows) * 0.02,
            normal(n) if epilogue in ("bias", "rest") else None,
            torch.full((m, n), torch.nan, dtype=dtype, device=device),
        ]
        keywords = {"swiglu": swiglu}
        if epilogue == "rest":
            keywords |= {"gate": normal(n), "residual": normal(2 * m, n)[::2]}
        return args, keywords

    return draw


@pytest.fixture(scope="session")
def assert_within_two_eps():
    """Return a check of int8_gemm's output against fp64, to 2 eps(out dtype) of its terms.

    fp32 out: at most four roundings (sum to fp32, two scales, bias) of eps/2 each make 2 eps; gate
    and residual add one each, so both together make 3. bf16 and fp16 out: one cast of eps/2, or eps
    where it truncates as Triton's interpreter does, and fp32's share is invisible beside it. The
    bound is relative to |gate| (|product| + |bias|) + |residual| because terms may cancel; below
    the smallest normal number the step no longer shrinks.
    """

    def check(x, x_scale, w, w_scale, bias, out, *, gate=None, residual=None):
        sums = x.double() @ w.double().t()  # exact: |sum| < 2^53
        product = sums * x_scale.double()[:, None] * w_scale.double()
        offset = torch.zeros_like(w_scale).double() if bias is None else bias.double()
        factor = torch.ones_like(w_scale).double() if gate is None else gate.double()
        start = torch.zeros_like(product) if residual is None else residual.double()
        truth = start + factor * (product + offset)
        size = start.abs() + factor.abs() * (product.abs() + offset.abs())
        roundings = 3 + sum(operand is not None for operand in (bias, gate, residual))
        info = torch.finfo(out.dtype)
        steps = max(2, roundings / 2) if out.dtype == torch.float32 else 2
        assert_within(out, truth, steps * info.eps * size + info.smallest_normal * info.eps)

    return check


@pytest.fixture(scope="session")
def assert_swiglu_within_two_eps():
    """Return a check of int8_gemm_swiglu's output against fp64: 2 eps(out dtype) and fp32's share.

    fp32's share, in eps of the result: three roundings in each product (3), the quotient (2: Triton
    divides fp32 to 2 ulp), the sum below it and the last product (1), the exponential (2), and what
    the error of y1, 1.5 eps and one rounding more on its way to base 2, does to exp(-y1): 2 |y1|.
    """

    def check(x, x_scale, w, w_scale, out):
        y = (x.double() @ w.double().t()) * x_scale.double()[:, None] * w_scale.double()
        y1, y3 = y.chunk(2, dim=1)
        truth = y1 * torch.sigmoid(y1) * y3
        info, fp32 = torch.finfo(out.dtype), torch.finfo(torch.float32)
        steps = fp32.eps * (8 + 2 * y1.abs())
        if out.dtype != torch.float32:
            steps += 2 * info.eps
        assert_within(out, truth, steps * truth.abs() + info.smallest_normal * info.eps)

    return check


@pytest.fixture(scope="session")
def assert_product_within_two_eps(assert_within_two_eps, assert_swiglu_within_two_eps):
    """Return a check of what `draw_product` drew, after the launch."""

    def check(args, *, swiglu, **rest):
        x, x_scale, w, w_scale, bias, out = args
        if swiglu:
            assert_swiglu_within_two_eps(x, x_scale, w, w_scale, out)
        else:
            assert_within_two_eps(x, x_scale, w, w_scale, bias, out, **rest)

    return check


def assert_within(out: torch.Tensor, truth: torch.Tensor, bound: torch.Tensor) -> None:
    assert out.shape == truth.shape
    excess = (out.double() - truth).abs() - bound
    worst = excess.flatten().topk(min(10, excess.numel()))
    assert (excess <= 0).all(), f"ten largest excesses {worst.values} at {worst.indices}"


@pytest.fixture
def cuda():
    """Return the CUDA device, or skip the test where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU, torch sees none")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def hopper(cuda):
    """Return the CUDA device, or skip the test where it has no wgmma."""
    if torch.cuda.get_device_capability(cuda) != (9, 0):
        pytest.skip("wgmma needs compute capability 9.0")
    return cuda


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


@pytest.fixture
def compile_launch(monkeypatch, tmp_path):
    """Return a function that compiles what one call would launch, for a GPU that is not there."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 in this process: its kernels cannot be compiled")
    from dit8.scripts.arch_compile import compiling_for

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # never a build of an earlier run

    def compile_one(capability: int, launch, *args, **keywords):
        with compiling_for(capability) as builds:
            launch(*args, **keywords)
        (build,) = builds
        return build

    return compile_one
