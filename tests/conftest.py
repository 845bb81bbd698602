"""Settings every test shares: threads, no network, seeds and the gpu marker."""

import os
import random
import sys

import pytest

# Before anything imports torch, and inherited by tests that start a process: two torch processes
# with two threads each on two cores wait for each other's barriers (seen: a step of 42 ms took
# 1100 ms), one thread each does not. A value set by the caller stays.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# No test may reach for a model hub or open a window.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import dit8.models  # noqa: E402, F401 (mends torchvision for every test that imports diffusers)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked gpu where torch sees no CUDA device."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch  # seconds: only when a test of this run asks for a GPU

    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU: torch.cuda.is_available() is False")
    for item in gpu_items:
        item.add_marker(skip)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Start every test from the same global seeds, so that its outcome does not depend on order.

    The project's own code takes generators; this covers what a library draws by itself.
    """
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
