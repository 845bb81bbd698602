"""What a CFG step spends its time on: kernel times from torch.profiler, sorted by their names.

A kernel belongs to the first component with a pattern that occurs in its name. Fused kernels count
whole: silu in the epilogue of an int8 product is "gemm_int8", a rotation inside a norm is "norms".
Eager kernels that are named only for an addition, a product, a copy or a conversion cannot be told
apart: those of stock diffusers' norms, gates and rotary are "other". So is the decoding of
weights, which has kernels of its own where Triton runs and eager ones elsewhere and in `int8`.

What the components do not add up to in a step's time is the GPU waiting for the host.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

INDUCTOR = "^(?!triton_(poi|red|per)_).*"  # its names list the operators before and after as well
PATTERNS = {
    # before the products: cuDNN's attention kernels have "wgmma" in their names
    "attention": rf"{INDUCTOR}(sdpa|fmha|flash|attention|softmax)",
    "gemm_int8": r"int8_gemm|imma|gemm_s8|s8s8|i8i8|_int_mm",
    # before the norms: q and k are normalized where they are rotated; bytes (1u) are concatenated
    # when torch decodes q4_k, not when something is rotated
    "rope": r"rope|rotary|catarray(?!.*opaquetype<1u>)|neg_kernel|_(neg|cat)_",
    # before quantize: a norm that rounds its result is a norm
    "norms": r"norm|rsqrt|meanops|residual|pow_tensor",
    "swiglu": r"swiglu|silu",
    "quantize": r"quant|hadamard",
    "gemm_bf16": rf"{INDUCTOR}(nvjet|gemm|cublas|cutlass|xmma|splitk|gemv|addmm|aten::mm|_mm_)",
}
COMPONENTS = (*PATTERNS, "other")
PROFILED_STEPS = 3
WARM_STEPS = 2


def component_of(kernel: str) -> str:
    """Name the component that a kernel belongs to."""
    name = kernel.lower()
    return next((part for part, found in PATTERNS.items() if re.search(found, name)), "other")


def by_component(kernels: Mapping[str, float]) -> dict[str, float]:
    """Add up the ms of kernels by component; every component is there."""
    totals = dict.fromkeys(COMPONENTS, 0.0)
    for name, ms in kernels.items():
        totals[component_of(name)] += ms
    return totals


class StepProfiler:
    """Profile the steps of an image after the first ones, each by itself.

    Args:
        device: a CUDA device, or the CPU, whose operators then stand for kernels.
        wait: returns when the device has nothing left to do.

    Call it after every step of an image of WARM_STEPS + PROFILED_STEPS steps; `steps` then holds
    kernel name -> ms of each profiled step.
    """

    def __init__(self, device: torch.device, wait: Callable[[], None]) -> None:
        self.steps: list[dict[str, float]] = []
        self._kind = device.type.upper()
        self._wait = wait
        self._running: Any = None

    def __call__(self, index: int) -> None:
        self._wait()
        if self._running is not None:
            self._running.stop()
            self.steps.append(self._kernels())
            self._running = None
        if WARM_STEPS - 1 <= index < WARM_STEPS + PROFILED_STEPS - 1:
            activity = getattr(torch.profiler.ProfilerActivity, self._kind)
            self._running = torch.profiler.profile(activities=[activity])
            self._running.start()

    def _kernels(self) -> dict[str, float]:
        """Read kernel name -> ms; annotations, which cover kernels, have no time of their own."""
        found: dict[str, float] = {}
        for event in self._running.key_averages():
            if event.device_type.name != self._kind:
                continue
            own = "self_cpu_time_total" if self._kind == "CPU" else "self_device_time_total"
            found[event.key] = found.get(event.key, 0.0) + getattr(event, own) / 1e3
        return found
