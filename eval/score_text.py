"""What text a text-image score compares a picture with: it is part of the score's definition.

CLIP's text tower reads 77 tokens. A JSON caption is several times as long and begins with key
names, so a score on raw JSON mostly measures boilerplate. Hence four modes, of which the short
idea that the caption was expanded from is the default:

| mode                   | text                                                            |
|------------------------|-----------------------------------------------------------------|
| idea                   | the prompt's short idea                                         |
| high_level_description | the caption's own summary                                       |
| caption_json           | the caption as it is given to the generator, cut by the tower   |
| content                | the caption's background and elements in words, one clause each |

`content` is what clip-mini is trained on (`models/clip_mini.py`): no brackets and no key names,
and a box becomes the row and the column, of ten each, in which its centre lies.
"""

import json
from typing import Any

from dit8.models.types import Sample
from dit8.quant.errors import UserError

CELLS = 10  # rows and columns of the grid that places are named by
BOX_UNITS = 1000  # a bbox is in thousandths of the side


def score_text(sample: Sample, mode: str) -> str:
    """Return the text that a picture is compared with.

    Args:
        sample: with the caption and the idea of its prompt.
        mode: a key of MODES.

    Raises:
        UserError: no such mode, or the prompt lacks what the mode asks for.
    """
    if mode not in MODES:
        raise UserError(
            f"score_text must be one of {', '.join(MODES)}, got {mode!r}; correct the name"
        )
    text = MODES[mode](sample)
    if not text.strip():
        others = ", ".join(name for name in MODES if name != mode)
        raise UserError(
            f"score_text: prompt {sample.prompt.id} has no {mode}, expected some text to compare "
            f"its picture with; add it to the prompt set or choose score_text={others}"
        )
    return text


def content_in_words(caption: dict[str, Any]) -> str:
    """Describe a schema-valid caption in words, elements in their order.

    "yellow pattern; word RIVER, purple mono, row 1, column 2; purple triangle, row 2, column 9"
    """
    content = caption["compositional_deconstruction"]
    return "; ".join([content["background"], *map(_clause, content["elements"])])


def _clause(element: dict[str, Any]) -> str:
    parts = [f"word {element['text']}"] if element["type"] == "text" else []
    if element.get("desc"):
        parts.append(element["desc"])
    if "bbox" in element:
        top, left, bottom, right = element["bbox"]
        parts += [f"row {_cell(top, bottom)}", f"column {_cell(left, right)}"]
    return ", ".join(parts)


def _cell(low: int, high: int) -> int:
    """Return the tenth, 0 to 9, in which the middle of [low, high] lies."""
    return min((low + high) * CELLS // (2 * BOX_UNITS), CELLS - 1)


def _caption(sample: Sample) -> dict[str, Any]:
    try:
        caption = json.loads(sample.caption or "{}")
    except ValueError as error:
        raise UserError(
            f"score_text: the caption of prompt {sample.prompt.id} is not valid JSON ({error}), "
            "expected a caption object; correct the prompt set"
        ) from error
    return caption if isinstance(caption, dict) else {}


def _content(sample: Sample) -> str:
    caption = _caption(sample)
    if "compositional_deconstruction" not in caption:
        return ""
    try:
        return content_in_words(caption)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"score_text: the caption of prompt {sample.prompt.id} does not follow the schema "
            f"({type(error).__name__}: {error}), expected background and elements; correct it"
        ) from error


MODES = {
    "idea": lambda sample: sample.prompt.idea,
    "high_level_description": lambda sample: _caption(sample).get("high_level_description") or "",
    "caption_json": lambda sample: sample.caption,
    "content": _content,
}
