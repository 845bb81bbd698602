"""Run launches of one kernel module under Triton's interpreter: `run_interpreted.py IN OUT`.

A process of its own, because Triton reads TRITON_INTERPRET when a kernel is *defined*: in a pytest
process that has imported Triton already (torch does it too) the variable comes too late. conftest
starts it with the variable set. IN holds {"module", "cases": {name: (args, config)}}; OUT gets
{name: args} as the launches left them.
"""

import sys
from importlib import import_module

import torch


def main(path_in: str, path_out: str) -> None:
    job = torch.load(path_in, weights_only=True)
    module = import_module(job["module"])
    for args, config in job["cases"].values():
        module.launch(*args, module.Config(**config))
    torch.save({name: args for name, (args, _) in job["cases"].items()}, path_out)


if __name__ == "__main__":
    main(*sys.argv[1:])
