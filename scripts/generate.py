"""Draw one picture from a caption.

    python scripts/generate.py '{"compositional_deconstruction":{"background":"flat teal",
      "elements":[{"type":"text","bbox":[375,150,600,850],"text":"QUANT8","desc":"white sans"}]}}'
    python scripts/generate.py caption.json variant=bf16 steps=12 seed=3 out=poster.png
    python scripts/generate.py caption.json model=ideogram4 dtype=bfloat16 hardware=cuda_24gb
      engine=dit8

The caption is JSON, or a file that holds it; everything after it overrides conf/generate.yaml.
Variants: those of conf/variant; engines: stock, dit8. Prints one JSON document last.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json
import time

import torch

from conf.schema import GenerateConfig
from eval.prompts import caption_texts, parse_caption
from eval.records import Prompt
from models.generate import check_length, denoise
from models.pipeline import resolve_device
from models.sampling import check_engine, open_engine
from models.variants import Variant, build_variant
from quant.atomic import write_atomically
from quant.errors import UserError
from quant.formats.table import get_format
from scripts.cli import compose, one_sentence
from scripts.conversion import find_checkpoint
from scripts.stages import make_sampler, open_model


def read_caption(argument: str) -> str:
    """Take the argument as JSON when it looks like it, else as the name of a file."""
    if argument.lstrip().startswith("{"):
        return parse_caption(argument)
    path = Path(argument)
    if not path.is_file():
        raise UserError(
            f"the caption must be a JSON object or the name of a file with one, got {argument!r}; "
            "see the examples at the top of scripts/generate.py"
        )
    return parse_caption(path.read_text(encoding="utf-8"), where=argument)


def generate(caption: str, config: GenerateConfig) -> dict:
    """Draw the picture, write it, and describe it."""
    staged = config.hardware.staged
    check_engine(config.engine, staged=staged)
    sampler = make_sampler(config.sampler, config.model, config.steps, config.guidance, config.size)
    variant = Variant(**vars(config.variant))
    device = resolve_device(config.hardware.device)
    backend = variant.backend(device)
    model = open_model(config.model)
    checkpoint = None
    if variant.needs_checkpoint:
        checkpoint = find_checkpoint(config, model, get_format(variant.format))
    pipeline = build_variant(
        variant,
        model.folder,
        checkpoint,
        model_key=model.key,
        dtype=config.dtype,
        companion_dtype=config.model.companion_dtype,
        device=torch.device("cpu") if staged else device,
    )
    engine = open_engine(config.engine, pipeline, device, staged=staged)
    prompt = Prompt("caption", caption, caption_texts(caption), config.seed)
    check_length(pipeline, [prompt], sampler.max_sequence_length)
    start = time.monotonic()
    (image,), _ = denoise(pipeline, [prompt], sampler, engine=engine)
    seconds = time.monotonic() - start
    write_atomically(config.out, lambda path: image.save(path, format="PNG"))
    return {
        "image": config.out,
        "variant": variant.name,
        "engine": config.engine,
        "backend": backend,
        "seconds": round(seconds, 3),
    }


def main() -> None:
    with one_sentence("generate"):
        if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
            print(__doc__)
            sys.exit(0 if len(sys.argv) > 1 else 2)
        caption = read_caption(sys.argv[1])
        print(json.dumps(generate(caption, compose("generate", sys.argv[2:]))))


if __name__ == "__main__":
    main()
