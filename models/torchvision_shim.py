"""Import torchvision beside a torch that was built without CUDA.

torchvision's published Linux wheel is linked against the CUDA libraries. Beside a CPU build of
torch its extension cannot be loaded, which torchvision tolerates, but then the operators that the
extension would have declared are missing, and the first line that refers to one ends the import:
`RuntimeError: operator torchvision::nms does not exist`. The same line breaks every library that
looks for torchvision (transformers' CLIP, open_clip, lpips, diffusers' pipelines).

Declaring the two operators that the import refers to is enough. They get no implementation: box
suppression itself stays unusable, and no scorer calls it; transforms and backbones need neither.

The core does not import this file; a scorer that needs torchvision calls `import_torchvision`
before it imports anything that may import torchvision by itself.
"""

import importlib
import sys
from types import ModuleType

import torch

from quant.errors import UserError

MISSING_OPERATOR = "operator torchvision::nms does not exist"
# As the extension of torchvision 0.28.0 declares them.
BOX_SUPPRESSION = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
DECLARATIONS = tuple(f"{name}{BOX_SUPPRESSION}" for name in ("nms", "qnms"))

# An operator disappears with the Library object that declared it, so it is kept for the process.
_libraries: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Import torchvision, declaring its missing operators if that is what stops it.

    Nothing is declared where the import works (a CUDA build of torch, where torchvision's own
    extension declares them: a second declaration would clash).

    Returns:
        The module `torchvision`. Its transforms and models work; `torchvision.ops` does not,
        where the operators had to be declared here.

    Raises:
        UserError: torchvision is not installed, or its import fails for any other reason.
    """
    try:
        return _import_or_explain()
    except RuntimeError as error:
        if str(error) != MISSING_OPERATOR:
            raise UserError(_sentence(error)) from error
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # a half-imported module would be taken as it is
    library = torch.library.Library("torchvision", "DEF")
    for declaration in DECLARATIONS:
        library.define(declaration)
    _libraries.append(library)
    try:
        return _import_or_explain()
    except RuntimeError as error:
        raise UserError(_sentence(error)) from error


def _import_or_explain() -> ModuleType:
    try:
        return importlib.import_module("torchvision")
    except (ImportError, OSError, AttributeError) as error:
        raise UserError(_sentence(error)) from error


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (
        f"import_torchvision: importing torchvision ended in {type(error).__name__}: {text}; "
        f"expected torchvision 0.28.0 beside torch 2.13.0, got torch {torch.__version__}; "
        "install it with pip install -c constraints.txt -e '.[clip]'"
    )
