"""An 8-bit laboratory for diffusion transformers.

    load_quantized(pipeline, path)    put a checkpoint's linears into a pipeline
    int8_linear(x, wq, ws)            quantize the rows of x, multiply int8 by int8, scale back
    Int8Linear                        the same as a module

Sub-packages: dit8.quant, dit8.kernels, dit8.models, dit8.eval, dit8.conf. A name is imported when
it is used, so that `import dit8` brings in no torch.
"""

import os
from importlib import import_module
from typing import Any

_HOMES = {
    "Int8Linear": "dit8.quant.linear",
    "int8_linear": "dit8.quant.linear",
    "load_quantized": "dit8.quant.checkpoint.load",
}
__all__ = list(_HOMES)  # noqa: PLE0604

# In a checkout the sub-packages are folders beside this one; an installed package holds them.
_CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if os.path.isfile(os.path.join(_CHECKOUT, "pyproject.toml")):
    __path__.append(_CHECKOUT)


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for first (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dit8' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
