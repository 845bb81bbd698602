"""Measure the perceptual distance of a picture to its reference by LPIPS, version 0.1.

Zhang, Isola, Efros, Shechtman and Wang 2018 (arXiv:1801.03924), equation 1: features of both
pictures at several depths l of a network are scaled to length 1 along the channels, then

    d(x, x0) = sum_l mean_hw || w_l * (y_l - y0_l) ||^2

by the package `lpips` (BSD-2), whose wheel carries the learned w_l, as squares. The network itself
is torchvision's (BSD-3) and comes as a separate file: AlexNet for `lpips`, which most publications
report, VGG-16 for `lpips_vgg`, SqueezeNet 1.1 for `lpips_squeeze`. torchvision puts the first
digits of the file's SHA-256 into its name; another file is refused, and so are random weights.
"""

import functools
import importlib.util
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dit8.eval.images import load_pair
from dit8.eval.provenance import installed_versions
from dit8.eval.run import pair_samples
from dit8.eval.weight_files import verified_sha256
from dit8.models.torchvision_shim import import_torchvision
from dit8.models.types import Sample
from dit8.quant.errors import UserError

VERSION = "0.1"
PACKAGES = ("lpips", "torchvision")
INSTALL = "pip install -c constraints.txt -e '.[lpips]'"
FETCH = (
    "from dit8.models.torchvision_shim import import_torchvision as t; "
    "t().models.{}(weights='DEFAULT')"
)
MIN_PX = 32  # below, AlexNet's second pooling has no whole window (31 px would do)


@dataclass(frozen=True)
class Network:
    """Name a backbone: its function in torchvision.models and the file of its weights."""

    function: str
    file: str

    @property
    def sha256(self) -> str:
        """Return the first digits of the file's SHA-256, which torchvision puts into its name."""
        return Path(self.file).stem.rpartition("-")[2]


NETWORKS = {
    "alex": Network("alexnet", "alexnet-owt-7be5be79.pth"),
    "vgg": Network("vgg16", "vgg16-397923af.pth"),
    "squeeze": Network("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth"),
}


@dataclass(frozen=True)
class Lpips:
    """Score pictures by LPIPS against the reference variant.

    Args:
        net: a key of NETWORKS.
        checkpoint: file of the network's weights; None: torch's own cache, under $TORCH_HOME.
        device: a torch device, or "auto" for CUDA where there is one.
    """

    name: str
    net: str
    checkpoint: str | None = None
    device: str = "auto"
    higher_is_better: bool = False
    unit: str = "LPIPS 0.1"
    bounds: tuple[float, float] = (0.0, math.inf)
    preprocessing: str = "8-bit RGB to [-1, 1] in fp32, own size; both pictures of one size"
    needs_reference: bool = True

    def obstacle(self) -> str | None:
        """Return why this scorer cannot run here, or None."""
        absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        if absent:
            verb = "is" if len(absent) == 1 else "are"
            return (
                f"not measured: {' and '.join(absent)} {verb} not installed; "
                f"get it with `{INSTALL}`"
            )
        if self.checkpoint is not None and not self._path.is_file():
            return (
                f"not measured: checkpoint {self._path} of {self.name} does not exist; correct the "
                "path"
            )
        if not self._path.is_file():
            command = FETCH.format(NETWORKS[self.net].function)
            return (
                f"not measured: {self._path.name} is not in $TORCH_HOME/hub/checkpoints; "
                f'get it with `python -c "{command}"`'
            )
        return None

    def identity(self) -> dict[str, Any]:
        """Return network, both files' hashes and versions.

        Raises:
            UserError: see `obstacle`, or the weights are other ones.
        """
        sha256 = self._verified()
        return {
            "net": self.net,
            "version": VERSION,
            "weights": NETWORKS[self.net].file,
            "sha256": sha256,
            "heads_sha256": verified_sha256(_heads(self.net)),
            "dtype": "float32",
            "environment": installed_versions(("lpips", "torchvision", "torch")),
        }

    def score(
        self, samples: Sequence[Sample], references: Sequence[Sample] | None = None
    ) -> np.ndarray:
        """Return float64 (n,).

        Raises:
            UserError: see `obstacle`, a missing partner, other weights, a picture that cannot be
                read, is of another size than its partner or smaller than MIN_PX.
        """
        pairs = pair_samples(samples, references, self.name)
        self._verified()
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model = _load(self.net, self._path, device)
        values = []
        for sample, partner in pairs:
            image, reference = load_pair(sample.image_path, partner.image_path)
            if min(image.shape[:2]) < MIN_PX:
                raise UserError(
                    f"{self.name}: image {sample.image_path} is {image.shape[1]}x{image.shape[0]} "
                    f"px, expected at least {MIN_PX}x{MIN_PX} px; generate larger pictures"
                )
            values.append(distance(model, image, reference, device))
        return np.array(values, dtype=np.float64)

    @property
    def _path(self) -> Path:
        if self.checkpoint is not None:
            return Path(self.checkpoint)
        return Path(torch.hub.get_dir()) / "checkpoints" / NETWORKS[self.net].file

    def _verified(self) -> str:
        if reason := self.obstacle():
            raise UserError(f"{self.name} {reason}")
        return verified_sha256(self._path, NETWORKS[self.net].sha256)


def distance(
    model: torch.nn.Module, image: np.ndarray, reference: np.ndarray, device: str
) -> float:
    """Return the LPIPS distance of two (H, W, 3) uint8 pictures, one pair at a time."""
    a, b = (
        torch.from_numpy(pixels).to(device, torch.float32).permute(2, 0, 1)[None] / 127.5 - 1
        for pixels in (image, reference)
    )
    # cuDNN would round the convolutions' inputs to TF32, 10 bits of mantissa
    exact = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    with torch.inference_mode(), exact:
        return float(model(a, b))


def _heads(net: str) -> Path:
    """Return the file of the learned weights inside the package's wheel."""
    package = Path(importlib.util.find_spec("lpips").origin).parent
    return package / "weights" / f"v{VERSION}" / f"{net}.pth"


@functools.lru_cache(maxsize=len(NETWORKS))
def _load(net: str, path: Path, device: str) -> torch.nn.Module:
    """Build the network, which the package fills at random, and replace every weight by the file's.

    The file is the whole classifier of torchvision; LPIPS uses its part `features`.
    """
    import_torchvision()
    import lpips

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # the package passes torchvision an argument that torchvision has renamed
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        model = lpips.LPIPS(net=net, version=VERSION, pnet_rand=True, verbose=False)
    weights = torch.load(path, map_location="cpu", weights_only=True)
    # "slice2.3.weight" here is "features.3.weight" there
    wanted = {name: f"features.{name.partition('.')[2]}" for name in model.net.state_dict()}
    model.net.load_state_dict({name: weights[theirs] for name, theirs in wanted.items()})
    return model.eval().requires_grad_(False).to(device)


SCORERS = (
    Lpips("lpips", "alex"),
    Lpips("lpips_vgg", "vgg"),
    Lpips("lpips_squeeze", "squeeze"),
)
