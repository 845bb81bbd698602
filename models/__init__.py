"""Models and what draws with them."""

import contextlib
import importlib.util
import logging

from quant.errors import UserError

# On a CPU with AVX-512 bf16, bitsandbytes looks for Hugging Face's package `kernels`, finds our
# folder of that name and warns on every import of diffusers; it then uses its own code.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# Where torchvision is installed, which extras do, transformers and diffusers import it too, and
# fail where it does: the repair must come before them. They would pay its 1.3 s anyway.
if importlib.util.find_spec("torchvision") is not None:
    from models.torchvision_shim import import_torchvision

    with contextlib.suppress(UserError):  # said again by the scorer that needs it
        import_torchvision()
