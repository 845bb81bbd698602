from dit8.eval.sweep_table import render_sweep


def document(run_id, scores, paired):
    keys = ("mean", "low", "high"), ("delta", "low", "high")
    return {
        "run_id": run_id,
        "scores": {
            name: dict(zip(keys[0], values, strict=True)) for name, values in scores.items()
        },
        "paired": {
            name: dict(zip(keys[1], values, strict=True)) for name, values in paired.items()
        },
    }


def test_a_line_a_cell_with_differences_to_its_own_reference():
    reference = document("a" * 12, {"ocr_ned": (0.5, 0.4, 0.6)}, {})
    other = document(
        "b" * 12,
        {"ocr_ned": (0.25, 0.2, 0.3), "psnr": (31.25, 30, 32)},
        {"ocr_ned": (-0.25, -0.5, 0.125)},
    )
    assert render_sweep([("steps=12", reference), ("steps=20", other)]) == (
        "| cell | run | ocr_ned ↓ | psnr ↑ |\n"
        "| --- | --- | --- | --- |\n"
        "| steps=12 | aaaaaaaaaaaa | 0.5 | — |\n"
        "| steps=20 | bbbbbbbbbbbb | 0.25 (Δ -0.25 [-0.5, +0.125]) | 31.25 |\n"
    )


def test_without_scores_there_is_no_table():
    assert render_sweep([]) == ""
    assert render_sweep([("steps=12", document("a" * 12, {}, {}))]) == ""
