"""Models and what draws with them."""

import logging

from dit8.models.torchvision_shim import install

# On a CPU with AVX-512 bf16, bitsandbytes looks for Hugging Face's package `kernels` and, without
# it, warns on every import of diffusers; it then uses its own code.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# Where torchvision is installed, which extras do, transformers and diffusers import it too.
install()
