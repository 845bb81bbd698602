"""Run a pipeline that is larger than the GPU: one of its three large modules there at a time.

For calibrating the real model on a 24 GB card: the text encoder (16 GB in bf16) and each branch
(9.3 GB in FP8) visit the device in turn, the rest waits in main memory; the sampler's arithmetic
stays on the CPU. A branch crosses the bus twice a step, 9.3 GB each time: with 12 GB/s about 1.6 s
a step, beside 3-4 s of computing on an RTX 3090. diffusers' own offloading keeps both branches on
the device after the first step, because its hooks form a chain and the branches alternate.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dit8.quant.architectures.ideogram4 import branch_modules


@contextmanager
def staged(pipeline: Any, device: torch.device) -> Iterator[None]:
    """Let text encoder and branches visit `device` in turn, for the length of a `with` block.

    Args:
        pipeline: an Ideogram4Pipeline on the CPU.
        device: where each module computes; results come back to the CPU.
    """
    visitors = [pipeline.text_encoder, *branch_modules(pipeline).values()]
    handles = []

    def enter(module: nn.Module) -> None:
        for other in visitors:
            if other is not module:
                other.to("cpu")
        module.to(device)

    def before(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        enter(module)
        return _moved(args, device), _moved(kwargs, device)

    def after(_: nn.Module, __: tuple, output: Any) -> Any:
        return _moved(output, torch.device("cpu"))

    encode, own = pipeline.encode_prompt, vars(pipeline).get("encode_prompt")

    def encode_prompt(*args: Any, **kwargs: Any) -> tuple:
        # the pipeline calls the encoder's layers, never its forward: hooks would not fire
        enter(pipeline.text_encoder)
        return encode(*args, **{**kwargs, "device": torch.device("cpu")})

    try:
        for module in branch_modules(pipeline).values():
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True, prepend=True))
            handles.append(module.register_forward_hook(after))
        pipeline.encode_prompt = encode_prompt
        yield
    finally:
        vars(pipeline).pop("encode_prompt", None)
        if own is not None:  # somebody's replacement of the class's method
            pipeline.encode_prompt = own
        for handle in handles:
            handle.remove()
        for module in visitors:
            module.to("cpu")


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, device) for item in value)
    return value
