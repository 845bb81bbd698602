"""Activation statistics: what is kept of a calibration, and its file.

For every activation (of a group of linears that read it) and every denoising step, the
largest magnitude of each channel over prompts and real tokens. A maximum does not depend on the
order of what it is taken over, so an interrupted calibration that continues gives the same bits as
an unbroken one. Besides, one whole row of every activation at some steps of every prompt, in bf16,
for recipes that compare output errors. Size: steps * K * 4 bytes per activation and 2 * K a row;
15.6 MB for the bundled mini at 20 steps and 256 rows, 1.3 GB for the real model at 48 and 256.
"""

from pathlib import Path

import torch

from dit8.quant.errors import UserError
from dit8.quant.tensor_file import read_tensors, write_tensors
from dit8.quant.types import ActStats

KIND = "activation statistics 2"  # raise the number when the content changes its meaning


def absmax(stats: ActStats, key: str) -> torch.Tensor:
    """Return the largest magnitude of each channel over all steps: (K,) fp32."""
    return step_absmax(stats, key).amax(dim=0)


def step_absmax(stats: ActStats, key: str) -> torch.Tensor:
    """Return the largest magnitude of each channel at each step: (steps, K) fp32.

    Args:
        key: "branch/fold".

    Raises:
        UserError: the statistics lack the activation.
    """
    if key not in stats.step_absmax:
        raise UserError(
            f"step_absmax: the statistics hold no activation {key!r}, got "
            f"{len(stats.step_absmax)} others; calibrate the model that is being quantized"
        )
    return stats.step_absmax[key]


def channel_crest(maxima: torch.Tensor) -> torch.Tensor:
    """Compute channel max / channel median, the outlier measure that protection ranks by.

    Channels that are zero everywhere carry nothing and are left out of the median; with them a
    dead majority would make every crest infinite. An activation of zeros only has crest 1.

    Args:
        maxima: (..., K) largest magnitudes >= 0.

    Returns:
        (...) fp64 >= 1; the median of an even count is the mean of the middle two.
    """
    active = maxima.double().masked_fill(maxima == 0, torch.nan)
    crest = maxima.double().amax(dim=-1) / active.nanquantile(0.5, dim=-1)
    return crest.nan_to_num(nan=1.0)


def max_crest(stats: ActStats, key: str) -> float:
    """Return the largest crest over the denoising steps, each with its own maxima."""
    return float(channel_crest(step_absmax(stats, key)).max())


def save_stats(stats: ActStats, path: str | Path) -> None:
    """Write the statistics as one safetensors, atomically; equal statistics give equal bytes."""
    header = {
        "model_key": stats.model_key,
        "prompts_key": stats.prompts_key,
        "done": stats.done,
        "total": stats.total,
        "rows": stats.rows,
    }
    tensors = {f"absmax:{key}": tensor for key, tensor in stats.step_absmax.items()}
    tensors |= {f"samples:{key}": tensor for key, tensor in stats.samples.items()}
    write_tensors(path, tensors, KIND, header)


def load_stats(path: str | Path) -> ActStats:
    """Read the statistics, complete or not.

    Raises:
        UserError: no such file, or not a statistics file of this version.
    """
    tensors, header = read_tensors(path, KIND, remedy="make it anew with scripts/calibrate.py")
    return ActStats(
        step_absmax=_under("absmax:", tensors),
        rows=header["rows"],
        done=tuple(header["done"]),
        total=header["total"],
        model_key=header["model_key"],
        prompts_key=header["prompts_key"],
        samples=_under("samples:", tensors),
    )


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
