"""The papers' claims of quality, against the mini's rows: a test of the method, not of the model.

v1 and v2 are versions of 2606.12280; later figures of theirs replace earlier ones, so each claim
says whose it is. INT8 stands for fused_int8 here, which has the arithmetic of int8 up to rounding.
Variants compare by one rule, `eval.reproduce.finding.stands`: parity is an interval of the
difference that holds zero, no loss is one that does not lie below it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dit8.eval.reproduce.ablation import COMMAND as ABLATION
from dit8.eval.reproduce.ablation import PLANTED as PLANTED_MODEL
from dit8.eval.reproduce.finding import (
    ABOVE,
    BELOW,
    FAILS,
    HOLDS,
    PARITY,
    PARTLY,
    UNDECIDED,
    UNTESTED,
    Claim,
    Tables,
    between,
    between_recipes,
    bounds_of,
    outcome_of,
    pick,
    shown,
    stands,
)
from dit8.eval.reproduce.runs import MINI
from dit8.eval.reproduce.table import Cell

CLIP = ("clip_mini ↑", "100 x cosine (clip-mini)")
ERROR = "latent error ↓"
CHANGE = "change against naive"
EXACT = "Δ texts exact ↑"
# where smoothquant's latent error stands to naive's -> what that says of naive
SEEN = {BELOW: "naive is worse", ABOVE: "naive is better", PARITY: "no difference is seen"}
NATURAL, PLANTED = "mini (not", "planted"  # parts of what the columns are of


def _to_fp8(tables: Tables, variant: str) -> tuple[Cell, Cell]:
    """Return clip-mini and exact match of a variant less FP8's."""
    return (
        pick(tables[3], (*CLIP, variant), "Δ to fp8"),
        pick(tables[4], ("JSON", "all", variant), "exact, Δ to fp8"),
    )


def _naive(tables: Tables, results: Path) -> tuple[str, str]:
    """Compare by the paired change of the latent error, on the mini and on its planted twin."""
    costs, said = [], []
    for where, label in ((NATURAL, "Mini"), (PLANTED, "Outliers planted")):
        change = pick(tables[6], ("smoothquant",), CHANGE, where=where)
        naive, smooth = (
            pick(tables[6], (name,), EXACT, where=where) for name in ("naive", "smoothquant")
        )
        place = stands(change)
        costs.append(place == BELOW)
        said.append(
            f"{label}: latent error of smoothquant less naive's {shown(change, '+.3g')}, "
            f"{SEEN[place]}; texts read exactly less the unquantized model's, naive "
            f"{shown(naive, '+.3f')}, smoothquant {shown(smooth, '+.3f')}."
        )
    return outcome_of(costs), f"{' '.join(said)} Smoothing undoes planted outliers by design."


def _protection(tables: Tables, results: Path) -> tuple[str, str]:
    """Compare half of the down-projections with a quarter, near 17 and 8 of 34."""
    pair = ("ladder_4", "ladder_2", "latent_error", results)
    change, planted = (
        between_recipes(*pair, place) for place in (MINI, replace(MINI, model=PLANTED_MODEL))
    )
    kept = (pick(tables[6], (f"ladder_{count}",), ERROR, where=NATURAL) for count in (0, 4, 8))
    outcome, word = UNDECIDED, "no difference is seen"
    if change.high < 0:
        outcome, word = HOLDS, "more protection is better"
    elif change.low > 0:
        outcome, word = FAILS, "more protection is worse"
    return outcome, (
        "Nearest to it on the mini's 8 blocks a branch is a half against a quarter: latent error "
        f"of ladder_4 less ladder_2's {shown(change, '+.2g')}, {word}; with outliers planted, "
        f"which does not judge, {shown(planted, '+.2g')}. With 0, 4 and 8 kept: "
        f"{', '.join(shown(cell, '.3g') for cell in kept)}."
    )


def _parity(variants: Sequence[str], tables: Tables) -> tuple[str, str]:
    """Judge a claim of parity: all at parity in every score, all below fp8 in one, or between."""
    found = {name: _to_fp8(tables, name) for name in variants}
    places = {name: [stands(cell) for cell in cells] for name, cells in found.items()}
    listed = "; ".join(
        f"{name} {places[name][0]} fp8 in clip-mini ({shown(clip, '+.2f')}) and {places[name][1]} "
        f"it in exact match ({shown(exact, '+.3f')})"
        for name, (clip, exact) in found.items()
    )
    outcome = PARTLY
    if all(place == PARITY for own in places.values() for place in own):
        outcome = HOLDS
    elif all(BELOW in own for own in places.values()):
        outcome = FAILS
    return outcome, f"On the mini: {listed}."


def _parity_v1(tables: Tables, results: Path) -> tuple[str, str]:
    return _parity(("fused_int8",), tables)


def _parity_v2(tables: Tables, results: Path) -> tuple[str, str]:
    return _parity(("fused_int8", "q4_k", "nf4"), tables)


def _int8_nf4(tables: Tables, results: Path) -> tuple[str, str]:
    clip, exact = (between("fused_int8", "nf4", s, results) for s in ("clip_mini", "ocr_exact"))
    return outcome_of([clip.low > 0, exact.low > 0]), (
        f"fused_int8 - nf4 on the mini: clip-mini {shown(clip, '+.1f')} (another scale than "
        f"CLIPScore's), texts read exactly {shown(exact, '+.3f')}."
    )


def _q4k(tables: Tables, results: Path) -> tuple[str, str]:
    clip, _ = _to_fp8(tables, "q4_k")
    over = between("q4_k", "nf4", "clip_mini", results)
    return outcome_of([stands(clip) != BELOW, over.low > 0]), (
        f"Clip-mini of the mini: q4_k - fp8 {shown(clip, '+.1f')}, q4_k - nf4 "
        f"{shown(over, '+.1f')}."
    )


def _ned(tables: Tables, results: Path) -> tuple[str, str]:
    change = between("fused_int8", "nf4", "ocr_ned", results)
    return outcome_of([change.high < 0]), (
        f"fused_int8 - nf4 on the mini: {shown(change, '+.3f')} (lower is better)."
    )


def _fidelity(tables: Tables, results: Path) -> tuple[str, str]:
    psnr = {name: pick(tables[5], (name,), "PSNR ↑") for name in ("fused_int8", "q4_k", "nf4")}
    ends = {name: bounds_of(cell) for name, cell in psnr.items()}
    nearer = ends["fused_int8"][0] > max(ends["q4_k"][1], ends["nf4"][1])
    listed = ", ".join(f"{name} {shown(cell, '.1f')}" for name, cell in psnr.items())
    return PARTLY if nearer else FAILS, (
        f"PSNR of the mini to bf16, dB: {listed}. LPIPS needs weights that are not here."
    )


def _captions(tables: Tables, results: Path) -> tuple[str, str]:
    json, raw, change = (
        pick(tables[4], (style, "all", "bf16"), "exact") for style in ("JSON", "raw", "JSON − raw")
    )
    return HOLDS if bounds_of(change)[0] > 0 else FAILS, (
        f"Texts read exactly on the mini: {shown(json, '.3f')} against {shown(raw, '.3f')}, "
        f"difference {shown(change, '+.3f')}. It was trained on JSON alone, so that this shows the "
        "experiment, not the reason."
    )


def _hpsv2(tables: Tables, results: Path) -> tuple[str, str]:
    return UNTESTED, "Needs the scorer's weights and pictures it was made for."


EVALUATE = "python scripts/evaluate.py -m hardware=cuda variant="
CLAIMS = (
    Claim(
        "Plain W8A8 costs about 3 points of CLIPScore; SmoothQuant and protected layers mend it "
        "(2606.12280, 50 prompts).",
        _naive,
        (ABLATION,),
    ),
    Claim(
        "Protecting 17 down-projections instead of 8 is worth 1.4 points of CLIPScore "
        "(2606.12280, 50 prompts).",
        _protection,
        (ABLATION,),
    ),
    Claim(
        "INT8 scores as FP8 does: intervals of the difference hold zero (v1, 200 prompts).",
        _parity_v1,
        (f"{EVALUATE}bf16,fp8,fused_int8",),
    ),
    Claim(
        "Under JSON prompts INT8, Q4_K and NF4 are at parity with FP8 (v2, 300 prompts).",
        _parity_v2,
        (f"{EVALUATE}bf16,fp8,fused_int8,q4_k,nf4",),
    ),
    Claim(
        "INT8 scores above NF4: CLIPScore +1.9 [+1.21, +2.64] (v1, 200 prompts).",
        _int8_nf4,
        (f"{EVALUATE}bf16,fused_int8,nf4",),
    ),
    Claim(
        "Q4_K scores no lower than FP8 and above NF4: CLIPScore 18.68, 17.54 and 15.75 "
        "(2606.12280, 50 prompts).",
        _q4k,
        (f"{EVALUATE}bf16,fp8,q4_k,nf4",),
    ),
    Claim(
        "INT8's texts are nearer to what was asked for than NF4's: edit distance 0.704 against "
        "0.760 (v1, 200 prompts).",
        _ned,
        (f"{EVALUATE}bf16,fused_int8,nf4",),
    ),
    Claim(
        "INT8's pictures are nearer to the reference's than the 4-bit ones': LPIPS 0.243 against "
        "0.277 and 0.306 (v2, 300 prompts).",
        _fidelity,
        (f"{EVALUATE}bf16,fused_int8,q4_k,nf4",),
    ),
    Claim(
        "Texts are drawn right under JSON captions (55 % read exactly) and hardly ever under plain "
        "sentences (v2, 300 prompts).",
        _captions,
        ("python scripts/evaluate.py -m prompt_style=json,raw hardware=cuda",),
    ),
    Claim(
        "INT8 is within about 0.004 of FP8 by HPSv2 (v2, 300 prompts).",
        _hpsv2,
        ("python scripts/reproduce.py --run table=3 model=ideogram4 hardware=cuda_24gb",),
    ),
)
