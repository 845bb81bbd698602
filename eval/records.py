"""Frozen records that cross the stages of an evaluation: run, interval."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RunKey:
    """Hold the columns every ledger row of one run shares; no field may be empty.

    Args:
        run_id: 12 hexadecimal digits, see `eval.provenance.run_id`.
        recipe: name of the quantization recipe, "none" for an unquantized variant.
        dtype: compute dtype, such as "float32".
        backend: what ran the int8 product, such as "triton" or "cpu-reference".
    """

    run_id: str
    model: str
    variant: str
    recipe: str
    engine: str
    dtype: str
    backend: str
    prompt_set: str


@dataclass(frozen=True)
class Interval:
    """Hold an estimate and its confidence interval.

    Args:
        estimate, low, high: in the unit of the score.
        n: number of resampled units (prompts), or of trials for "wilson".
        method: "bca", "percentile", "degenerate" or "wilson", see `eval.stats`; "newcombe" or
            "adjusted wald", see `eval.exact_match`.
    """

    estimate: float
    low: float
    high: float
    n: int
    method: str
