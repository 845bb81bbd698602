"""A run: its key, its pairs with a reference, its folder on disk.

    <out>/<run_id>/run.json, <prompt id>_<seed>.png, <prompt id>_<seed>.safetensors

`run.json` lets the pictures be scored anywhere; a run may travel as one `<run_id>.tar`. Samples are
paired with their references by (prompt id, seed), never by position.
"""

import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dit8.models.types import Prompt, Sample, SampleKey
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically


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


RECORD = "run.json"


@dataclass(frozen=True)
class Run:
    """A run's identity, its pictures, and the run it is compared with (None: itself)."""

    key: RunKey
    samples: tuple[Sample, ...]
    reference: str | None  # run_id


def write_run_record(
    folder: Path, key: RunKey, prompts: Sequence[Prompt], reference: str | None
) -> None:
    """Describe a run beside its pictures, before the first of them is drawn."""
    record = {
        "key": asdict(key),
        "prompts": [asdict(prompt) for prompt in prompts],
        "reference": reference,
    }
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / RECORD, lambda path: path.write_text(text, encoding="utf-8"))


def read_run(folder: Path, only: Sequence[str] | None = None) -> Run:
    """Read a run whose pictures are all there, or those of some prompts.

    Pictures are not decoded here: a damaged one is named by every scorer that looks at it, and
    those that need no pixels go on.

    Args:
        folder: as scripts/evaluate.py writes it.
        only: ids of prompts, in the order of the result; default: all.

    Raises:
        UserError: no such run or prompt, or pictures are missing or not ours.
    """
    from dit8.models.generate import find_sample  # brings torch, which a run's key does not need

    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        key = RunKey(**record["key"])
        prompts = [Prompt(**row | {"texts": tuple(row["texts"])}) for row in record["prompts"]]
        reference = record["reference"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} must describe a run, got {type(error).__name__}: {error}; "
            "pass a folder written by scripts/evaluate.py"
        ) from error
    if only is not None:
        by_id = {prompt.id: prompt for prompt in prompts}
        unknown = [name for name in only if name not in by_id]
        if unknown:
            raise UserError(
                f"run {folder.name} must have the prompt {unknown[0]}, got no such id; choose one "
                f"of {path}"
            )
        prompts = [by_id[name] for name in only]
    samples = [find_sample(prompt, folder, whole=False) for prompt in prompts]
    missing = [prompt.id for prompt, found in zip(prompts, samples, strict=True) if found is None]
    if missing:
        raise UserError(
            f"run {folder.name} lacks {len(missing)} of {len(prompts)} pictures, first "
            f"{missing[0]}; run scripts/evaluate.py again to finish it"
        )
    return Run(key, tuple(sample for sample in samples if sample is not None), reference)


def pack_run(folder: Path) -> Path:
    """Write `<folder>.tar` with the whole run, atomically."""

    def write(path: Path) -> None:
        with tarfile.open(path, "w") as archive:
            for file in sorted(folder.iterdir()):
                if not file.name.startswith("."):
                    archive.add(file, f"{folder.name}/{file.name}")

    target = folder.with_name(f"{folder.name}.tar")
    write_atomically(target, write)
    return target


def unpack_run(archive: Path, into: Path) -> Path:
    """Extract a packed run; returns its folder.

    Raises:
        UserError: not an archive of one run.
    """
    try:
        with tarfile.open(archive, "r:") as file:  # uncompressed, as pack_run writes it
            names = {member.name.split("/")[0] for member in file.getmembers()}
            if len(names) != 1:
                raise tarfile.TarError(f"{len(names)} folders")
            file.extractall(into, filter="data")
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{archive} must be a packed run, got {error}; pack it again") from error
    return into / names.pop()
