"""The training checkpoint: a handful of files under 16 MiB each, 56 MiB in all, written atomically.

| file                            | holds                                     | MiB  |
|---------------------------------|-------------------------------------------|------|
| vae.safetensors                 | VAE, fp32 statistics and bf16 weights     | 4.5  |
| text_encoder.safetensors        | frozen random text encoder, bf16          | 3.1  |
| conditional.safetensors         | moving average, bf16                      | 14.8 |
| unconditional.safetensors       | moving average, bf16                      | 14.8 |
| raw.safetensors                 | live weights of the branch in training, bf16 | 14.8 |
| state.json                      | stage, seconds spent, steps, configuration | 0    |

Optimizer moments are not kept: a resumed stage warms up again.
"""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

STAGES = ("vae", "conditional", "unconditional", "done")


def save_weights(module: torch.nn.Module, path: Path, keep_fp32: tuple[str, ...] = ()) -> None:
    """Save a state dict in bf16 (names starting with `keep_fp32` as they are), then rename."""
    tensors = {
        name: value.detach().cpu().contiguous()
        if name.startswith(keep_fp32) or not value.is_floating_point()
        else value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in module.state_dict().items()
    }
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    os.replace(partial, path)


def load_weights(module: torch.nn.Module, path: Path) -> None:
    """Load what `save_weights` wrote, strictly, into the module's own dtypes."""
    module.load_state_dict(load_file(path), strict=True)


def save_state(folder: Path, state: dict) -> None:
    """Write state.json atomically."""
    partial = folder / "state.json.partial"
    partial.write_text(json.dumps(state, indent=2, sort_keys=True) + "\n")
    os.replace(partial, folder / "state.json")


def load_state(folder: Path) -> dict:
    """Read state.json; a fresh state when there is none."""
    path = folder / "state.json"
    if path.exists():
        return json.loads(path.read_text())
    return {"stage": "vae", "elapsed": 0.0, "step": 0}
