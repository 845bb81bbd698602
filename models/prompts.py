"""Read prompt sets (jsonl) and single captions; check them lightly, keep them minified."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dit8.conf.paths import from_root
from dit8.models.types import Prompt
from dit8.quant.errors import UserError

ROW_KEYS = {"id", "caption", "texts", "seed"}
OPTIONAL_KEYS = ("idea", "category")
ID = re.compile(r"\w[\w.-]*")  # becomes a file name: no separators, not hidden
ELEMENT_TYPES = ("obj", "text")


def prompt_file(name: str) -> Path:
    """Find a prompt set by the name of its file in prompts/, or by its path."""
    known = from_root("prompts") / f"{name}.jsonl"
    path = known if known.exists() else Path(name)
    if not path.exists():
        sets = ", ".join(sorted(p.stem for p in from_root("prompts").glob("*.jsonl")))
        raise UserError(f"prompts must be one of {sets}, or a path to a jsonl file, got {name!r}")
    return path


def load_prompts(path: Path | str) -> list[Prompt]:
    """Load a prompt set: one JSON object per line.

    Keys are id, caption, texts and seed, and perhaps idea and category. Blank lines are skipped.
    Every expected text must occur, white space aside, in a text element of its caption: a picture
    cannot be blamed for a text it was not asked for.

    Args:
        path: UTF-8 jsonl file; `caption` is a JSON object or a string that holds one.

    Returns:
        The prompts in file order, captions minified.

    Raises:
        UserError: no such file, no prompts, or a bad line; names the file and the line.
    """
    path = Path(path)
    try:
        # str.splitlines would also cut at the separators that JSON leaves literal in a string
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"prompts: cannot read {path} ({error}), expected a UTF-8 jsonl file; check the name"
        ) from error
    prompts: dict[str, Prompt] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        prompt = _prompt(line, where)
        if prompt.id in prompts:
            raise UserError(
                f"{where}: prompt id {prompt.id!r} is used twice, expected unique ids; rename one"
            )
        prompts[prompt.id] = prompt
    if not prompts:
        raise UserError(f"prompts: {path} holds no prompts, expected one JSON object per line")
    return list(prompts.values())


def parse_caption(text: str, where: str = "caption") -> str:
    """Check a caption and return it as minified JSON, non-ASCII literal, key order kept.

    Checked are the keys without which the picture has no content: an object
    `compositional_deconstruction` with a string `background` and a list `elements`, whose
    entries are objects of type "obj" or "text" (with a string `text`). Boxes, colours, key
    order and token count are not checked here.

    Args:
        text: what a user typed or a file holds.
        where: prefix of the error message.

    Raises:
        UserError: not JSON, not an object, or a required key is missing.
    """
    try:
        caption = json.loads(text, parse_constant=_reject_constant)
    # deep nesting ends in RecursionError, not in ValueError
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: the caption is not valid JSON ({error}), got {_excerpt(text)}; expected an"
            " object with compositional_deconstruction, raw prose draws no readable text"
        ) from error
    _check_caption(caption, where)
    return json.dumps(caption, ensure_ascii=False, separators=(",", ":"))


def caption_texts(caption: str) -> tuple[str, ...]:
    """Return the texts a valid caption asks for, in the order of its elements."""
    elements = json.loads(caption)["compositional_deconstruction"]["elements"]
    return tuple(element["text"] for element in elements if element["type"] == "text")


def first_prompts(prompts: Sequence[Prompt], n: int | None) -> list[Prompt]:
    """Return the first `n` prompts (all when n is None); refuse more than there are."""
    if n is None:
        return list(prompts)
    if not 1 <= n <= len(prompts):
        raise UserError(f"prompts: n must be between 1 and {len(prompts)}, got {n}")
    return list(prompts[:n])


def _prompt(line: str, where: str) -> Prompt:
    try:
        row = json.loads(line, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: the line is not valid JSON ({error}), expected one object per line"
        ) from error
    if not isinstance(row, dict) or set(row) - set(OPTIONAL_KEYS) != ROW_KEYS:
        got = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise UserError(
            f"{where}: got {got}, expected an object with keys {sorted(ROW_KEYS)} and perhaps "
            f"{' and '.join(OPTIONAL_KEYS)}"
        )
    if not isinstance(row["id"], str) or not ID.fullmatch(row["id"]):
        raise UserError(
            f"{where}: id must be letters, digits, '.', '_' or '-', got {row['id']!r}; "
            "pictures are named after it"
        )
    # bool is an int in Python; 2**63 is where torch.Generator.manual_seed ends
    if type(row["seed"]) is not int or not 0 <= row["seed"] < 2**63:
        raise UserError(f"{where}: seed must be an integer in [0, 2**63), got {row['seed']!r}")
    raw = row["caption"]
    caption = parse_caption(raw if isinstance(raw, str) else json.dumps(raw), where)
    texts = _expected_texts(row["texts"], caption, where)
    about = {key: _optional(row, key, where) for key in OPTIONAL_KEYS}
    return Prompt(row["id"], caption, texts, row["seed"], **about)


def _optional(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key, "")
    if not isinstance(value, str) or (key in row and not value.strip()):
        raise UserError(
            f"{where}: {key} must be a non-empty string, got {value!r}; leave the key out where "
            "there is none"
        )
    return value


def _expected_texts(texts: Any, caption: str, where: str) -> tuple[str, ...]:
    if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
        raise UserError(f"{where}: texts must be a list of non-empty strings, got {texts!r}")
    asked = [_without_spaces(text) for text in caption_texts(caption)]
    for text in texts:
        if not any(_without_spaces(text) in candidate for candidate in asked):
            raise UserError(
                f"{where}: text {text!r} is expected but no text element of the caption asks for"
                f" it, which has {list(caption_texts(caption))}; correct one of the two"
            )
    return tuple(texts)


def _check_caption(caption: Any, where: str) -> None:
    _require(isinstance(caption, dict), where, "the caption", caption, "a JSON object")
    name = "compositional_deconstruction"
    content = caption.get(name)
    _require(isinstance(content, dict), where, name, content, "an object")
    background, elements = content.get("background"), content.get("elements")
    _require(isinstance(background, str), where, f"{name}.background", background, "a string")
    _require(isinstance(elements, list), where, f"{name}.elements", elements, "a list")
    for index, element in enumerate(elements):
        label = f"{name}.elements[{index}]"
        _require(isinstance(element, dict), where, label, element, "an object")
        kind = element.get("type")
        _require(kind in ELEMENT_TYPES, where, f"{label}.type", kind, "'obj' or 'text'")
        if kind == "text":
            text = element.get("text")
            _require(isinstance(text, str), where, f"{label}.text", text, "a string")


def _require(holds: bool, where: str, name: str, got: Any, expected: str) -> None:
    if not holds:
        shown = "nothing" if got is None else _excerpt(json.dumps(got, ensure_ascii=False))
        raise UserError(f"{where}: {name} must be {expected}, got {shown}; correct the caption")


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _without_spaces(text: str) -> str:
    return "".join(text.split())


def _excerpt(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else text[:limit] + "...")
