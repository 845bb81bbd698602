"""The doors through which the golden tests reach the project: only these lines follow a move."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dit8.eval.job import checkpoint_sha256, prepare
from dit8.eval.prompt_style import styled
from dit8.eval.provenance import run_id
from dit8.models.artifacts import open_model, quantize_model
from dit8.models.prompts import load_prompts
from dit8.models.types import noise_for
from dit8.quant.files import content_key
from dit8.quant.formats.table import get_format
from dit8.scripts.cli import compose


class House:
    """What the golden tests ask of the project, by function instead of by place."""

    @staticmethod
    def key(value: Any) -> str:
        return content_key(value)

    @staticmethod
    def prompts(path: Path, style: str) -> list:
        """Read a prompt set; the captions as the model sees them in a style, json or raw."""
        return [styled(prompt, style) for prompt in load_prompts(path)]

    @staticmethod
    def run_id(identity: dict, checkpoint_sha256: str | None, captions_key: str) -> str:
        return run_id(identity, checkpoint_sha256, captions_key)

    @staticmethod
    def planned_run_id(*overrides: str) -> str:
        """The id that scripts/evaluate.py gives a run; makes its checkpoint, draws nothing."""
        return prepare(compose("evaluate", list(overrides))).key.run_id

    @staticmethod
    def quantize(*overrides: str) -> Path:
        """What scripts/quantize.py makes: the file of a format, or the folder of several."""
        config = compose("quantize", list(overrides))
        return quantize_model(config, open_model(config.model), get_format(config.format)).path

    @staticmethod
    def sha256(checkpoint: Path) -> str:
        """Hash a checkpoint as run ids do."""
        return checkpoint_sha256(checkpoint)

    @staticmethod
    def noise(prompt_id: str, seed: int, tokens: int, channels: int) -> torch.Tensor:
        return noise_for(prompt_id, seed, tokens, channels)


@pytest.fixture(scope="session")
def house() -> type[House]:
    return House
