"""eval/caption_schema.py: what constrains a model's answer."""

import json

from dit8.eval.caption_schema import caption_schema
from dit8.eval.captions import COLOR_PATTERN

SCHEMA = caption_schema()


def objects(node):
    if isinstance(node, dict):
        if node.get("type") == "object":
            yield node
        for value in node.values():
            yield from objects(value)
    elif isinstance(node, list):
        for value in node:
            yield from objects(value)


def test_every_object_requires_all_of_its_keys_in_order_and_allows_no_others():
    found = list(objects(SCHEMA))
    assert len(found) == 6  # caption, two styles, composition, obj, text
    for node in found:
        assert node["required"] == list(node["properties"])
        assert node["additionalProperties"] is False
    assert SCHEMA["required"] == [
        "high_level_description", "style_description", "compositional_deconstruction"
    ]  # fmt: skip
    assert SCHEMA["$defs"]["Text"]["required"] == ["type", "bbox", "text", "desc", "color_palette"]


def keys(node):
    if isinstance(node, dict):
        for key, value in node.items():
            yield key
            yield from keys(value)
    elif isinstance(node, list):
        for value in node:
            yield from keys(value)


def test_only_what_constrained_decoders_share_is_left():
    dropped = {"oneOf", "discriminator", "default", "title", "description", "prefixItems"}
    assert not dropped & set(keys(SCHEMA))
    assert '"null"' not in json.dumps(SCHEMA)


def test_the_limits_are_there():
    properties = SCHEMA["$defs"]["Obj"]["properties"]
    assert properties["bbox"] == {
        "type": "array",
        "items": {"type": "integer", "minimum": 0, "maximum": 1000},
        "minItems": 4,
        "maxItems": 4,
    }
    colors = {"type": "string", "pattern": COLOR_PATTERN}
    assert properties["color_palette"] == {"type": "array", "items": colors, "maxItems": 5}
    assert SCHEMA["$defs"]["ArtStyle"]["properties"]["color_palette"]["maxItems"] == 16
    assert SCHEMA["$defs"]["Obj"]["properties"]["type"]["const"] == "obj"
    elements = SCHEMA["$defs"]["Composition"]["properties"]["elements"]["items"]
    assert elements == {"anyOf": [{"$ref": "#/$defs/Obj"}, {"$ref": "#/$defs/Text"}]}
    styles = [{"$ref": "#/$defs/PhotoStyle"}, {"$ref": "#/$defs/ArtStyle"}]
    assert SCHEMA["properties"]["style_description"] == {"anyOf": styles}
