"""Expand ideas with a language model behind an OpenAI-compatible endpoint.

The decoder is constrained to the schema, and the answer is checked all the same: not every server
honours `response_format`, and no JSON Schema knows that a box must not be upside down. An answer
that fails is sent back with the list of its deviations; models mend what they are shown.
"""

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dit8.eval.caption_schema import caption_schema
from dit8.eval.chat_endpoint import KEY, MODEL, URL, Endpoint, ask, endpoint_from
from dit8.eval.expand import review
from dit8.quant.errors import UserError
from dit8.quant.files import content_key

ROUNDS = 3  # the first answer and two mended ones
SHOWN = 20  # deviations shown to the model at once

INSTRUCTION = """\
You write captions for an image model that reads JSON. From one short idea, describe the finished \
picture so exactly that two painters would make nearly the same one. Answer with one JSON object \
and nothing around it.

Keys, always in this order:
1. high_level_description: one sentence with the subject and the kind of picture.
2. style_description: aesthetics, lighting, then for a photograph photo (camera, lens, distance) \
and medium; for everything else medium and art_style; then color_palette, up to 16 colours as \
#RRGGBB in capitals.
3. compositional_deconstruction: background (the setting or the ground of a design, without the \
things in elements), then elements, the most important first.

An element is {"type":"obj","bbox","desc","color_palette"} for a thing, or \
{"type":"text","bbox","text","desc","color_palette"} for lettering. bbox is [ymin, xmin, ymax, \
xmax], whole numbers from 0 at the top left to 1000 at the bottom right, ymin below ymax and xmin \
below xmax. An element's color_palette has up to 5 colours.

Whatever the idea puts in quotes is lettered: give each quoted text its own text element, in \
`text` letter by letter as it was quoted, in `desc` its typeface, weight, colour and place. Letter \
nothing that was not asked for unless the subject cannot be without it. A line break in `text` is \
a newline. Boxes of different texts do not overlap.

Be concrete: one colour, one number, one material instead of alternatives. Describe what is to be \
seen and leave out moods. Keep letters of other scripts as they are.\
"""


@dataclass(frozen=True)
class EndpointExpander:
    """Ask a model, check its answer, let it mend what is wrong.

    Args:
        endpoint: None where the environment names none.
    """

    endpoint: Endpoint | None
    name: str = "endpoint"

    def obstacle(self) -> str | None:
        if self.endpoint is None:
            return (
                f"not available: no server is named; set {URL} (such as http://localhost:8000/v1), "
                f"{MODEL} and, where the server wants one, {KEY}"
            )
        return None

    def remarks(self, idea: str) -> tuple[str, ...]:
        return ()

    def identity(self) -> dict[str, Any]:
        assert self.endpoint is not None, "identity comes after obstacle"
        return {
            "url": self.endpoint.url,
            "model": self.endpoint.model,
            "asked_with": content_key([INSTRUCTION, _response_format(), ROUNDS]),
        }

    def expand(self, idea: str) -> str:
        """Return a canonical caption.

        Raises:
            UserError: the endpoint fails, or no round gives a valid caption.
        """
        assert self.endpoint is not None, "expand comes after obstacle"
        messages = [
            {"role": "system", "content": INSTRUCTION},
            {"role": "user", "content": f"Idea: {idea}"},
        ]
        problems: list[str] = []
        for _ in range(ROUNDS):
            answer = ask(self.endpoint, messages, _response_format())
            caption, problems = review(answer, idea)
            if caption is not None:
                return caption
            messages += [
                {"role": "assistant", "content": answer},
                {"role": "user", "content": _complaint(problems)},
            ]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(
            f"endpoint {self.endpoint.url} (model {self.endpoint.model}) gave no valid caption in "
            f"{ROUNDS} rounds for the idea {idea!r}, the last one: {problems[0]}{more}; try again, "
            "or a model that follows schemas"
        )


def endpoint_expander(environment: Mapping[str, str] = os.environ) -> EndpointExpander:
    """Make the expander from DIT8_EXPAND_URL, DIT8_EXPAND_MODEL and DIT8_EXPAND_KEY."""
    return EndpointExpander(endpoint_from(environment))


@functools.cache
def _response_format() -> dict[str, Any]:
    schema = {"name": "caption", "strict": True, "schema": caption_schema()}
    return {"type": "json_schema", "json_schema": schema}


def _complaint(problems: list[str]) -> str:
    listed = "\n".join(f"- {problem}" for problem in problems[:SHOWN])
    return f"This is wrong with it:\n{listed}\nAnswer with the whole corrected JSON object."
