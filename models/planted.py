"""Derive a model folder with planted outlier channels; see quant/outliers.py for what they are."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file

from dit8.quant.architectures.ideogram4 import BRANCHES, architecture
from dit8.quant.errors import UserError
from dit8.quant.outliers import plant_outliers

RECORD = "planted.json"


def plant_model(
    source: Path, target: Path, *, seed: int, fraction: float, factors: Sequence[float]
) -> None:
    """Copy a diffusers folder and plant outliers in both branches, whole or not at all.

    The arithmetic is exact in the stored dtype, so the planted model computes what the source
    computes, bit for bit in fp32. `planted.json` says what was done to which channels.

    Raises:
        UserError: the source is no such folder, or the target exists.
    """
    if not (source / "model_index.json").is_file():
        raise UserError(f"plant_model: source {source} must be a diffusers folder, got none there")
    if target.exists():
        raise UserError(f"plant_model: {target} exists already; delete it to derive it again")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(source, partial)
        record: dict = {"seed": seed, "fraction": fraction, "factors": list(factors)}
        for number, (branch, attribute) in enumerate(BRANCHES.items()):
            shards = list((partial / attribute).glob("*.safetensors"))
            if len(shards) != 1:
                raise UserError(
                    f"plant_model: {source / attribute} must hold one safetensors file, got "
                    f"{len(shards)}; only small unsharded models can be planted"
                )
            weights = shards[0]
            config = json.loads((partial / attribute / "config.json").read_text())
            tensors, planted = plant_outliers(
                load_file(weights),
                architecture(config["num_layers"]),
                seed=seed * len(BRANCHES) + number,  # other channels in the other branch
                fraction=fraction,
                factors=factors,
            )
            save_file(tensors, weights, metadata={"format": "pt"})
            record[branch] = {
                p.group: dict(zip(p.channels, p.factors, strict=True)) for p in planted
            }
        (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_planted(folder: Path, *, seed: int, fraction: float, factors: Sequence[float]) -> None:
    """Make sure that a folder holds the model that this plan would derive.

    Raises:
        UserError: it was planted by another plan, or is no planted model.
    """
    path = folder / RECORD
    if not path.is_file():
        raise UserError(f"{folder} must hold a planted model with {RECORD}, got none; delete it")
    record = json.loads(path.read_text(encoding="utf-8"))
    plan = {"seed": seed, "fraction": fraction, "factors": list(factors)}
    found = {name: record.get(name) for name in plan}
    if found != plan:
        raise UserError(
            f"{folder} must be planted with {plan}, got {found}; delete it or set model.path"
        )
