"""Hand a user's settings to the scorers: which weights, which text, how many processes.

A scorer is a frozen dataclass, and a setting replaces one of its fields. Settings are checked
before the first picture is drawn, because a mistyped one would otherwise show hours later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from dit8.eval.score_text import MODES
from dit8.eval.scorers import Scorer, get_scorer
from dit8.quant.errors import UserError

SETTABLE = ("backbone", "checkpoint", "sha256", "score_text", "device")  # fields of some scorers


@dataclass(frozen=True)
class Settings:
    """How to score.

    Args:
        readers: processes that read text.
        score_text: what text every text-image score compares a picture with, a key of
            eval.score_text.MODES; None: each scorer's own.
        options: scorer -> field -> value, for the fields in SETTABLE.
        overwrite: score again and replace rows that differ.
    """

    readers: int = 1
    score_text: str | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    overwrite: bool = False


DEFAULTS = Settings()


def configure(name: str, settings: Settings) -> Scorer:
    """Return a scorer with the user's settings.

    Raises:
        UserError: no such scorer, or a setting that it does not have.
    """
    scorer = get_scorer(name)
    own = {entry.name for entry in fields(scorer)}
    change: dict[str, Any] = {}
    if "workers" in own:
        change["workers"] = settings.readers
    if "score_text" in own and settings.score_text is not None:
        change["score_text"] = settings.score_text
    possible = [key for key in SETTABLE if key in own]
    for key, value in settings.options.get(name, {}).items():
        if key not in possible:
            raise UserError(
                f"scorer {name} has no setting {key!r}, expected one of "
                f"{', '.join(possible) or '(none)'}; correct or drop it"
            )
        change[key] = value
    _check_text(change.get("score_text"))
    return replace(scorer, **change)


def configure_all(names: Sequence[str], settings: Settings) -> list[Scorer]:
    """Return scorers with the user's settings; also refuses settings that nobody would use.

    Raises:
        UserError: see `configure`, or settings of a scorer that is not named.
    """
    if unused := sorted(settings.options.keys() - set(names)):
        raise UserError(
            f"settings are given for scorer {unused[0]}, expected one of {', '.join(names)}; add "
            "it to the scorers or drop them"
        )
    _check_text(settings.score_text)
    return [configure(name, settings) for name in names]


def parse_options(assignments: Sequence[str]) -> dict[str, dict[str, str]]:
    """Turn "clipscore.backbone=ViT-L-14" and the like into options.

    Raises:
        UserError: not of that form.
    """
    options: dict[str, dict[str, str]] = {}
    for text in assignments:
        where, equals, value = text.partition("=")
        name, dot, key = where.partition(".")
        if not (equals and dot and name and key and value):
            raise UserError(
                f"a scorer's setting must look like clipscore.backbone=ViT-L-14, got {text!r}"
            )
        options.setdefault(name, {})[key] = value
    return options


def _check_text(mode: str | None) -> None:
    if mode is not None and mode not in MODES:
        raise UserError(
            f"score_text must be one of {', '.join(MODES)}, got {mode!r}; correct the name"
        )
