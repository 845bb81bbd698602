"""Name the implementation that a device gets, or say why it gets none.

The kernels never fall back: on CUDA the Triton kernel runs or this raises; on a CPU the reference
runs, and the name returned here goes into the ledger's `backend` column so that no CPU number can
be read as a GPU number. Nothing is queried at import.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# int8 mma.sync m16n8k32, which the tiles are made of, exists from sm_80 on.
OLDEST_CAPABILITY = (8, 0)


class KernelError(Exception):
    """One sentence for the user: what the kernels cannot do, what was got, what to do instead."""


def backend_name(device: "torch.device | str") -> str:
    """Return which implementation of the kernels runs on `device`.

    Args:
        device: a device or its name, such as "cpu" or "cuda:0".

    Returns:
        "triton" on CUDA, "cpu-reference" on a CPU.

    Raises:
        KernelError: the device is of another type or absent, is older than compute capability 8.0,
            or Triton is not installed beside it.

    Does not import Triton and does not launch anything.
    """
    import torch  # a second, which KernelError alone should not cost

    device = torch.device(device)
    if device.type == "cpu":
        return "cpu-reference"
    if device.type != "cuda":
        raise KernelError(
            f"backend_name: device must be cpu or cuda, got {device}; "
            "no int8 kernel exists for it, use hardware=cpu"
        )
    if not torch.cuda.is_available():
        raise KernelError(
            f"backend_name: device {device} was asked for, but this torch ({torch.__version__}) "
            "sees no CUDA GPU; install a CUDA build or use hardware=cpu"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        raise KernelError(
            f"backend_name: the int8 kernels need compute capability 8.0 or newer, got "
            f"{capability[0]}.{capability[1]} on {device}; use hardware=cpu"
        )
    if find_spec("triton") is None:
        raise KernelError(
            f"backend_name: the int8 kernels on {device} need Triton, which is not installed; "
            "install the triton pinned in constraints.txt or use hardware=cpu"
        )
    return "triton"


def needs_dispatcher(x: "torch.Tensor") -> bool:
    """Tell whether an op on x must go through torch's dispatcher; else its plain torch will do.

    A custom op costs 0.12 ms a call on one core of an AMD EPYC, in which a (400, 256) x (256, 256)
    product takes 0.6: drawing with the mini, 8 % of the time. What it is for is CUDA, autograd
    (there is no backward, and it says so), torch.compile, and tensors or modes that stand in for
    computation.
    """
    import torch
    from torch.utils._python_dispatch import is_in_torch_dispatch_mode

    return (
        x.device.type != "cpu"
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or type(x) is not torch.Tensor
        or is_in_torch_dispatch_mode()
    )
