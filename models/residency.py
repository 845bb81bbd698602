"""Let a module visit the GPU and leave again without being copied back.

Weights do not change while a picture is drawn, so the copy in main memory stays valid: entering
copies it to the GPU, leaving drops the GPU's copy. For a card of 24 GB: the text encoder (16 GB)
leaves before the branches come, adaLN and the text projection leave when their results are in
tables (0.9 GB of a branch), the unconditional text projection never comes, and the branches leave
before the VAE decodes. Both int8 branches stay on the card through all steps, where
`models.staging`, which calibration uses, moves a branch twice a step.
"""

from collections.abc import Iterable

import torch
from torch import nn

from dit8.models.engine import EngineBranch
from dit8.models.memory import enough_memory

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
