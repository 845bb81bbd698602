"""Run launches of one kernel module under Triton's interpreter: `run_interpreted.py IN OUT`.

A process of its own, because Triton reads TRITON_INTERPRET when a kernel is *defined*: in a pytest
process that has imported Triton already (torch does it too) the variable comes too late. conftest
starts it with the variable set. IN holds {"module", "cases": {name: (args, config, keywords)}};
OUT gets {name: args} as the launches left them.
"""

import sys
from importlib import import_module

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def repair_interpreter() -> None:
    """Make two operations compute what a GPU computes (wrong in Triton 3.6 and 3.7).

    Its fused multiply-add rounds the product too, and its dot multiplies the integers in which
    NumPy, without a bfloat16, holds such numbers.
    """
    dot = InterpreterBuilder.create_dot

    def fma(self, x, y, z):
        # The product of two fp32 numbers is exact in fp64.
        total = x.data.astype(np.float64) * y.data + z.data
        return TensorHandle(total.astype(z.data.dtype), z.dtype.scalar)

    def widen(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    InterpreterBuilder.create_fma = fma
    InterpreterBuilder.create_dot = lambda self, a, b, *rest: dot(self, widen(a), widen(b), *rest)


def main(path_in: str, path_out: str) -> None:
    repair_interpreter()
    job = torch.load(path_in, weights_only=True)
    module = import_module(job["module"])
    for args, config, keywords in job["cases"].values():
        module.launch(*args, module.Config(**config), **keywords)
    torch.save({name: case[0] for name, case in job["cases"].items()}, path_out)


if __name__ == "__main__":
    main(*sys.argv[1:])
