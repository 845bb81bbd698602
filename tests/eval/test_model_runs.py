import pandas as pd

from dit8.eval.model_runs import best_first


def rows_of(*found):
    columns = ("run_id", "variant", "engine", "resolution", "quantity")
    return pd.DataFrame(found, columns=columns)


def test_runs_beside_fused_int8_come_first_then_the_newest():
    rows = rows_of(
        ("1", "fused_int8", "dit8", 1024, "cfg_step_ms"),
        ("2", "fused_int8", "dit8", 1024, "cfg_step_ms"),
        ("3", "fused_int8", "dit8", 768, "cfg_step_ms"),  # another size
        ("4", "fused_int8", "dit8", 1024, "peak_bytes_capped"),  # not its time
        ("5", "bf16", "dit8", 1024, "cfg_step_ms"),
    )
    assert best_first(["5", "1", "4", "2", "3", "5"], rows, 1024) == ["2", "1", "5", "4", "3"]
    assert best_first(["5", "3", "1"], rows, 768) == ["3", "5", "1"]
    assert best_first([], rows, 1024) == []
