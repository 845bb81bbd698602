"""The same prompt as JSON or as plain sentences: what structured captions are worth.

The paper reports exact matches of 55 % with JSON captions and close to none with raw strings. To
ask the same of a model here, both arms must ask for the same picture from the same noise: id and
seed stay, so the noise does, and the sentences name every text that the caption names. What the
sentences lose is layout, colours and style, which is the point.
"""

import json
from dataclasses import replace

from dit8.eval.quotes import quoted
from dit8.models.prompts import caption_texts
from dit8.models.types import Prompt
from dit8.quant.errors import UserError

STYLES = ("json", "raw")


def styled(prompt: Prompt, style: str) -> Prompt:
    """Return the prompt as a model is to see it.

    Args:
        prompt: with a valid caption.
        style: "json" leaves it as it is; "raw" puts plain sentences where the caption was: the
            idea, else the high_level_description, else the objects and the background, and
            then, in quotes, the texts that these do not hold already.

    Returns:
        the prompt with another caption; id, seed, texts, idea and category are the same.

    Raises:
        UserError: no such style, or a caption without any words.
    """
    if style not in STYLES:
        raise UserError(f"prompt_style must be one of {', '.join(STYLES)}, got {style!r}")
    return prompt if style == "json" else replace(prompt, caption=_sentences(prompt))


def _sentences(prompt: Prompt) -> str:
    caption = json.loads(prompt.caption)
    base = _one_line(prompt.idea or caption.get("high_level_description") or _contents(caption))
    named = quoted(base)
    texts = dict.fromkeys(_one_line(text) for text in caption_texts(prompt.caption))
    unnamed = [f'"{text}"' for text in texts if text and not any(text in each for each in named)]
    parts = [_sentence(base)] if base else []
    if unnamed:
        parts.append(f"The text reads {_listed(unnamed)}.")
    if not parts:
        raise UserError(
            f"prompt {prompt.id}: the caption says nothing that a sentence could say, expected a "
            "description, a background or a text; give the prompt an idea"
        )
    return " ".join(parts)


def _contents(caption: dict) -> str:
    content = caption["compositional_deconstruction"]
    things = [e.get("desc", "") for e in content["elements"] if e["type"] == "obj"]
    parts = [_one_line(thing) for thing in (*things, content["background"])]
    return ", ".join(part.rstrip(".") for part in parts if part)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?", "…", "。")) else f"{text}."


def _listed(items: list[str]) -> str:
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last
