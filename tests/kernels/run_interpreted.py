"""Run launches of kernel modules under Triton's interpreter, for every line `IN<tab>OUT` of stdin.

A process of its own, because Triton reads TRITON_INTERPRET when a kernel is *defined*: in a pytest
process that has imported Triton already (torch does it too) the variable comes too late. conftest
starts it with the variable set, once: its imports take three seconds. IN holds {"module", "cases":
{name: (args, config, keywords)}}; OUT gets {name: args} as the launches left them. A line of JSON
answers each: "" or what went wrong.
"""

import json
import sys
import traceback
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


def run(path_in: str, path_out: str) -> None:
    job = torch.load(path_in, weights_only=True)
    module = import_module(job["module"])
    for args, config, keywords in job["cases"].values():
        module.launch(*args, module.Config(**config), **keywords)
    torch.save({name: case[0] for name, case in job["cases"].items()}, path_out)


def main() -> None:
    repair_interpreter()
    for line in sys.stdin:
        said = ""
        try:
            run(*line.rstrip("\n").split("\t"))
        except Exception:  # whatever it is, it fails the test that asked, not the next one
            said = traceback.format_exc()
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
