"""Draw one picture from a sentence or a caption.

    python scripts/generate.py "a poster that says HELLO"
    python scripts/generate.py "white letters 'SALE' on red, two yellow circles" seed=3 out=sale.png
    python scripts/generate.py prompts/example.json variant=bf16 steps=12 engine=dit8
    python scripts/generate.py '{"compositional_deconstruction":{"background":"flat teal",
      "elements":[{"type":"text","bbox":[375,150,600,850],"text":"PLANT8","desc":"white sans"}]}}'
    python scripts/generate.py prompts/example.json model=ideogram4 dtype=bfloat16
      hardware=cuda_24gb engine=dit8

First comes a sentence, a JSON caption or a file that holds one; everything after it overrides
conf/generate.yaml. A sentence becomes a caption as the model's `expander` makes it (the bundled
mini draws one or two words, colours and shapes; see scripts/expand.py). The caption is written
beside the picture, as poster.json beside poster.png: drawn again, it gives the same picture.
Variants: those of conf/variant; engines: stock, dit8. Prints one JSON document last.
"""

import contextlib
import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dit8.conf.schema import GenerateConfig
    from dit8.models.artifacts import Model
    from dit8.quant.formats.table import Format

OVERRIDE = re.compile(r"[+~]{0,2}[A-Za-z_][\w.@/]*=\S*")


def read_first(argument: str) -> tuple[str | None, str]:
    """Tell a caption from a sentence.

    Returns:
        (caption, "") for JSON and for a file with it, (None, sentence) for anything else.

    Raises:
        UserError: an override, a file that is missing, JSON that is no caption.
    """
    from dit8.models.prompts import parse_caption
    from dit8.quant.errors import UserError

    if argument.lstrip().startswith("{"):
        return parse_caption(argument), ""
    if OVERRIDE.fullmatch(argument):
        raise UserError(
            f"the caption must come first, got {argument!r}; write generate.py "
            f'"a poster that says HELLO" {argument}'
        )
    path = Path(argument)
    is_name = argument.endswith(".json") or (re.search(r"[/\\]", argument) and " " not in argument)
    if not (is_name or _exists(path)):
        return None, argument
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the caption must be a sentence, a JSON object or a file with one, got {argument!r}, "
            f"which cannot be read ({error}); correct the name"
        ) from error
    return parse_caption(text, where=argument), ""


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a name, or a zero byte in it
        return False


def caption_path(out: str) -> Path:
    """Name the caption's file beside a picture.

    Raises:
        UserError: it would be the picture itself, or replace something else than a caption.
    """
    from dit8.models.prompts import parse_caption
    from dit8.quant.errors import UserError

    path = Path(out).with_suffix(".json")
    if path == Path(out):
        raise UserError(f"out must be the name of a picture, got {out!r}; such as poster.png")
    if path.is_file():
        try:
            parse_caption(path.read_text(encoding="utf-8"))
        except (UserError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path}, where the caption of {out} goes, must be missing or hold a caption, got "
                "something else; choose another out"
            ) from error
    return path


def find_or_build(config: "GenerateConfig", model: "Model", target: "Format") -> Path:
    """Return the full calibration's checkpoint, else one of a quick calibration, made if missing.

    Raises:
        UserError: as `models.artifacts.find_checkpoint`.
    """
    from dit8.models.artifacts import checkpoint_path, find_checkpoint
    from dit8.quant.types import make_recipe

    if (
        config.model.build_missing
        and config.calibration.n is None
        and target.has_recipe
        and make_recipe(config.recipe).needs_stats
        and not checkpoint_path(config, model, target).exists()
    ):
        count = config.quick_calibration
        config = replace(config, calibration=replace(config.calibration, n=count))
        if not checkpoint_path(config, model, target).exists():
            print(
                f"first picture of this variant: calibrating with {count} captions, once; "
                "scripts/quantize.py makes the checkpoint of all, which is taken where it exists",
                file=sys.stderr,
            )
    return find_checkpoint(config, model, target)


def generate(caption: str, config: "GenerateConfig") -> dict:
    """Draw the picture, write it and its caption, and describe it."""
    import torch
    from tqdm import tqdm

    from dit8.conf.paths import shorten
    from dit8.models.artifacts import open_model
    from dit8.models.engine.sampling import check_engine, open_engine
    from dit8.models.generate import check_length, denoise
    from dit8.models.pipeline import Variant, build_variant, load_tokenizer, resolve_device
    from dit8.models.prompts import caption_texts, parse_caption
    from dit8.models.types import Prompt, make_sampler
    from dit8.quant.files import write_atomically, writing
    from dit8.quant.formats.table import get_format

    beside = caption_path(config.out)
    staged = config.hardware.staged
    check_engine(config.engine, staged=staged)
    sampler = make_sampler(config.sampler, config.model, config.steps, config.guidance, config.size)
    variant = Variant(**vars(config.variant))
    device = resolve_device(config.hardware.device)
    backend = variant.backend(device)
    model = open_model(config.model)
    prompt = Prompt("caption", caption, caption_texts(caption), config.seed)
    # before a calibration, which takes longer
    check_length(load_tokenizer(model.folder), [prompt], sampler.max_sequence_length)
    with writing(config.out):  # refused here, not when the picture is done
        Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    checkpoint = None
    if variant.needs_checkpoint:
        checkpoint = find_or_build(config, model, get_format(variant.format))
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
    start = time.monotonic()
    with tqdm(total=sampler.steps, desc="draw", unit="step") as bar:
        (image,), _ = denoise(pipeline, [prompt], sampler, engine=engine, after_step=bar.update)
    seconds = time.monotonic() - start
    # the same caption in a user's own spelling stays as it is
    if not beside.exists() or parse_caption(beside.read_text(encoding="utf-8")) != caption:
        write_atomically(beside, lambda path: path.write_text(f"{caption}\n", encoding="utf-8"))
    write_atomically(config.out, lambda path: image.save(path, format="PNG"))
    return {
        "image": config.out,
        "caption_file": str(beside),
        "caption": json.loads(caption),
        "variant": variant.name,
        "checkpoint": None if checkpoint is None else shorten(checkpoint),
        "engine": config.engine,
        "backend": backend,
        "seconds": round(seconds, 3),
    }


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        with contextlib.suppress(BrokenPipeError):
            print(__doc__, flush=True)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    try:
        from dit8.conf.paths import from_root  # slower than --help may be
        from dit8.scripts.cli import compose, one_sentence  # slower than --help may be
    except ModuleNotFoundError as missing:
        print(f"generate: package {missing.name} is missing; run make venv", file=sys.stderr)
        sys.exit(2)

    with one_sentence("generate"):
        caption, sentence = read_first(sys.argv[1])
        config = compose("generate", sys.argv[2:])
        if caption is None:
            from dit8.scripts.expand import expanded, open_expander

            expander = open_expander(config.model.expander, from_root(config.model.path))
            caption = expanded(expander, sentence, from_root("outputs/expanded"))
        print(json.dumps(generate(caption, config), ensure_ascii=False))


if __name__ == "__main__":
    main()
