import json

import pytest

from dit8.eval.ledger import upsert
from dit8.scripts import model_speed_table
from dit8.scripts.model_paths import Drawing
from dit8.scripts.model_rows import MODEL, bytes_row, component_rows, t_interval, time_rows
from dit8.scripts.model_speed_table import model_table

SHARED = {
    **{"run_id": "r1", "gpu": "card", "versions": "torch 2", "commit": "abc"},
    **{"variant": "bf16", "engine": "dit8", "resolution": 1024, "text_tokens": 300},
}


def test_the_columns_are_the_published_ones():
    assert MODEL.columns == (
        *("run_id", "gpu", "variant", "engine", "resolution", "text_tokens", "quantity"),
        *("value", "low", "high", "unit", "versions", "commit"),
    )
    for row in time_rows(SHARED, [Drawing(2.0, (1.0,))] * 2, 48):
        assert set(row) == set(MODEL.columns)


def test_the_interval_is_students():
    # t(0.975, 2) = 4.30265 from a printed table, standard error 1 / sqrt(3)
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, -0.48413, 4.48413), abs=1e-4)
    assert t_interval([5.0, 5.0]) == (5.0, 5.0, 5.0)
    with pytest.raises(ValueError, match="at least two samples, got 1"):
        t_interval([1.0])


def test_an_image_counts_once_with_the_median_of_its_steps():
    drawings = [Drawing(10.0, (4.0, 5.0, 900.0)), Drawing(12.0, (7.0, 7.0, 7.0))]
    step, image = time_rows(SHARED, drawings, 48)
    assert (step["quantity"], step["value"], step["unit"]) == ("cfg_step_ms", 6.0, "ms")
    assert (image["quantity"], image["value"], image["unit"]) == ("image_s", 11.0, "s")
    assert step["low"] < 6.0 < step["high"]


def test_fewer_steps_are_no_image_and_one_image_is_no_interval():
    drawing = Drawing(10.0, (4.0, 5.0))
    assert [row["quantity"] for row in time_rows(SHARED, [drawing] * 2, 12)] == ["cfg_step_ms"]
    assert time_rows(SHARED, [drawing], 48) == []


def test_components_get_a_row_each():
    rows = component_rows(
        SHARED, [{"attention": 1.0, "other": 0.0}, {"attention": 3.0, "other": 0}]
    )
    assert [(row["quantity"], row["value"]) for row in rows] == [
        ("ms_attention", 2.0),
        ("ms_other", 0.0),
    ]


def table_rows():
    rows = []
    for variant, engine, step in (("fused_int8", "dit8", 150), ("bf16", "stock", 600)):
        shared = {**SHARED, "variant": variant, "engine": engine}
        rows += time_rows(shared, [Drawing(step * 0.048, (step, step + 1.0))] * 2, 48)
        rows.append(bytes_row(shared, "peak_bytes", 21_500_000_000))
    components = dict.fromkeys(
        ("attention", "gemm_int8", "rope", "norms", "swiglu", "quantize", "gemm_bf16", "other"),
        10.0,
    )
    return rows + component_rows({**SHARED, "variant": "fused_int8"}, [components] * 2)


def test_the_table_compares_within_a_run():
    rows = table_rows()
    other = [{**row, "run_id": "r2"} for row in rows if row["engine"] == "dit8"]
    text = model_table(rows + other)
    first, second = text.split("run r2")
    assert (
        "| bf16 | stock | 600.5 [600.5, 600.5] | 28.80 [28.80, 28.80] | 21.5 | 1.00x |  |" in first
    )
    assert (
        "| fused_int8 | dit8 | 150.5 [150.5, 150.5] | 7.20 [7.20, 7.20] | 21.5 | 3.99x |  |"
        in first
    )
    # 80 ms of kernels in a step of 150.5
    assert (
        "| fused_int8, dit8 | 10.0 | 10.0 | 10.0 | 10.0 | 10.0 | 10.0 | 10.0 | 10.0 | 70.5 |"
        in first
    )
    assert "x |" not in second  # its anchors were not measured in that run
    assert first.index("stock") < first.index("fused_int8")


def test_a_capped_generation_is_a_line_of_its_own():
    row = bytes_row({**SHARED, "variant": "fused_int8"}, "peak_bytes_capped", 22_340_000_000)
    text = model_table([{**row, "versions": "torch 2; cap 24 GB"}])
    assert "capped: 22.34 GB" in text and "cap 24 GB" in text and "CFG step" not in text


def test_no_rows_are_said_to_be_none():
    assert model_table([]) == "No model was measured.\n"


def test_the_page_is_made_from_the_committed_rows(tmp_path, monkeypatch, capsys):
    upsert(tmp_path / "bench" / "model.csv", MODEL, table_rows())
    monkeypatch.setattr("sys.argv", ["model_speed_table.py", "--results", str(tmp_path)])
    model_speed_table.main()
    assert (tmp_path / "tables" / "model_speed.md").read_text() == model_table(table_rows())
    assert json.loads(capsys.readouterr().out)["rows"] == 6 + 8
