"""Plan what a table needs: the commands in their order, each with its time, its disk and its needs.

A plan is data; scripts/table_runs.py prints it, refuses it or runs it. Tables 3, 4, 5 and 7 look at
the same pictures, so their steps share a `key`: in a plan of all tables the second one draws
nothing. Estimates are those of `eval.reproduce.estimate`.
"""

from collections.abc import Sequence
from dataclasses import replace

from dit8.eval.reproduce.bench import ENGINE, FORMATS, SECONDS, command
from dit8.eval.reproduce.estimate import Measurements, fits, picture_bytes
from dit8.eval.reproduce.pictures import (
    CAPTIONS,
    GPU,
    RECIPE,
    REFERENCE,
    SIZES,
    calibrate,
    convert,
    draw,
    prepare,
    rate_of,
)
from dit8.eval.reproduce.step import Need, Part, Plan, Request, Step
from dit8.quant.errors import UserError

TABLES = tuple(range(1, 10))
MODELS = ("mini", "ideogram4")
VARIANTS = ("fp8", "nf4", "int8", "fused_int8", "q8_0", "q4_k")
LADDER = (
    *("naive", "smooth_only", "protect_only", "ladder_2", "ladder_4", "ladder_8"),
    RECIPE,
)
DISTANCES = ("latent_error", "psnr", "ssim")
# table -> scorers without which it has nothing to show; those of EXTRAS are left out where they
# cannot run
SCORERS = {
    ("mini", 3): ("clip_mini",),
    ("ideogram4", 3): ("pickscore", "clipscore", "hpsv2"),
    **{(model, 4): ("ocr_exact", "ocr_ned") for model in MODELS},
    **{(model, 5): DISTANCES for model in MODELS},
    ("ideogram4", 6): ("clipscore", "ocr_exact", "ocr_ned", *DISTANCES),
    **{(model, 7): ("latent_error", "ocr_exact", "ocr_ned") for model in MODELS},
}
EXTRAS = {5: ("lpips",)}
IMAGES = 5  # of a variant, for a speed
TOGETHER_GB = 120.0  # an H200 held what scripts/bench_model.py compares all at once; less does not
GEMM_SECONDS, TUNE_SECONDS = 480.0, 600.0  # limits given to the scripts
# words that move pictures away from those that the tables look for
MOVING = ("size", "steps", "guidance", "sampler", "dtype", "engine", "recipe", "prompts")

LIMIT = "its limit, after which it begins nothing"
OCR = Need("extra", "ocr")


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
    return Plan(request, tuple(_tuned(request, steps)), (*left_out, *_unseen(request, steps)))


def _tuned(request: Request, steps: list[Step]) -> list[Step]:
    """Put the search for tiles before everything that multiplies fused on a GPU."""
    named = {name for step in steps for word in step.words for name in _values(word)}
    is_fused = "fused_int8" in named or request.table == 2
    return [_tune(request), *steps] if is_fused and request.machine.device == "cuda" else steps


def _values(word: str) -> list[str]:
    """Split `key=a,b`, or a word alone, into its values."""
    return word.rpartition("=")[2].split(",")


def _unseen(request: Request, steps: Sequence[Step]) -> list[str]:
    """Say what keeps the rows that will be made out of the tables."""
    found = []
    drawn = any(s.words[0] in ("scripts/evaluate.py", "scripts/ablation.py") for s in steps)
    mini = request.model == "mini"
    if (request.model, request.machine.device) == ("mini", "cpu"):
        found.append(
            "a place in the tables where the ledger has rows from a GPU, of which their mini "
            "columns are made then; scores from a CPU are printed, and kept in the ledger"
        )
    elif mini and request.n is not None and request.n < CAPTIONS["mini"]:
        found.append(
            f"a place in the tables where the ledger has runs of more captions than {request.n}, "
            "of which their mini columns are made then; scores are printed, and kept in the ledger"
        )
    for word in request.overrides:
        if not drawn:
            found.append(f"{word}, which no command of this table takes")
        elif word.partition("=")[0] in (*MOVING, "model.size", "model.guidance"):
            found.append(f"a place in the tables, which take no row made with {word}")
    return found


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
    steps = prepare(request, known, variants)
    styles = ("json", "raw") if request.table == 4 else ("json",)
    for style in styles:
        words = () if style == "json" else ("prompt_style=raw",)
        steps.append(draw(request, known, variants, scorers, words))
    return steps


def _speed(request: Request, known: Measurements, left_out: list[str]) -> list[Step]:
    if _together(request):
        return [_bench(ENGINE, request), _bench(FORMATS, request)]
    left_out.append(
        "stock diffusers and interleaving, because the card does not hold two variants at once"
    )
    variants = _fitting(request, known, left_out)
    steps = prepare(request, known, variants)
    for size in (1024, 768):
        words = (f"size={size}",)
        timed = replace(request, n=IMAGES if request.n is None else request.n)
        steps.append(draw(timed, known, variants, ["seconds"], words))
    return steps


def _gemm(request: Request) -> list[Step]:
    limit = f"{GEMM_SECONDS:g}"
    words = ("scripts/bench_gemm.py", "--seconds", limit, *_results(request))
    made = (Part("products", "gemm", GEMM_SECONDS),)
    return [Step(words, "times every product beside bf16", made, (GPU,), basis=LIMIT)]


def _tune(request: Request) -> Step:
    mini = request.model == "mini"
    measured = request.machine.gpu == "h200" and not mini
    return Step(
        ("scripts/tune.py", *(("--model", "mini") if mini else ())),
        "searches the fastest tiles of this card",
        (Part("tiles", f"tune {request.model}", TUNE_SECONDS if measured else None),),
        (GPU,),
        basis="its own upper figure for an H200",
    )


def _ladder(request: Request, known: Measurements, left_out: list[str]) -> list[Step]:
    if any(word.split("=")[0] == "recipe" for word in request.overrides):
        raise UserError("table 6 draws with its own recipes, got recipe= as well; leave it out")
    if request.model == "mini":
        n = CAPTIONS["mini"] if request.n is None else request.n
        device = request.machine.device
        words = ("scripts/ablation.py", "--run", "--n", str(n))  # the mini and its planted twin
        words += ("--cells", ",".join(("fp32", "bf16", *LADDER)), "--hardware", device)
        words += (*_results(request), "--jobs", "1", "--readers", "1")
        if request.overrides:
            words += ("--overrides", *request.overrides)
        rate = rate_of(request, known, "int8")
        pictures = 2 * (len(LADDER) + 2) * n
        seconds, basis = (None, "") if rate is None else (pictures * rate.seconds, rate.source)
        part = Part("pictures", "", seconds, pictures * picture_bytes(SIZES["mini"]))
        what = f"draws {n} captions with {len(LADDER)} recipes and twice without, on two models"
        return [Step(words, what, (part,), (OCR,), basis=basis)]
    variant = "int8"
    if _exceeds(request, known, variant) is not None:
        variant = "fused_int8"
        left_out.append("int8 unfused, in whose place fused_int8 stands: it exceeds the card")
    steps = [convert(request, known, REFERENCE, None), calibrate(request)]
    steps += [convert(request, known, "w8a8", recipe) for recipe in LADDER]
    scorers = SCORERS[request.model, 6]
    return [*steps, draw(request, known, (variant,), scorers, recipes=LADDER)]


def _deployment(request: Request) -> list[Step]:
    if not _together(request):
        raise UserError(
            f"table 8 calibrates its map on a card that holds all variants ({TOGETHER_GB:g} GB), "
            f"got {_memory(request)}; without one it stands on the committed rows: "
            "python scripts/reproduce.py --table 8"
        )
    draw = ("scripts/deployment_map.py", "--results", request.results)
    draw += ("--gpu", request.machine.gpu) if request.machine.gpu else ()
    return [
        *_gemm(request),
        _bench(ENGINE, request),
        Step(draw, "predicts every card from what this one reached", ()),
    ]


def _breakdown(request: Request) -> list[Step]:
    if not _together(request):
        raise UserError(
            f"table 9 profiles stock diffusers beside the engine, which takes a card of "
            f"{TOGETHER_GB:g} GB, got {_memory(request)}; without one it stands on the committed "
            "rows: python scripts/reproduce.py --table 9"
        )
    return [_bench(ENGINE, request), _bench(FORMATS, request)]


def _bench(paths: str, request: Request) -> Step:
    words = (*command(paths).split()[1:], "--images", str(IMAGES), *_results(request))
    what = f"draws {IMAGES} images of each in turn, random weights, and profiles their steps"
    made = (Part("images", f"bench {paths}", SECONDS[paths]),)
    return Step(words, what, made, (GPU,), basis=LIMIT)


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


def _results(request: Request) -> tuple[str, ...]:
    """Name the results folder to a script that has the option, if it is not the default."""
    return () if request.results == Request.results else ("--results", request.results)
