"""Write down what the settings change: two tables, and the answer in computed sentences.

The question comes first and has a condition: a verdict depends on the setting where it is another
one than at the default *and* the change in texts read exactly leaves out zero. A verdict that is
another one without that is named as not shown to differ.
"""

from collections.abc import Sequence

from dit8.eval.limits import (
    DEFAULT,
    JUDGES,
    RECIPE,
    REFERENCE,
    SETTINGS,
    VARIANTS,
    Entry,
    Examined,
    Judged,
    Level,
)
from dit8.eval.run import Interval
from dit8.eval.stats import LEVEL
from dit8.eval.table import align, format_interval
from dit8.eval.verdict import EQUIVALENT, UNDECIDED

ABSENT = "not measured"
COMMAND = "python scripts/limits.py --run hardware=cuda"
EXACT, NED = JUDGES
LIMITS = (
    "The mini draws posters of 256 px. What follows says whether a verdict about it depends "
    "on the setting; it says nothing about Ideogram 4."
)
RULE = (
    f"The default is {DEFAULT.steps} steps, guidance {DEFAULT.guidance:g}, natural weights; each "
    f"other row moves one of them. Every variant is compared with {REFERENCE} at the same setting, "
    f"captions and noise; int8 under recipe {RECIPE}. Δ: variant - {REFERENCE}, paired by caption, "
    "of texts read exactly and of NED, the edit distance / longer length. Change: against the "
    f"default, paired likewise. Brackets are {100 * LEVEL:.0f} % intervals. Changes are not "
    f"corrected for their number: of changes that are none about {100 * (1 - LEVEL):.0f} % leave "
    "out zero."
)
VERDICTS = (
    f"Verdict: by {EXACT} and {NED} against the margins of conf/margins.yaml, followed by the "
    "scores that decided it and, of a difference, for how many captions each was better and worse "
    f"than {REFERENCE}'s. Tests decide it, which at the edge may say otherwise than an interval. "
    "They are corrected over the two scores of a setting, not over the "
    f"{len(SETTINGS) * len(VARIANTS)} verdicts of this page: one that hangs on few captions may "
    "be chance."
)
LEVELS = (
    f"The reference, {REFERENCE}, by itself at each setting, and its change against the default:"
)


def render(examined: Examined, title: str) -> str:
    """Lay the entries and the reference's levels out as markdown; the same give the same bytes.

    Args:
        examined: of `eval.limits.examine`.
        title: one line: prompts, captions, backend.
    """
    header = ["setting", "variant", "latent error ↓", "change", "PSNR, dB ↑"]
    header += ["Δ texts read exactly ↑", "change", "Δ NED ↓", "change", "verdict"]
    lines = [header, *map(_row, examined.entries)]
    findings = "".join(f"- {line}\n" for line in answer(examined)).rstrip()
    tables = [align(lines).rstrip(), RULE, VERDICTS, LEVELS, _level_table(examined.levels)]
    return "\n\n".join([title, LIMITS, findings, *tables])


def answer(examined: Examined) -> list[str]:
    """Answer the question, then say what else the figures show and what is not measured."""
    entries = examined.entries
    sentences = [*_dependence(entries), *_reference(examined.levels), *_wider(entries)]
    sentences += _latents(entries)
    sentences += [_verdicts([e for e in entries if e.variant == name]) for name in VARIANTS]
    lacking = [_name(e) for e in entries if e.judged is None or not e.distances]
    if lacking:
        sentences.append(f"Not measured: {', '.join(lacking)}; run `{COMMAND}`.")
    return sentences


def _dependence(entries: Sequence[Entry]) -> list[str]:
    """Say which verdicts differ from the default's and whose change shows it."""
    before = _default_kinds(entries)
    compared = _compared(entries)
    if not compared:
        return ["Whether a verdict depends on the setting is not measured."]
    shown = _shown(entries)
    other = [e for e in compared if e.kind != before[e.variant] and e not in shown]
    same = [
        e for e in compared if e.kind == before[e.variant] and not _holds_zero(e.changes[EXACT])
    ]
    condition = f"of {len(compared)} comparisons with the default (another verdict and a change "
    condition += "in texts read exactly that leaves out zero)"
    cases = "; ".join(
        f"{_name(e)} is {e.kind}, {before[e.variant]} at the default ({_exact(e)})" for e in shown
    )
    sentences = [
        f"A verdict depends on the setting in {len(shown)} {condition}: {cases}."
        if shown
        else f"No verdict is shown to depend on the setting, in none {condition}."
    ]
    if other:
        names = ", ".join(f"{_name(e)} ({e.kind})" for e in other)
        also = ", as does that in edit distance"
        moved = ", ".join(_name(e) for e in other if not _holds_zero(e.changes[NED]))
        if moved:
            also = f", though not that in edit distance of {moved}"
        sentences.append(
            "Another verdict than at the default but not shown to differ, since the change in "
            f"texts read exactly holds zero{also}: {names}."
        )
    if same:
        names = ", ".join(f"{_name(e)} ({e.kind}; {_exact(e)})" for e in same)
        sentences.append(f"The same verdict, though the change leaves out zero: {names}.")
    return sentences


def _reference(levels: Sequence[Level]) -> list[str]:
    """Say where the reference itself reads fewer texts than at the default."""
    default = next((level for level in levels if level.setting == DEFAULT), None)
    moved = [level for level in levels if level.exact_change is not None]
    if default is None or not moved:
        return []
    fewer = [level for level in moved if level.exact_change.high < 0.0]
    start = f"{REFERENCE} itself reads {_level(default)} of the texts at the default"
    sentence = f"{start} and is shown to read fewer at no setting."
    if fewer:
        listed = ", ".join(f"{_level(level)} at {level.setting.name}" for level in fewer)
        sentence = f"{start} and fewer, {listed}: a difference there is judged on worse pictures."
    guided = [level for level in moved if level.setting.guidance != DEFAULT.guidance]
    every = [setting for setting in SETTINGS if setting.guidance != DEFAULT.guidance]
    if len(guided) == len(every) and all(level in fewer for level in guided):
        sentence += f" Of the guidances tried it reads most at its own, {DEFAULT.guidance:g}."
    sentence += " Guidance 7 of the mini is not comparable with Ideogram 4's default of 7."
    return [sentence]


def _wider(entries: Sequence[Entry]) -> list[str]:
    """Say which scores have no say here, and which verdicts at the default they change."""
    wide = [e for e in entries if e.wide is not None]
    names = sorted({name for e in wide for name in e.wide.scores} - set(JUDGES))
    if not names:
        return []
    differing = {e.variant: e.wide for e in wide if e.wide.verdict.kind != e.kind}
    told = "no variant has another verdict"
    if differing:
        told = ", ".join(
            f"{name} is {found.verdict.kind} (by {', '.join(found.deciding)})"
            for name, found in differing.items()
        )
    kinds = {name: found.verdict.kind for name, found in differing.items()}
    gone = [_name(e) for e in _shown(entries) if kinds.get(e.variant) == e.kind]
    if gone:
        told += f", so that {', '.join(gone)} has the verdict that verdicts_mini.md gives"
    return [
        f"Judged here by {EXACT} and {NED} only; verdicts_mini.md's verdicts, at the default, "
        f"also by {' and '.join(names)}: there {told}."
    ]


def _latents(entries: Sequence[Entry]) -> list[str]:
    """Say for each setting in which direction the latents of how many variants move."""
    errors = [e for e in entries if e.error_change is not None]
    if not errors:
        return []
    parts: dict[str, list[str]] = {}
    for setting in SETTINGS:
        here = [e.error_change for e in errors if e.setting == setting]
        farther = sum(change.low > 0.0 for change in here)
        nearer = sum(change.high < 0.0 for change in here)
        if farther or nearer:
            word = "farther from" if farther > nearer else "nearer to"
            if farther == nearer:
                word = "as often farther from as nearer to"
            count = f"{max(farther, nearer)} of {len(here)} variants"
            parts.setdefault(word, []).append(f"{setting.name} ({count})")
    if not parts:
        return ["No variant's latents are moved against the default."]
    told = "; ".join(f"{word} {REFERENCE}'s at {', '.join(at)}" for word, at in parts.items())
    return [f"Latents lie, against the default, {told}."]


def _verdicts(entries: Sequence[Entry]) -> str:
    """Say at which settings a variant has which verdict."""
    where: dict[str, list[str]] = {}
    for entry in entries:
        if entry.kind is not None:
            where.setdefault(entry.kind, []).append(entry.setting.name)
    name = entries[0].variant
    if not where:
        return f"{name}: no setting is measured."
    seen = sum(map(len, where.values()))
    if len(where) == 1:
        (kind,) = where
        return f"{name}: {kind} at {seen} of {len(SETTINGS)} settings, the same at all measured."
    parts = [f"{kind} at {', '.join(names)}" for kind, names in where.items()]
    return f"{name}: {'; '.join(parts)}."


def _compared(entries: Sequence[Entry]) -> list[Entry]:
    """Return those that have a verdict here and at the default."""
    before = _default_kinds(entries)
    return [e for e in entries if e.kind and before[e.variant] and EXACT in e.changes]


def _shown(entries: Sequence[Entry]) -> list[Entry]:
    """Return those whose verdict is shown to depend on the setting (see the module)."""
    before = _default_kinds(entries)
    other = [e for e in _compared(entries) if e.kind != before[e.variant]]
    return [e for e in other if not _holds_zero(e.changes[EXACT])]


def _default_kinds(entries: Sequence[Entry]) -> dict[str, str | None]:
    return {e.variant: e.kind for e in entries if e.setting == DEFAULT}


def _row(entry: Entry) -> list[str]:
    scores = {} if entry.judged is None else entry.judged.scores
    deltas = {name: scores[name].delta if name in scores else None for name in JUDGES}
    cells = [entry.setting.name, entry.variant]
    cells.append(_text(entry.distances.get("latent_error"), ".3g"))
    cells.append(_changed(entry, entry.error_change, "+.3g"))
    cells.append(_text(entry.distances.get("psnr"), ".1f"))
    for name in JUDGES:
        cells.append(_text(deltas[name], "+.3f"))
        cells.append(_changed(entry, entry.changes.get(name), "+.3f"))
    return [*cells, ABSENT if entry.judged is None else _decided(entry.judged)]


def _decided(judged: Judged) -> str:
    """Write a verdict and what it hangs on: "better (ocr_ned: 13 captions better, 5 worse)"."""
    kind = judged.verdict.kind
    if kind == EQUIVALENT:  # always by all of them
        return kind
    if kind == UNDECIDED:
        return f"{kind} ({', '.join(judged.deciding)})"
    counts = (
        "{}: {} captions better, {} worse".format(name, *judged.captions[name])
        for name in judged.deciding
    )
    return f"{kind} ({'; '.join(counts)})"


def _level_table(levels: Sequence[Level]) -> str:
    found = {level.setting: level for level in levels}
    lines = [["setting", "texts read exactly ↑", "change", "NED ↓"]]
    for setting in SETTINGS:
        level = found.get(setting)
        cells = [ABSENT] * 3
        if level is not None:
            change = "" if setting == DEFAULT else _text(level.exact_change, "+.3f")
            cells = [_level(level), change, format_interval(level.ned, ".3f")]
        lines.append([setting.name, *cells])
    return align(lines)


def _level(level: Level) -> str:
    return format_interval(level.exact, ".3f")


def _name(entry: Entry) -> str:
    return f"{entry.variant} at {entry.setting.name}"


def _exact(entry: Entry) -> str:
    return f"change {format_interval(entry.changes[EXACT], '+.3f')}"


def _holds_zero(interval: Interval) -> bool:
    return interval.low <= 0.0 <= interval.high


def _changed(entry: Entry, interval: Interval | None, spec: str) -> str:
    return "" if entry.setting == DEFAULT else _text(interval, spec)


def _text(interval: Interval | None, spec: str) -> str:
    return ABSENT if interval is None else format_interval(interval, spec)
