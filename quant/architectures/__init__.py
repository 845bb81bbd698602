"""The models that dit8 knows, found by the class names that diffusers writes into its files.

A model is a file like `ideogram4.py` or `flux.py` and one line in each table here.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from dit8.quant.architectures import flux, ideogram4
from dit8.quant.errors import UserError
from dit8.quant.types import Architecture

# class of the transformer -> its description, from its configuration
ARCHITECTURES: dict[str, Callable[[Mapping[str, Any]], Architecture]] = {
    "Ideogram4Transformer2DModel": lambda config: ideogram4.architecture(config["num_layers"]),
    "FluxTransformer2DModel": lambda config: flux.architecture(
        config["num_layers"],
        config["num_single_layers"],
        guidance=config.get("guidance_embeds", False),
    ),
}
# class of the pipeline -> branch prefix in files -> attribute and subfolder
BRANCHES: dict[str, dict[str, str]] = {
    "Ideogram4Pipeline": ideogram4.BRANCHES,
    "FluxPipeline": flux.BRANCHES,
}


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Describe the transformer whose config.json this is.

    Raises:
        UserError: a class that is not known, or a count of blocks that is missing or no count.
    """
    name = config.get("_class_name")
    if name not in ARCHITECTURES:
        raise UserError(
            f"architecture_of: _class_name must be one of {', '.join(ARCHITECTURES)}, got "
            f"{name!r}; pass such a transformer's config.json"
        )
    try:
        return ARCHITECTURES[name](config)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"architecture_of: the config of {name} must have the number of its blocks, got "
            f"{type(error).__name__}: {error}; restore config.json"
        ) from error


def architecture_of_module(module: nn.Module) -> Architecture:
    """Describe a loaded transformer, whose `.config` lacks its own class name.

    Raises:
        UserError: as `architecture_of`.
    """
    return architecture_of({**getattr(module, "config", {}), "_class_name": type(module).__name__})


def branches_of(pipeline_class_name: str) -> dict[str, str]:
    """Return branch prefix -> attribute of a pipeline's transformers.

    Args:
        pipeline_class_name: as in model_index.json.

    Raises:
        UserError: a pipeline that is not known.
    """
    if pipeline_class_name not in BRANCHES:
        raise UserError(
            f"branches_of: the pipeline must be one of {', '.join(BRANCHES)}, got "
            f"{pipeline_class_name!r}; pass the folder of such a pipeline"
        )
    return dict(BRANCHES[pipeline_class_name])
