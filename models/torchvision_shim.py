"""Let torchvision be imported beside a torch that was built without CUDA.

torchvision's published Linux wheel is linked against the CUDA libraries. Beside a CPU build of
torch its extension cannot be loaded, which torchvision tolerates, but then the operators that the
extension would have declared are missing, and the first line that refers to one ends the import:
`RuntimeError: operator torchvision::nms does not exist`. The same line breaks every library that
looks for torchvision (transformers' CLIP, open_clip, lpips, diffusers' pipelines).

Declaring the two operators that the import refers to is enough. They get no implementation: box
suppression itself stays unusable, and no scorer calls it; transforms and backbones need neither.

    python models/torchvision_shim.py

puts a copy of this file into the environment, with a line that calls `install` whenever Python
starts, so that scripts which import nothing of dit8 can import diffusers too. It does so only where
torchvision needs it, and takes both away where it does not. `make venv` runs it.

At import the file needs the standard library alone, and little of it: it runs at every start.
"""

import sys

MISSING_OPERATOR = "operator torchvision::nms does not exist"
# As the extension of torchvision 0.28.0 declares them.
BOX_SUPPRESSION = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
DECLARATIONS = tuple(f"{name}{BOX_SUPPRESSION}" for name in ("nms", "qnms"))
COPY = "dit8_torchvision_shim"  # module and .pth file in site-packages

# An operator disappears with the Library object that declared it, so it is kept for the process.
_libraries = []


class TorchvisionFinder:
    """Find torchvision as the other finders do, and mend the one error when it is executed."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        """Return the spec that another finder has for torchvision; None for any other module."""
        if name != "torchvision":
            return None
        for finder in sys.meta_path:
            find = None if finder is cls else getattr(finder, "find_spec", None)
            spec = None if find is None else find(name, path, target)
            if spec is not None:
                _mend(spec.loader)
                return spec
        return None


def install() -> None:
    """Mend torchvision when it is imported from now on; a second call changes nothing.

    Costs nothing until then, and declares nothing where the import works (a CUDA build of torch,
    where torchvision's own extension declares the operators: a second declaration would clash).
    Any error but the known one stays as it is.
    """
    if not any(map(_is_ours, sys.meta_path)):
        sys.meta_path.insert(0, TorchvisionFinder)


def _is_ours(finder) -> bool:
    """Tell by the name: the copy in site-packages has a class of its own."""
    return getattr(finder, "__name__", None) == TorchvisionFinder.__name__


def _mend(loader) -> None:
    """Let a loader execute torchvision again, with its operators declared, if they are missing."""
    execute = getattr(loader, "exec_module", None)
    if execute is None:  # a namespace: a folder of that name without a package in it
        return

    def exec_module(module) -> None:
        fresh = dict(vars(module))
        try:
            return execute(module)
        except RuntimeError as error:
            if str(error) != MISSING_OPERATOR:
                raise
        vars(module).clear()  # a half-imported module would be taken as it is
        vars(module).update(fresh)
        for name in [n for n in sys.modules if n.startswith("torchvision.")]:
            del sys.modules[name]
        _declare()
        return execute(module)

    loader.exec_module = exec_module


def _declare() -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for declaration in DECLARATIONS:
        library.define(declaration)
    _libraries.append(library)


def import_torchvision():
    """Import torchvision for a scorer that cannot do without.

    Returns:
        The module `torchvision`. Its transforms and models work; `torchvision.ops` does not,
        where the operators had to be declared here.

    Raises:
        UserError: torchvision is not installed, or its import fails.
    """
    import importlib

    from dit8.quant.errors import UserError

    install()
    try:
        return importlib.import_module("torchvision")
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        import torch

        text = " ".join(str(error).split())
        raise UserError(
            f"import_torchvision: importing torchvision ended in {type(error).__name__}: {text}; "
            f"expected torchvision 0.28.0 beside torch 2.13.0, got torch {torch.__version__}; "
            "install it with pip install -c constraints.txt -e '.[clip]'"
        ) from error


def set_up_environment() -> bool:
    """Put this file and the line that calls `install` into site-packages, or take them away.

    Returns:
        True: torchvision needs it, and now has it.
    """
    import sysconfig
    from importlib.util import cache_from_source
    from pathlib import Path
    from py_compile import compile

    folder = Path(sysconfig.get_path("purelib"))
    module, line = folder / f"{COPY}.py", folder / f"{COPY}.pth"
    line.unlink(missing_ok=True)  # first, and written last: it must never name what is not there
    needed = _fails_plainly()
    if needed:
        module.write_bytes(Path(__file__).read_bytes())
        compile(module, doraise=True)  # 0.3 ms at every start in place of 5 ms
        line.write_text(f"import {COPY}; {COPY}.install()\n")
    else:
        module.unlink(missing_ok=True)
        Path(cache_from_source(module)).unlink(missing_ok=True)
    return needed


def _fails_plainly() -> bool:
    """Tell whether importing torchvision ends in the known error without help."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not _is_ours(finder)]
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        return str(error) == MISSING_OPERATOR
    except (ImportError, OSError, AttributeError):  # not there, or of another torch
        return False
    return False


if __name__ == "__main__":
    if not sys.flags.safe_path:
        sys.path.pop(0)  # this folder: its files are no top-level modules
    print("torchvision: mended at start" if set_up_environment() else "torchvision: left alone")
