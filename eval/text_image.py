"""A score of how well a picture fits a text: a function of the cosine between their features.

What differs between CLIPScore, PickScore and HPSv2 is data: where the weights are, how a picture is
prepared, and what is made of the cosine. What they share is here: which text is compared, that
nothing is scored with weights that are not there, and what a run records of all this.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dit8.eval.clip_models import Backbone, load_tokenizer, load_towers, missing_packages
from dit8.eval.images import load_rgb
from dit8.eval.score_text import score_text
from dit8.eval.weight_files import verified_sha256
from dit8.models.types import Sample
from dit8.quant.errors import UserError


@dataclass(frozen=True)
class TextImageScorer:
    """Score pictures by how well they fit a text.

    Args:
        locate: (scorer) -> the backbone, or a sentence why its weights are not there.
        value: (cosine, logit scale) -> score.
        backbone: name of the architecture or of the repository; which names, see `locate`.
        checkpoint: file or folder of weights; None: the hub's cache.
        sha256: of the weights, or its first digits; None: see `eval.weight_files`.
        score_text: what text a picture is compared with, see `eval.score_text`.
        device: a torch device, or "auto" for CUDA where there is one.
    """

    name: str
    unit: str
    bounds: tuple[float, float]
    preprocessing: str
    locate: Callable[["TextImageScorer"], Backbone | str]
    value: Callable[[float, float], float]
    backbone: str
    checkpoint: str | None = None
    sha256: str | None = None
    score_text: str = "idea"
    device: str = "auto"
    higher_is_better: bool = True
    needs_reference: bool = False

    def obstacle(self) -> str | None:
        """Return why this scorer cannot run here, or None; loads no model."""
        found = self.locate(self)
        if isinstance(found, str):
            return f"not measured: {found}"
        if absent := missing_packages(found.library):
            return (
                f"not measured: {' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not "
                "installed; get it with `pip install -c constraints.txt -e '.[clip]'`"
            )
        return None

    def identity(self) -> dict[str, Any]:
        """Return what else the value depends on: weights with their hash, library, text.

        Raises:
            UserError: the weights are not there, or are other ones than expected.
        """
        found = self._found()
        package = {"open_clip": "open-clip-torch"}.get(found.library, found.library)
        return {
            "backbone": self.backbone,
            "weights": found.weights.name,
            "sha256": verified_sha256(found.weights, self.sha256),
            "dtype": "float32",
            "score_text": self.score_text,
            "environment": {name: version(name) for name in (package, "pillow", "torch")},
        }

    def text_record(self, samples: Sequence[Sample]) -> dict[str, int | str]:
        """Count the tokens that the text tower cannot see; reads no weights.

        Returns:
            {"score_text", "texts": how many, "texts_truncated": of these, "tokens_cut": in all}.

        Raises:
            UserError: the weights are not there, or a prompt lacks the text.
        """
        tokenize = load_tokenizer(self._found())
        cut = [tokenize(score_text(sample, self.score_text))[1] for sample in samples]
        return {
            "score_text": self.score_text,
            "texts": len(cut),
            "texts_truncated": sum(count > 0 for count in cut),
            "tokens_cut": sum(cut),
        }

    def score(
        self, samples: Sequence[Sample], references: Sequence[Sample] | None = None
    ) -> np.ndarray:
        """Return float64 (n,); `references` is not used.

        Raises:
            UserError: the weights are not there or are other ones, a prompt lacks the text, or a
                picture cannot be read.
        """
        found = self._found()
        texts = [score_text(sample, self.score_text) for sample in samples]
        verified_sha256(found.weights, self.sha256)
        towers = load_towers(found, _device(self.device))
        features = {text: towers.text(text) for text in dict.fromkeys(texts)}
        values = []
        for sample, text in zip(samples, texts, strict=True):
            picture = towers.image(load_rgb(sample.image_path))
            cosine = float(torch.dot(picture.double(), features[text].double()))
            # rounding may leave a unit vector 1e-7 too long; a NaN passes through
            values.append(self.value(max(min(cosine, 1.0), -1.0), towers.logit_scale))
        return np.array(values, dtype=np.float64)

    def _found(self) -> Backbone:
        if obstacle := self.obstacle():
            raise UserError(f"{self.name} {obstacle}")
        found = self.locate(self)
        assert isinstance(found, Backbone)
        return found


def given_path(scorer: TextImageScorer) -> Path | str:
    """Return the checkpoint that the user named, or a sentence when it is not there."""
    path = Path(scorer.checkpoint or "")
    if path.exists():
        return path
    return f"checkpoint {path} of {scorer.name} does not exist; correct the path"


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
