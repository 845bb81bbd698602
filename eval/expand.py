"""From a short idea to a caption: what every expander is, and how its answers are kept.

Four expanders share one interface: `template` (eval/expand_template.py: no model, the same caption
on every machine), `poster` (eval/expand_poster.py: the same in the words of the bundled mini),
`endpoint` (eval/expand_endpoint.py: any OpenAI-compatible server) and `enhancer`
(eval/expand_enhancer.py: the one that diffusers ships, where its weights are). Models
answer differently every time, so an answer is kept under the hash of what was asked and who
answered: a prompt set made twice is the same, and an interrupted one goes on without paying again.
"""

import json
from pathlib import Path
from typing import Any, Protocol

from dit8.eval.caption_check import deviations
from dit8.eval.captions import Text, canonical, parse
from dit8.eval.quotes import quoted
from dit8.quant.errors import UserError
from dit8.quant.files import content_key, write_atomically


class Expander(Protocol):
    """Describe what an expander is.

    `obstacle` says in one sentence why it cannot run here and how to get what is missing, or
    None; it loads and asks nothing. `identity` is what a caption depends on besides the idea, as
    JSON and without secrets. `expand` returns a caption in its canonical spelling, `remarks` what
    of the idea that caption does not show, a phrase each.
    """

    name: str

    def obstacle(self) -> str | None: ...

    def identity(self) -> dict[str, Any]: ...

    def remarks(self, idea: str) -> tuple[str, ...]: ...

    def expand(self, idea: str) -> str: ...


def expand(expander: Expander, idea: str, cache: Path | None = None) -> str:
    """Expand an idea, or return what the same expander made of it before.

    Args:
        expander: asked only when the cache holds nothing.
        idea: a sentence; what it puts in quotes is to be lettered.
        cache: folder of kept answers, made when missing; None keeps nothing.

    Returns:
        a canonical caption that letters every quoted text of the idea.

    Raises:
        UserError: an empty idea, an expander that cannot run or gives no valid caption, a
            damaged file in the cache.
    """
    idea = " ".join(idea.split())
    if not idea:
        raise UserError("expand: the idea must say something, got an empty text; write a sentence")
    if obstacle := expander.obstacle():
        raise UserError(f"expander {expander.name} is {obstacle}")
    if cache is None:
        return expander.expand(idea)
    asked = {"idea": idea, "expander": expander.name, "identity": expander.identity()}
    path = cache / f"{content_key(asked)}.json"
    if path.exists():
        return _kept(path, asked)
    caption = expander.expand(idea)
    text = json.dumps(asked | {"caption": caption}, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return caption


def review(answer: str, idea: str) -> tuple[str | None, list[str]]:
    """Judge what a model answered.

    Spelling is forgiven and repaired; content is not. Beyond the schema an answer must have an
    element, and a text element for every text that the idea quotes, white space and case aside.

    Returns:
        the canonical caption and no problems, or None and what is wrong, in sentences for the
        model that is to mend it.
    """
    try:
        caption = parse(answer)
    except UserError:
        return None, [str(deviation) for deviation in deviations(answer)]
    problems = []
    elements = caption.compositional_deconstruction.elements
    lettered = [_squeezed(element.text) for element in elements if isinstance(element, Text)]
    if not elements:
        problems.append("compositional_deconstruction.elements: must have at least one element")
    for text in quoted(idea):
        if not any(_squeezed(text) in letters for letters in lettered):
            problems.append(f'the idea quotes "{text}", which no text element has')
    return (None, problems) if problems else (canonical(caption), [])


def _kept(path: Path, asked: dict[str, Any]) -> str:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        caption = canonical(parse(record.pop("caption"), str(path)))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"expand: {path} must hold a caption that was kept, got {type(error).__name__}: "
            f"{error}; delete it and ask again"
        ) from error
    if record != asked:  # 48 bits of a hash name the file
        raise UserError(
            f"expand: {path} must answer the idea {asked['idea']!r}, got one for "
            f"{record.get('idea')!r}; delete it and ask again"
        )
    return caption


def _squeezed(text: str) -> str:
    return "".join(text.split()).casefold()
