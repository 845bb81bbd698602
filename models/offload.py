"""Modules that visit the GPU and leave: for models that are larger than its memory.

`staged` is for calibrating the real model on a 24 GB card: the text encoder (16 GB in bf16) and
each branch (9.3 GB in FP8) visit the device in turn, the rest waits in main memory; the sampler's
arithmetic stays on the CPU. A branch crosses the bus twice a step, 9.3 GB each time: with 12 GB/s
about 1.6 s a step, beside 3-4 s of computing on an RTX 3090. diffusers' own offloading keeps both
branches on the device after the first step, because its hooks form a chain and the branches
alternate.

A `Guest` leaves without being copied back: weights do not change while a picture is drawn, so the
copy in main memory stays valid; entering copies it to the GPU, leaving drops the GPU's copy. The
engine draws with them on a card of 24 GB: the text encoder (16 GB) leaves before the branches come,
adaLN and the text projection leave when their results are in tables (0.9 GB of a branch), the
unconditional text projection never comes, and the branches leave before the VAE decodes. Both int8
branches stay on the card through all steps.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dit8.models.engine.forward import EngineBranch
from dit8.models.memory import enough_memory
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


CONDITIONING = ("t_embedding", "adaln_proj", "adaln_modulation")  # read by tabulate alone
TEXT = ("llm_cond_norm", "llm_cond_proj")  # read by prepare alone
REMEDY = "use a variant with smaller weights, or close other programs on this GPU"


class Guest:
    """Modules in main memory, and whether they are visiting a device.

    Args:
        name: for messages.
        modules: each with its own parameters and buffers; its children are not looked at.
    """

    def __init__(self, name: str, modules: Iterable[nn.Module]) -> None:
        self._name = name
        self._home = [(module, _tensors(module)) for module in modules]

    @property
    def nbytes(self) -> int:
        """Return how much memory it takes."""
        return sum(home.nbytes for _, tensors in self._home for *_, home in tensors)

    def enter(self, device: torch.device) -> None:
        """Copy everything to the device.

        Raises:
            UserError: it does not fit.
        """
        with enough_memory(f"{self._name} ({self.nbytes / 1e9:.2f} GB)", REMEDY):
            for module, _ in self._home:
                # what a module keeps on the host or in a dtype of its own is its own affair
                module._apply(lambda tensor: tensor.to(device), recurse=False)

    def leave(self) -> None:
        """Put the tensors of main memory back in their places; the device's copies are freed."""
        for module, tensors in self._home:
            for name, parameter, home in tensors:
                if parameter is None:
                    module._buffers[name] = home
                else:
                    parameter.data = home
                    module._parameters[name] = parameter


def _tensors(module: nn.Module) -> list[tuple[str, nn.Parameter | None, torch.Tensor]]:
    """List a module's own tensors: name, the parameter that holds it if one does, and values."""
    parameters = [(name, p, p.data) for name, p in module._parameters.items() if p is not None]
    buffers = [(name, None, b) for name, b in module._buffers.items() if b is not None]
    return parameters + buffers


class BranchGuest:
    """An engine's branch as a guest, in three parts that come and go separately.

    Args:
        name: for messages.
        engine: made on the module in main memory, so that its stacked weights travel once.
    """

    def __init__(self, name: str, engine: EngineBranch) -> None:
        self._engine = engine
        stacked = [p for block in engine.blocks for p in block.projections if p.is_stacked]
        views = {part for projection in stacked for part in projection.parts}
        conditioning, text, body = [], [], [projection.linear for projection in stacked]
        for path, module in engine.module.named_modules():
            if module not in views:
                words = path.split(".")
                is_conditioning = any(word in CONDITIONING for word in words)
                parts = conditioning if is_conditioning else text if words[0] in TEXT else body
                parts.append(module)
        self._stacked = stacked
        self._conditioning = Guest(f"adaLN of the {name} branch", conditioning)
        self._text = Guest(f"the text projection of the {name} branch", text)
        self._body = Guest(f"the {name} branch", body)

    def enter(self, device: torch.device, *, with_text: bool) -> None:
        """Bring the branch; `with_text`: also what projects the captions."""
        self._conditioning.enter(device)
        if with_text:
            self._text.enter(device)
        self._body.enter(device)
        self._share()

    def shrink(self) -> None:
        """Send away what `tabulate` and `prepare` needed and the steps do not."""
        self._conditioning.leave()
        self._text.leave()

    def leave(self) -> None:
        """Send the branch away, with its graphs and tables."""
        self._engine.release()
        for guest in (self._conditioning, self._text, self._body):
            guest.leave()
        self._share()

    def _share(self) -> None:
        for projection in self._stacked:
            projection.share()
