"""The typed configuration has the fields of the checked dataclasses that the packages take."""

from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields

import pytest

from dit8.conf import schema
from dit8.models.pipeline import Variant
from dit8.models.types import Sampler
from dit8.quant.types import Recipe


def defaults(kind: type) -> dict[str, object]:
    """Field -> default, lists as tuples; schema.MISSING for one that must be given."""
    found = {}
    for field in fields(kind):
        made = field.default_factory
        value = field.default if made is NO_DEFAULT else made()
        value = schema.MISSING if value is NO_DEFAULT else value
        found[field.name] = tuple(value) if isinstance(value, list) else value
    return found


@pytest.mark.parametrize(
    ("typed", "checked"),
    [(schema.RecipeConfig, Recipe), (schema.VariantConfig, Variant)],
    ids=["recipe", "variant"],
)
def test_names_order_and_defaults_are_the_packages(typed, checked):
    """They are hashed into run ids and content keys."""
    assert list(defaults(typed).items()) == list(defaults(checked).items())


def test_a_sampler_s_preset_is_a_part_of_it():
    """Guidance, size and length come from the model."""
    preset = defaults(schema.SamplerConfig)
    assert set(preset) < set(defaults(Sampler)) and set(preset.values()) == {schema.MISSING}
