"""Measure the fragility of every linear: the loop behind scripts/fragility.py.

One pass over the prompts records the inputs of the branches and the moments of every activation;
then each linear alone is quantized, its branch is run again on those inputs, and the prompts are
generated again to the end. What was measured is kept in a JSON file, linear by linear.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from dit8.quant.calibrate import channel_crest
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically
from dit8.quant.int8 import relative_error
from dit8.quant.layer_sensitivity import (
    Call,
    exchanged,
    plain_int8,
    record_inputs,
    velocities,
    velocity_damage,
)
from dit8.quant.moments import Moments, kurtosis, merge, recording_moments
from dit8.quant.types import Architecture


@dataclass(frozen=True)
class Running:
    """A loaded model."""

    branches: Mapping[str, nn.Module]
    run: Callable[[Any], object]  # all steps of one prompt
    latents: Callable[[Sequence], torch.Tensor] | None  # final latents of a batch of prompts


@dataclass(frozen=True)
class Subject:
    """What is profiled, whatever it is made from; it is loaded only if something is missing."""

    name: str
    identity: Any  # JSON: everything that decides what is measured, the device aside
    branches: tuple[str, ...]
    architecture: Architecture
    prompts: list  # the even ones first: two halves lie side by side
    load: Callable[[], Running]

    @property
    def first_half(self) -> int:
        return (len(self.prompts) + 1) // 2


def record(subject: Subject, running: Running) -> tuple[dict[str, tuple[Call, ...]], list[Moments]]:
    """Run every prompt once: inputs of the branches, and moments of each half of the prompts."""
    calls: dict[str, tuple[Call, ...]] = dict.fromkeys(running.branches, ())
    moments = []
    cut = subject.first_half
    with tqdm(total=len(subject.prompts), desc="record", unit="prompt") as bar:
        for half in (subject.prompts[:cut], subject.prompts[cut:]):
            if not half:
                continue
            with recording_moments(running.branches, subject.architecture) as recorder:

                def generate(prompt: Any, recorder=recorder) -> None:
                    recorder.begin_prompt()
                    running.run(prompt)
                    bar.update()

                for branch, kept in record_inputs(running.branches, generate, half).items():
                    calls[branch] += kept
            moments.append(recorder.moments())
    return calls, moments


def describe(moments: Moments) -> dict[str, dict[str, list[float | None]]]:
    """Reduce moments to numbers per activation and step; None where a kurtosis is undefined."""
    described = {}
    for key, maxima in moments.maxima.items():
        quantities = {
            "absmax": maxima.amax(dim=1),
            "crest": channel_crest(maxima),
            "kurtosis": kurtosis(moments.sums[key]),
        }
        described[key] = {
            name: [None if v != v else v for v in values.tolist()]
            for name, values in quantities.items()
        }
    return described


def profile(subject: Subject, batch: int, path: Path) -> dict:
    """Measure what the state file does not hold yet; returns the complete state."""
    state = read_state(path)
    names = [(b, linear) for b in subject.branches for linear in subject.architecture.stored]
    done = state.setdefault("damage", {})
    if "moments" in state and len(done) == len(names):
        return state
    running = subject.load()
    calls, halves = record(subject, running)
    whole = halves[0] if len(halves) == 1 else merge(*halves)
    state["moments"] = [describe(moments) for moments in (whole, *halves)]
    steps = len(next(iter(calls.values()))) // len(subject.prompts)
    forwards = len(subject.prompts) * steps * (1 if running.latents is None else 3)
    references = {
        branch: velocities(module, calls[branch], batch=batch)
        for branch, module in running.branches.items()
    }
    latents = final_latents(subject, running, batch)
    with tqdm(
        total=len(names) * forwards, initial=len(done) * forwards, desc="damage", unit="forward"
    ) as bar:
        for branch, linear in names:
            key = f"{branch}.{linear.name}"
            if key in done:
                continue
            module, before = running.branches[branch], bar.n
            replacements = plain_int8(module, linear.parts)
            damage = velocity_damage(
                module,
                calls[branch],
                replacements,
                references[branch],
                batch=batch,
                progress=bar.update,
            )
            done[key] = {"velocity": damage.reshape(-1, steps).tolist()}
            with exchanged(module, replacements):
                changed = final_latents(subject, running, batch)
            pairs = zip(latents, changed, strict=True)
            done[key]["latents"] = [relative_error(a, b) for a, b in pairs]
            bar.update(forwards - (bar.n - before))
            text = json.dumps(state, allow_nan=False)
            write_atomically(path, lambda partial, t=text: partial.write_text(t, encoding="utf-8"))
    return state


def read_state(path: Path) -> dict:
    """Read what an earlier run measured; nothing if there was none.

    Raises:
        UserError: the file is not JSON.
    """
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} must hold JSON, got {error}; delete it to start anew") from error


def final_latents(subject: Subject, running: Running, batch: int) -> list[torch.Tensor]:
    """Generate every prompt: (tokens, channels) each; nothing where there are no latents."""
    if running.latents is None:
        return []
    starts = range(0, len(subject.prompts), batch)
    return [x for start in starts for x in running.latents(subject.prompts[start : start + batch])]
