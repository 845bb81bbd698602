"""Say where every run of a report comes from: commit, weights, hardware, versions, time."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from dit8.eval.report.data import Origin
from dit8.eval.report.load import Evaluation, Measured

SHOWN_DIGITS = 12  # of a SHA-256; the record below has all
VERSIONS = ("torch", "triton", "diffusers")


def describe_origins(evaluation: Evaluation) -> tuple[Origin, ...]:
    """Return the origin of every run, in the order they are shown."""
    return tuple(_origin(measured) for measured in evaluation.everything)


def page_facts(evaluation: Evaluation) -> tuple[tuple[str, str], ...]:
    """Return what holds for the whole report, for its head."""
    reference = evaluation.reference
    samples = reference.run.samples
    seeds = len(samples) // max(1, len({sample.prompt.id for sample in samples}))
    facts = [
        ("model", reference.key.model),
        ("prompts", f"{reference.key.prompt_set}, {len(samples) // max(1, seeds)}"),
        ("pictures a prompt", str(seeds)),
        ("reference", reference.label),
        ("arithmetic", reference.key.dtype),
        ("hardware", ", ".join(_distinct(evaluation, _hardware))),
        ("drawn", ", ".join(_distinct(evaluation, _day))),
    ]
    return tuple((name, value) for name, value in facts if value)


def weight_sizes(evaluation: Evaluation) -> dict[str, int]:
    """Return label -> bytes of both branches as stored, where the record of the run knows it."""
    found = {column.label: column.record.get("branch_bytes") for column in evaluation.columns}
    return {label: int(size) for label, size in found.items() if size}


def _origin(measured: Measured) -> Origin:
    key, record = measured.key, measured.record
    facts = {
        "run": key.run_id,
        "recipe": "" if key.recipe == "none" else key.recipe,
        "engine": key.engine,
        "dtype": key.dtype,
        "backend": key.backend,
        "commit": _commit(record.get("git", {})),
        "checkpoint": (record.get("checkpoint_sha256") or "")[:SHOWN_DIGITS],
        "hardware": _hardware(measured),
        "drawn": record.get("started", ""),
    }
    versions = record.get("versions", {})
    facts |= {name: versions[name] for name in VERSIONS if versions.get(name)}
    whole: dict[str, Any] = dict(record) or {"run": vars(key), "record": "there is none"}
    whole |= {"scorers": measured.scorers} if measured.scorers else {}
    return Origin(
        measured.label,
        tuple((name, value) for name, value in facts.items() if value),
        json.dumps(_without_prompts(whole), indent=1, sort_keys=True, ensure_ascii=False),
    )


def _commit(git: Mapping[str, Any]) -> str:
    commit = (git.get("commit") or "")[:SHOWN_DIGITS]
    return f"{commit} and changes" if commit and git.get("dirty") else commit


def _without_prompts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the list of prompts: the gallery names every one."""
    return {name: value for name, value in record.items() if name != "prompts"}


def _distinct(evaluation: Evaluation, fact_of: Callable[[Measured], str]) -> list[str]:
    return list(dict.fromkeys(filter(None, map(fact_of, evaluation.columns))))


def _hardware(measured: Measured) -> str:
    hardware = measured.record.get("hardware", {})
    return hardware.get("gpu") or hardware.get("cpu") or ""


def _day(measured: Measured) -> str:
    return measured.record.get("started", "")[:10]
