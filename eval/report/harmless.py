"""Tell which runs differ from the reference in arithmetic alone: they give the noise floor."""

from collections.abc import Mapping
from typing import Any

from dit8.quant.errors import UserError

# what two runs of the noise floor may differ in; another sampler or model is another experiment
HARMLESS = ("dtype", "companion_dtype", "engine", "backend", "batch", "attention")


def harmless_change(before: Mapping[str, Any], now: Mapping[str, Any], run_id: str) -> str:
    """Say in what a run of the reference's variant differs from the reference.

    Args:
        before, now: `identity` of the records of the reference and of the run; empty where there
            is no record, and then nothing can be told.
        run_id: of the run, for the message.

    Returns:
        such as "dtype bfloat16 instead of float32"; "" where the records do not tell.

    Raises:
        UserError: they differ in more than HARMLESS.
    """
    if not before or not now:
        return ""
    names = sorted(before.keys() | now.keys())
    changed = [name for name in names if before.get(name) != now.get(name)]
    if odd := [name for name in changed if name not in HARMLESS]:
        raise UserError(
            f"report: run {run_id} is to give the noise floor but differs from the reference in "
            f"{', '.join(odd)}, expected no more than {', '.join(HARMLESS)}; leave it out"
        )
    return ", ".join(f"{name} {now.get(name)} instead of {before.get(name)}" for name in changed)


def is_harmless(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Tell whether both records are there and differ in something, but in HARMLESS only."""
    names = before.keys() | now.keys()
    changed = {name for name in names if before.get(name) != now.get(name)}
    return bool(before and now and changed) and changed <= set(HARMLESS)
