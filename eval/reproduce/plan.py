"""Plan what a table needs: the commands in their order, each with its time, its disk and its needs.

A plan is data; scripts/table_runs.py prints it, refuses it or runs it. Tables 3, 4, 5 and 7 look at
the same pictures, so their steps share a `key`: in a plan of all tables the second one draws
nothing. Estimates are those of `eval.reproduce.estimate`.
"""

from collections.abc import Sequence
from dataclasses import replace

from eval.reproduce.estimate import (
    CALIBRATION_TFLOPS,
    Measurements,
    Rate,
    calibration_seconds,
    conversion,
    fits,
    picture_bytes,
    picture_rate,
)
from eval.reproduce.step import Need, Part, Plan, Request, Step
from quant.errors import UserError

TABLES = tuple(range(1, 10))
MODELS = ("mini", "ideogram4")
VARIANTS = ("fp8", "nf4", "int8", "fused_int8", "q8_0", "q4_k")
INT8 = ("int8", "fused_int8")  # those that a recipe is for
REFERENCE = "fp8"  # of the real model: what the papers compare with, and the best that is public
FORMATS = ("fp8", "nf4", "w8a8", "q8_0", "q4_k")
RECIPE = "smoothquant"
LADDER = (
    *("naive", "smooth_only", "protect_only", "ladder_2", "ladder_4", "ladder_8"),
    RECIPE,
)
# table -> scorers without which it has nothing to show; those of EXTRAS are left out where they
# cannot run
SCORERS = {
    ("mini", 3): ("clip_mini",),
    ("ideogram4", 3): ("pickscore", "clipscore", "hpsv2"),
    **{(model, 4): ("ocr_exact", "ocr_ned") for model in MODELS},
    **{(model, 5): ("psnr", "ssim") for model in MODELS},
    **{(model, 7): ("ocr_exact", "ocr_ned") for model in MODELS},
}
EXTRAS = {5: ("lpips",)}
STEPS = {"mini": 20, "ideogram4": 48}
SIZES = {"mini": 256, "ideogram4": 1024}
CAPTIONS = {"mini": 200, "ideogram4": 300}
SAMPLERS = {20: "default_20", 48: "quality_48"}
PATHS = "stock compiled bf16 fused_int8 rotated"  # of scripts/bench_model.py
IMAGES = 5  # of a variant, for a speed
TOGETHER_GB = 120.0  # an H200 held what scripts/bench_model.py compares all at once; less does not
GEMM_SECONDS, MODEL_SECONDS, TUNE_SECONDS = 480.0, 900.0, 600.0  # limits given to the scripts
STATS_BYTES = 1.3e9  # an upper bound: what quant/act_stats.py says of 48 steps; 20 are taken


LIMIT = "its limit, after which it begins nothing"
WEIGHTS, GPU, OCR = Need("weights", "ideogram4"), Need("gpu", "cuda"), Need("extra", "ocr")
DISTANCES = ("latent_error", "psnr", "ssim")


def plan_table(request: Request, known: Measurements, absent: Sequence[str] = ()) -> Plan:
    """Lay out the steps of a table.

    Args:
        known: committed measurements.
        absent: scorers that cannot run here; optional ones are left out of the plan.

    Raises:
        UserError: no such table or model, or a table that this model cannot fill.
    """
    if request.table not in TABLES:
        raise UserError(f"table must be 1 to 9, got {request.table}; see docs/reproduce.md")
    if request.model not in MODELS:
        raise UserError(f"model must be {' or '.join(MODELS)}, got {request.model!r}; correct it")
    if request.table in (1, 2, 8, 9) and request.model == "mini":
        raise UserError(
            f"table {request.table} is about the full-size architecture, got model=mini; use "
            "model=ideogram4, which for this table needs a GPU"
        )
    left_out: list[str] = []
    if request.table == 1:
        steps = _speed(request, known, left_out)
    elif request.table == 2:
        steps = _gemm(request)
    elif request.table == 6:
        steps = _ladder(request, known, left_out)
    elif request.table == 8:
        steps = _deployment(request)
    elif request.table == 9:
        steps = _breakdown(request)
    else:
        steps = _quality(request, known, absent, left_out)
    if (request.model, request.machine.device) == ("mini", "cpu"):
        left_out.append(
            "a place in the tables, whose mini columns are made of rows from a GPU; scores from a "
            "CPU are printed, and kept in the ledger"
        )
    return Plan(request, tuple(steps), tuple(left_out))


def _quality(
    request: Request, known: Measurements, absent: Sequence[str], left_out: list[str]
) -> list[Step]:
    """Tables 3, 4, 5 and 7: every variant on a prompt set, and for table 4 on its raw twin."""
    scorers = list(SCORERS[request.model, request.table])
    for name in EXTRAS.get(request.table, ()):
        if name in absent:
            left_out.append(f"{name}, which cannot run here (python scripts/doctor.py says why)")
        else:
            scorers.append(name)
    variants = _fitting(request, known, left_out)
    steps = _checkpoints(request, known, variants)
    styles = ("json", "raw") if request.table == 4 else ("json",)
    for style in styles:
        words = () if style == "json" else ("prompt_style=raw",)
        steps.append(_evaluate(request, known, variants, scorers, words))
    return steps


def _speed(request: Request, known: Measurements, left_out: list[str]) -> list[Step]:
    if _together(request):
        return [
            _bench(PATHS, request, (1024, 768)),
            _bench("bf16 fp8 nf4 q8_0 q4_k int8", request, (1024,)),
        ]
    left_out.append(
        "stock diffusers and interleaving, because the card does not hold two variants at once"
    )
    variants = _fitting(request, known, left_out)
    steps = _checkpoints(request, known, variants)
    for size in (1024, 768):
        words = (f"size={size}",)
        timed = replace(request, n=IMAGES if request.n is None else request.n)
        steps.append(_evaluate(timed, known, variants, ["seconds"], words))
    return steps


def _gemm(request: Request) -> list[Step]:
    limit = f"{GEMM_SECONDS:g}"
    words = ("scripts/bench_gemm.py", "--seconds", limit, *_results(request))
    tune = Step(
        ("scripts/tune.py",),
        "searches the fastest tiles of this card",
        (Part("tiles", "tune", TUNE_SECONDS if request.machine.gpu == "h200" else None),),
        (GPU,),
        basis="its own upper figure for an H200",
    )
    what = "times every product beside bf16"
    made = (Part("products", "gemm", GEMM_SECONDS),)
    return [tune, Step(words, what, made, (GPU,), basis=LIMIT)]


def _ladder(request: Request, known: Measurements, left_out: list[str]) -> list[Step]:
    if request.model == "mini":
        n = CAPTIONS["mini"] if request.n is None else request.n
        device = request.machine.device
        words = ("scripts/ablation.py", "--run", "--n", str(n))  # the mini and its planted twin
        words += ("--cells", ",".join(("fp32", "bf16", *LADDER)), "--hardware", device)
        words += (*_results(request), "--jobs", "1", "--readers", "1")
        if request.overrides:
            words += ("--overrides", *request.overrides)
        rate = _rate(request, known, "int8")
        pictures = 2 * (len(LADDER) + 2) * n
        seconds, basis = (None, "") if rate is None else (pictures * rate.seconds, rate.source)
        part = Part("pictures", "", seconds, pictures * picture_bytes(SIZES["mini"]))
        what = f"draws {n} captions with {len(LADDER)} recipes and twice without, on two models"
        return [Step(words, what, (part,), (OCR,), basis=basis)]
    variant = "int8"
    if _exceeds(request, known, variant) is not None:
        variant = "fused_int8"
        left_out.append("int8 unfused, in whose place fused_int8 stands: it exceeds the card")
    steps = [_convert(request, known, REFERENCE, None), _calibrate(request)]
    steps += [_convert(request, known, "w8a8", recipe) for recipe in LADDER]
    scorers = ["ocr_exact", "ocr_ned", *DISTANCES]
    return [*steps, _evaluate(request, known, (variant,), scorers, recipes=LADDER)]


def _deployment(request: Request) -> list[Step]:
    if not _together(request):
        raise UserError(
            f"table 8 calibrates its map on a card that holds all variants ({TOGETHER_GB:g} GB), "
            f"got {_memory(request)}; without one it stands on the committed rows: "
            "python scripts/reproduce.py --table 8"
        )
    draw = ("scripts/deployment_map.py", *_results(request))
    draw += ("--gpu", request.machine.gpu) if request.machine.gpu else ()
    return [
        *_gemm(request),
        _bench(PATHS, request, (1024, 768)),
        Step(draw, "predicts every card from what this one reached", ()),
    ]


def _breakdown(request: Request) -> list[Step]:
    if not _together(request):
        raise UserError(
            f"table 9 profiles stock diffusers beside the engine, which takes a card of "
            f"{TOGETHER_GB:g} GB, got {_memory(request)}; without one it stands on the committed "
            "rows: python scripts/reproduce.py --table 9"
        )
    return [_bench(PATHS, request, (1024, 768))]


def _bench(paths: str, request: Request, sizes: tuple[int, ...]) -> Step:
    names = paths.split()
    words = ("scripts/bench_model.py", "--variants", *names, "--resolutions", *map(str, sizes))
    words += ("--images", str(IMAGES), "--seconds", f"{MODEL_SECONDS:g}", *_results(request))
    what = f"draws {IMAGES} images of each in turn, random weights"
    made = (Part("images", f"bench {paths} {sizes}", MODEL_SECONDS),)
    return Step(words, what, made, (GPU,), basis=LIMIT)


def _evaluate(
    request: Request,
    known: Measurements,
    variants: Sequence[str],
    scorers: Sequence[str],
    extra: tuple[str, ...] = (),
    recipes: Sequence[str] = (RECIPE,),
) -> Step:
    """Draw and score some variants, those with a recipe under each, and their reference."""
    model, n = request.model, request.n or CAPTIONS[request.model]
    shared = (f"hardware={request.hardware}",)
    reference = "bf16"
    if model == "ideogram4":
        reference = REFERENCE
        shared += (f"model.reference={reference}", "engine=dit8", "dtype=bfloat16", "batch=1")
        shared += (f"sampler={SAMPLERS[STEPS[model]]}",)
    shared += (f"n={n}", *extra, *request.overrides)
    words = ("scripts/evaluate.py", "-m", f"model={model}", f"variant={','.join(variants)}")
    words += () if tuple(recipes) == (RECIPE,) else (f"recipe={','.join(recipes)}",)
    words += (*shared, f"scorers=[{','.join(scorers)}]")
    words += ("report=false",)
    words += () if request.results == "results" else (f"results={request.results}",)
    size = _number(shared, "size", SIZES[model])
    parts, sources = [], set()
    for name in dict.fromkeys((*variants, reference)):
        rate = _rate(request, known, name, size, shared)
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


def _checkpoints(request: Request, known: Measurements, variants: Sequence[str]) -> list[Step]:
    """Calibrate and convert the real model; the mini's checkpoints are made on the way."""
    if request.model == "mini":
        return []
    steps = []
    for name in FORMATS:
        if name == "w8a8" and set(INT8) & set(variants):
            steps += [_calibrate(request), _convert(request, known, name, RECIPE)]
        elif name in variants:
            steps.append(_convert(request, known, name, None))
    return steps


def _calibrate(request: Request) -> Step:
    words = ("scripts/calibrate.py", "model=ideogram4", f"hardware={request.hardware}")
    seconds = calibration_seconds(request.machine.gpu)
    what = "takes activation statistics of 64 captions, and resumes where it was stopped"
    basis = f"by FLOP at {CALIBRATION_TFLOPS:g} TFLOPS, moving the branches not counted"
    part = Part("statistics", "calibrate", seconds, STATS_BYTES)
    return Step(words, what, (part,), (WEIGHTS, GPU), basis=basis)


def _convert(request: Request, known: Measurements, name: str, recipe: str | None) -> Step:
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


def _fitting(request: Request, known: Measurements, left_out: list[str]) -> tuple[str, ...]:
    kept = []
    for name in VARIANTS:
        peak = _exceeds(request, known, name)
        if peak is None:
            kept.append(name)
        else:
            left_out.append(f"{name}, whose measured peak of {peak:.1f} GB exceeds the card")
    return ("bf16", *kept) if request.model == "mini" else tuple(kept)


def _exceeds(request: Request, known: Measurements, variant: str) -> float | None:
    if request.model == "mini" or request.machine.memory_gb is None:
        return None
    return fits(known, variant, request.machine.memory_gb)


def _together(request: Request) -> bool:
    memory = request.machine.memory_gb
    return memory is not None and memory >= TOGETHER_GB


def _memory(request: Request) -> str:
    memory = request.machine.memory_gb
    return "no known card" if memory is None else f"{memory:g} GB"


def _rate(
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
    return picture_rate(known, model, variant, engine, steps, size or SIZES[model], gpu)


def _results(request: Request) -> tuple[str, ...]:
    """Name the results folder to a script that has the option, if it is not the default."""
    return () if request.results == "results" else ("--results", request.results)


def _number(words: Sequence[str], key: str, default: int) -> int:
    """Find `key=number` among words."""
    for word in words:
        name, _, value = word.partition("=")
        if name == key:
            if not value.isdigit():
                raise UserError(f"{key} must be a number, got {value!r}; correct it")
            default = int(value)
    return default
