"""Pair samples with their references by (prompt id, seed), never by position."""

from collections.abc import Iterable, Sequence

from dit8.models.types import Sample, SampleKey
from dit8.quant.errors import UserError


def pair_samples(
    samples: Sequence[Sample], references: Sequence[Sample] | None, scorer: str
) -> list[tuple[Sample, Sample]]:
    """Pair every sample with the reference of the same prompt and seed.

    Args:
        samples: what is scored, in the order of the result.
        references: in any order; those without a sample are ignored.
        scorer: name for the error message.

    Raises:
        UserError: references is None or a sample has no partner (the ids are named).
        ValueError: two references share a key.
    """
    if references is None:
        raise UserError(f"{scorer}: needs the pictures of a reference variant, got none")
    partners = {reference.key: reference for reference in references}
    if len(partners) != len(references):
        raise ValueError(f"{scorer}: references must have unique (prompt id, seed) keys")
    missing = [sample.key for sample in samples if sample.key not in partners]
    if missing:
        raise UserError(
            f"{scorer}: {len(missing)} of {len(samples)} samples have no reference,"
            f" {name_keys(missing)}; generate the reference variant for the same prompts"
        )
    return [(sample, partners[sample.key]) for sample in samples]


def name_keys(keys: Iterable[SampleKey], limit: int = 3) -> str:
    """Return the first `limit` keys, sorted, as text for an error message."""
    ordered = sorted(keys)
    shown = ", ".join(f"{prompt_id} (seed {seed})" for prompt_id, seed in ordered[:limit])
    return shown + (", ..." if len(ordered) > limit else "")
