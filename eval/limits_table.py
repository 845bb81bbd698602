"""Write down what the settings change: a table, and the answer in computed sentences."""

from collections.abc import Sequence

from eval.limits import DEFAULT, RECIPE, REFERENCE, SETTINGS, VARIANTS, Entry
from eval.records import Interval
from eval.stats import LEVEL
from eval.table import align, format_interval

ABSENT = "not measured"
COMMAND = "python scripts/limits.py --run hardware=cuda"
LIMITS = (
    "The mini draws posters of 256 px. What follows says whether a verdict about it depends "
    "on the setting; it says nothing about Ideogram 4."
)
RULE = (
    f"The default is {DEFAULT.steps} steps, guidance {DEFAULT.guidance:g}, natural weights; each "
    f"other row moves one of them. Every variant is compared with {REFERENCE} at the same setting, "
    f"captions and noise; int8 under recipe {RECIPE}. Δ: difference in texts read exactly. "
    "Verdict: by ocr_exact and ocr_ned against the margins of conf/margins.yaml, corrected over "
    "the two. Change: against the default, paired by caption. Brackets are "
    f"{100 * LEVEL:.0f} % intervals. Changes are not corrected for their number: of changes that "
    f"are none about {100 * (1 - LEVEL):.0f} % leave out zero."
)


def render(entries: Sequence[Entry], title: str) -> str:
    """Lay the entries out as markdown; the same entries give the same bytes.

    Args:
        entries: of `eval.limits.examine`.
        title: one line: prompts, captions, backend.
    """
    lines = [["setting", "variant", "latent error ↓", "change", "PSNR, dB ↑"]]
    lines[0] += ["Δ texts read exactly ↑", "change", "verdict"]
    for entry in entries:
        verdict = ABSENT if entry.verdict is None else entry.verdict.kind
        lines.append([entry.setting.name, entry.variant])
        lines[-1] += [
            _text(entry.distances.get("latent_error"), ".3g"),
            _changed(entry, entry.error_change, "+.3g"),
            _text(entry.distances.get("psnr"), ".1f"),
            _text(entry.exact, "+.3f"),
            _changed(entry, entry.exact_change, "+.3f"),
            verdict,
        ]
    findings = "".join(f"- {line}\n" for line in answer(entries)).rstrip()
    return "\n\n".join([title, LIMITS, findings, align(lines).rstrip(), RULE]) + "\n"


def answer(entries: Sequence[Entry]) -> list[str]:
    """Say which changes are real, and of every variant where it has which verdict."""
    sentences = []
    measured = [e for e in entries if e.exact_change is not None]
    real = [e for e in measured if not _holds_zero(e.exact_change)]
    if measured:
        listed = ", ".join(
            f"{e.variant} at {e.setting.name} ({format_interval(e.exact_change, '+.3f')})"
            for e in real
        )
        sentences.append(
            "Changes of the difference in texts read exactly, against the default, that leave out "
            f"zero: {len(real)} of {len(measured)}"
            + (f", {listed}." if real else "; no setting is seen to matter to the texts.")
        )
    errors = [e for e in entries if e.error_change is not None]
    moved = {
        name: [e for e in errors if e.variant == name and not _holds_zero(e.error_change)]
        for name in VARIANTS
    }
    if errors:
        parts = []
        for name, found in moved.items():
            for sign, word in ((1, "more"), (-1, "less")):
                where = [e.setting.name for e in found if sign * e.error_change.estimate > 0]
                if where:
                    parts.append(f"{name} {word} at {', '.join(where)}")
        told = "; ".join(parts) if parts else "no variant differently from the default"
        sentences.append(f"The latents are moved: {told}.")
    sentences += [_verdicts([e for e in entries if e.variant == name]) for name in VARIANTS]
    absent = [e for e in entries if e.verdict is None or not e.distances]
    if absent:
        names = ", ".join(f"{e.variant} at {e.setting.name}" for e in absent)
        sentences.append(f"Not measured: {names}; run `{COMMAND}`.")
    return sentences


def _verdicts(entries: Sequence[Entry]) -> str:
    """Say at which settings a variant has which verdict."""
    where: dict[str, list[str]] = {}
    for entry in entries:
        if entry.verdict is not None:
            where.setdefault(entry.verdict.kind, []).append(entry.setting.name)
    name = entries[0].variant
    if not where:
        return f"{name}: no setting is measured."
    seen = sum(map(len, where.values()))
    if len(where) == 1:
        (kind,) = where
        return f"{name}: {kind} at {seen} of {len(SETTINGS)} settings, the same at all measured."
    parts = [f"{kind} at {', '.join(names)}" for kind, names in where.items()]
    return f"{name}: {'; '.join(parts)}."


def _holds_zero(interval: Interval) -> bool:
    return interval.low <= 0.0 <= interval.high


def _changed(entry: Entry, interval: Interval | None, spec: str) -> str:
    return "" if entry.setting == DEFAULT else _text(interval, spec)


def _text(interval: Interval | None, spec: str) -> str:
    return ABSENT if interval is None else format_interval(interval, spec)
