"""The caption schema as a JSON Schema that constrains what a model may answer.

Derived from the models of eval/captions.py, in the subset that constrained decoders share: every
key is required, no object has others, unions are `anyOf`, nothing may be null. Boxes, palettes and
a style, optional in a caption, are therefore always asked for: a layout is what an expander is
there to add. That ymin lies below ymax no JSON Schema can say; the answer is checked afterwards.
"""

from typing import Any

from dit8.eval.captions import Caption

DROPPED = ("title", "description", "default", "discriminator")  # annotations and pydantic's own
NULL = {"type": "null"}


def caption_schema() -> dict[str, Any]:
    """Return the schema of a caption with every key that it may have."""
    return _strict(Caption.model_json_schema())


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    strict: dict[str, Any] = {}
    for key, value in node.items():
        if key in ("properties", "$defs"):  # below these, keys are names and none is dropped
            strict[key] = {name: _strict(item) for name, item in value.items()}
        elif key in ("anyOf", "oneOf"):
            strict["anyOf"] = _strict([item for item in value if item != NULL])
        elif key not in DROPPED:
            strict[key] = _strict(value)
    if "properties" in strict:
        strict["required"] = list(strict["properties"])
    if list(strict) == ["anyOf"] and len(strict["anyOf"]) == 1:
        return strict["anyOf"][0]
    return strict
