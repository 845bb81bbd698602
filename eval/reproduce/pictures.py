"""The steps of a plan that need a model: calibrate, convert, draw and score.

Pictures of one variant, recipe, sampler and number of captions have one key, whatever is scored.
"""

from collections.abc import Sequence

from dit8.eval.reproduce.estimate import (
    CALIBRATION_TFLOPS,
    Measurements,
    Rate,
    calibration_seconds,
    conversion,
    picture_bytes,
    picture_rate,
)
from dit8.eval.reproduce.runs import INT8
from dit8.eval.reproduce.step import Need, Part, Request, Step
from dit8.quant.errors import UserError

REFERENCE = "fp8"  # of the real model: what the papers compare with, and the best that is public
FORMATS = ("fp8", "nf4", "w8a8", "q8_0", "q4_k")
RECIPE = "smoothquant"
STEPS = {"mini": 20, "ideogram4": 48}
SIZES = {"mini": 256, "ideogram4": 1024}
CAPTIONS = {"mini": 200, "ideogram4": 300}
SAMPLERS = {20: "default_20", 48: "quality_48"}
STATS_BYTES = 1.3e9  # an upper bound: what quant/calibrate.py says of 48 steps; 20 are taken

WEIGHTS, GPU = Need("weights", "ideogram4"), Need("gpu", "cuda")


def draw_words(
    model: str,
    hardware: str,
    variants: Sequence[str],
    scorers: Sequence[str],
    n: int,
    extra: Sequence[str] = (),
) -> tuple[str, ...]:
    """Compose what draws and scores variants as the tables want them, without the interpreter.

    Args:
        extra: further key=value words; they go before the tables' own.
    """
    words = ("scripts/evaluate.py", "-m", f"model={model}", f"variant={','.join(variants)}")
    words += (*_shared(model, hardware, n, extra), f"scorers=[{','.join(scorers)}]")
    return (*words, "report=false")


def _shared(model: str, hardware: str, n: int, extra: Sequence[str]) -> tuple[str, ...]:
    """Compose the words that decide the pictures of every variant."""
    words = (f"hardware={hardware}",)
    if model == "ideogram4":
        words += (f"model.reference={REFERENCE}", "engine=dit8", "dtype=bfloat16", "batch=1")
        words += (f"sampler={SAMPLERS[STEPS[model]]}",)
    return (*words, f"n={n}", *extra)


def draw(
    request: Request,
    known: Measurements,
    variants: Sequence[str],
    scorers: Sequence[str],
    extra: tuple[str, ...] = (),
    recipes: Sequence[str] = (RECIPE,),
) -> Step:
    """Draw and score some variants, those with a recipe under each, and their reference."""
    model = request.model
    n = CAPTIONS[model] if request.n is None else request.n
    reference = REFERENCE if model == "ideogram4" else "bf16"
    shared = _shared(model, request.hardware, n, (*extra, *request.overrides))
    swept = () if tuple(recipes) == (RECIPE,) else (f"recipe={','.join(recipes)}",)
    words = draw_words(
        model, request.hardware, variants, scorers, n, (*swept, *extra, *request.overrides)
    )
    words += () if request.results == Request.results else (f"results={request.results}",)
    size = _number(shared, "size", SIZES[model])
    parts, sources = [], set()
    for name in dict.fromkeys((*variants, reference)):
        rate = rate_of(request, known, name, size, shared)
        sources |= set() if rate is None else {rate.source}
        for recipe in recipes if name in INT8 else ("none",):
            key = " ".join((model, name, recipe, *shared))
            seconds = None if rate is None else n * rate.seconds
            parts.append(Part(name, key, seconds, n * picture_bytes(size)))
    needs = [WEIGHTS] if model == "ideogram4" else []
    needs += [GPU] if request.machine.device == "cuda" else []
    needs += [Need("scorer", name) for name in scorers]
    if model == "mini":
        needs += [*_makers("nf4"), *_makers("q4_k")]
    what = f"draws {n} captions with each of {len(parts)} weights, scores {', '.join(scorers)}"
    if model == "mini":
        what += "; checkpoints that are missing are made on the way, not counted"
    return Step(words, what, tuple(parts), tuple(needs), basis="; ".join(sorted(sources)))


def prepare(request: Request, known: Measurements, variants: Sequence[str]) -> list[Step]:
    """Calibrate and convert the real model; the mini's checkpoints are made on the way."""
    if request.model == "mini":
        return []
    steps = []
    for name in FORMATS:
        if name == "w8a8" and set(INT8) & set(variants):
            steps += [calibrate(request), convert(request, known, name, RECIPE)]
        elif name in variants:
            steps.append(convert(request, known, name, None))
    return steps


def calibrate(request: Request) -> Step:
    words = ("scripts/calibrate.py", "model=ideogram4", f"hardware={request.hardware}")
    seconds = calibration_seconds(request.machine.gpu)
    what = "takes activation statistics of 64 captions, and resumes where it was stopped"
    basis = f"by FLOP at {CALIBRATION_TFLOPS:g} TFLOPS, moving the branches not counted"
    part = Part("statistics", "calibrate", seconds, STATS_BYTES)
    return Step(words, what, (part,), (WEIGHTS, GPU), basis=basis)


def convert(request: Request, known: Measurements, name: str, recipe: str | None) -> Step:
    words = ("scripts/quantize.py", "model=ideogram4", f"hardware={request.hardware}")
    words += (f"format={name}",) if recipe is None else (f"recipe={recipe}",)
    seconds, size = conversion(known, recipe or name, name)
    what = f"writes the {recipe or name} checkpoint, or finds it"
    return Step(
        words,
        what,
        (Part(recipe or name, f"checkpoint {name} {recipe}", seconds, size),),
        (WEIGHTS, *_makers(name)),
        basis="measured on two cores, random weights",
        leaves=f"checkpoints/ideogram4/{recipe or name}-*",
    )


def _makers(name: str) -> tuple[Need, ...]:
    """Name the extra that writing a format takes."""
    extras = {"nf4": "nf4", "q8_0": "gguf", "q4_k": "gguf"}
    return (Need("extra", extras[name]),) if name in extras else ()


def rate_of(
    request: Request,
    known: Measurements,
    variant: str,
    size: int | None = None,
    words: Sequence[str] = (),
) -> Rate | None:
    model = request.model
    if any(word.startswith(("model.", "sampler=")) for word in request.overrides):
        return None  # another model or schedule than the one measured
    steps = _number((*words, *request.overrides), "steps", STEPS[model])
    gpu = "cpu" if request.machine.device == "cpu" else request.machine.gpu
    engine = "dit8" if model == "ideogram4" else "stock"
    rate = picture_rate(known, model, variant, engine, steps, size or SIZES[model], gpu)
    devices = _number(request.overrides, "hardware.devices", 1)
    if rate is None or devices < 2:
        return rate
    return Rate(rate.seconds / devices, f"{rate.source}, shared by {devices} devices")


def _number(words: Sequence[str], key: str, default: int) -> int:
    """Find `key=number` among words."""
    for word in words:
        name, _, value = word.partition("=")
        if name == key:
            if not value.isdigit():
                raise UserError(f"{key} must be a number, got {value!r}; correct it")
            default = int(value)
    return default
