"""The papers' claims of quality, against the mini's rows: a test of the method, not of the model.

v1 and v2 are versions of 2606.12280; later figures of theirs replace earlier ones, so each claim
says whose it is. INT8 stands for fused_int8 here, which has the arithmetic of int8 up to rounding.
"""

from pathlib import Path

from eval.reproduce.finding import (
    FAILS,
    HOLDS,
    PARTLY,
    UNTESTED,
    Claim,
    Tables,
    between,
    bounds_of,
    outcome_of,
    pick,
    shown,
)
from eval.reproduce.table import Cell

CLIP = ("clip_mini ↑", "100 x cosine (clip-mini)")
ERROR = "latent error ↓"
CHANGE = "change against naive"
NATURAL, PLANTED = "mini (not", "planted"  # parts of what the columns are of


def _to_fp8(tables: Tables, variant: str) -> tuple[Cell, Cell]:
    """Return clip-mini and exact match of a variant less FP8's."""
    return (
        pick(tables[3], (*CLIP, variant), "Δ to fp8"),
        pick(tables[4], ("JSON", "all", variant), "exact, Δ to fp8"),
    )


def _naive(tables: Tables, results: Path) -> tuple[str, str]:
    naive, smooth = (
        pick(tables[6], (name,), ERROR, where=NATURAL) for name in ("naive", "smoothquant")
    )
    planted = [pick(tables[6], (n,), ERROR, where=PLANTED) for n in ("naive", "smoothquant")]
    return HOLDS if bounds_of(smooth)[1] < bounds_of(naive)[0] else FAILS, (
        f"Latent error of the mini: naive {shown(naive, '.3g')}, smoothquant "
        f"{shown(smooth, '.3g')}. With outliers planted, which smoothing undoes by design, "
        f"{shown(planted[0], '.3g')} and {shown(planted[1], '.3g')}."
    )


def _protection(tables: Tables, results: Path) -> tuple[str, str]:
    steps = [pick(tables[6], (f"ladder_{count}",), ERROR, where=NATURAL) for count in (0, 4, 8)]
    protect = pick(tables[6], ("protect_only",), CHANGE, where=NATURAL)
    helps = bounds_of(steps[-1])[1] < bounds_of(steps[0])[0] and bounds_of(protect)[1] < 0
    return PARTLY if helps else FAILS, (
        "Latent error of the mini with 0, 4 and all 8 of a branch's down-projections kept: "
        f"{', '.join(shown(cell, '.3g') for cell in steps)}; protection alone changes naive's by "
        f"{shown(protect, '+.2g')}. Counts of 34 blocks cannot be tested on eight."
    )


def _parity_v1(tables: Tables, results: Path) -> tuple[str, str]:
    cells = _to_fp8(tables, "fused_int8")
    clip, exact = cells
    return outcome_of([bounds_of(cell)[0] <= 0 <= bounds_of(cell)[1] for cell in cells]), (
        f"fused_int8 - fp8 on the mini: clip-mini {shown(clip, '+.2f')}, texts read exactly "
        f"{shown(exact, '+.3f')}."
    )


def _parity_v2(tables: Tables, results: Path) -> tuple[str, str]:
    found = {name: _to_fp8(tables, name) for name in ("fused_int8", "q4_k", "nf4")}
    clips = {name: clip for name, (clip, _) in found.items()}
    worse = [name for name, cells in found.items() if any(bounds_of(cell)[1] < 0 for cell in cells)]
    listed = ", ".join(f"{name} {shown(cell, '+.2f')}" for name, cell in clips.items())
    said = f"{' and '.join(worse)} below fp8" if worse else "none below fp8"
    return outcome_of([name not in worse for name in found]), (
        f"Clip-mini of the mini less fp8's: {listed}; with exact match, {said}."
    )


def _int8_nf4(tables: Tables, results: Path) -> tuple[str, str]:
    clip, exact = (between("fused_int8", "nf4", s, results) for s in ("clip_mini", "ocr_exact"))
    return outcome_of([clip.low > 0, exact.low > 0]), (
        f"fused_int8 - nf4 on the mini: clip-mini {shown(clip, '+.1f')} (another scale than "
        f"CLIPScore's), texts read exactly {shown(exact, '+.3f')}."
    )


def _q4k(tables: Tables, results: Path) -> tuple[str, str]:
    clip, _ = _to_fp8(tables, "q4_k")
    over = between("q4_k", "nf4", "clip_mini", results)
    return outcome_of([bounds_of(clip)[1] >= 0, over.low > 0]), (
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
        ("python scripts/ablation.py",),
    ),
    Claim(
        "Protecting 17 down-projections instead of 8 is worth 1.4 points of CLIPScore "
        "(2606.12280, 50 prompts).",
        _protection,
        ("python scripts/ablation.py",),
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
        ("python scripts/evaluate.py -m prompt_style=json,raw hardware=cpu",),
    ),
    Claim(
        "INT8 is within about 0.004 of FP8 by HPSv2 (v2, 300 prompts).",
        _hpsv2,
        ("python scripts/reproduce.py --run table=3 model=ideogram4 hardware=cuda_24gb",),
    ),
)
