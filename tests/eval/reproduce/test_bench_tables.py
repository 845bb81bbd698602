"""What tables 1, 2, 8 and 9 show of the benchmarks' rows."""

import math
import shutil

import pandas as pd
import pytest

from dit8.eval.gemm_rows import GEMM, STEP_M, ratios
from dit8.eval.ledger import read_table
from dit8.eval.reproduce import (
    breakdown,
    deployment,
    gemm,
    speed,
)
from dit8.eval.reproduce.bench import BESIDE_BF16, DECODED
from dit8.eval.reproduce.tables import build_tables
from dit8.quant.errors import UserError


def row_of(results, variant, quantity):
    """Return the newest row of an engine's path at 1024 px."""
    rows = pd.read_csv(results / "bench" / "model.csv")
    rows = rows[(rows.variant == variant) & (rows.engine == "dit8") & (rows.resolution == 1024)]
    return rows[rows.quantity == quantity].sort_values("run_id").iloc[-1]


def keep_rows(ledger, committed, keep):
    """Give a ledger of its own the benchmark's runs, and of their rows those that `keep` marks."""
    bench = ledger.results / "bench"
    bench.unlink()
    shutil.copytree(committed / "bench", bench)
    rows = pd.read_csv(bench / "model.csv")
    rows[keep(rows)].to_csv(bench / "model.csv", index=False)
    return ledger.results


def test_speed_of_the_card_and_of_the_papers(committed, cells, pick):
    table = speed.build(committed)
    fused = cells(table, "1024", "fused_int8", "dit8")
    image, row = pick(fused, "H200", "image"), row_of(committed, "fused_int8", "image_s")
    assert (image.value, image.low, image.high) == (row.value, row.low, row.high)
    assert row.low < row.value < row.high and image.method == "student"
    assert pick(fused, "H200", "images").value == 5
    assert pick(fused, "H200", "peak").value == pytest.approx(22.3, abs=0.05)
    assert pick(fused, "RTX 3090", "image", "reported").value == 156.5
    lacking = pick(fused, "Ideogram 4", "image")
    assert lacking.reason == "needs the gated weights and a card of sm_86"
    stock = cells(table, "1024", "bf16", "stock")
    assert pick(stock, "RTX 3090", "image", "reported").reason == "not reported"
    assert pick(stock, "H200", "GPUs").value == 1
    for path in (("bf16", "stock"), ("bf16", "compiled"), ("rotated", "dit8")):
        other = pick(cells(table, "1024", *path), "Ideogram 4", "image")
        assert other.reason.startswith("does not apply") and not other.command
    bf16 = pick(cells(table, "1024", "bf16", "dit8"), "Ideogram 4", "image")
    assert bf16.reason == "does not apply: no public bf16 weights"


def test_a_step_is_compared_with_bf16_of_its_own_run(ledger, committed, cells, pick):
    table = speed.build(committed)
    steps = pd.read_csv(committed / "bench" / "model.csv").query("quantity == 'cfg_step_ms'")
    steps = steps[(steps.engine == "dit8") & (steps.resolution == 1024)]
    for name in (*DECODED, "fused_int8", "rotated"):
        run = steps[steps.run_id == steps[steps.variant == name].run_id.max()]
        ms = run.set_index("variant").value
        found = pick(cells(table, "1024", name, "dit8"), "H200", BESIDE_BF16)
        assert found.value == pytest.approx(ms["bf16"] / ms[name], rel=1e-12)

    def keep(rows):
        mine = rows[rows.variant == "fp8"].run_id
        return ~(rows.run_id.isin(mine) & (rows.variant == "bf16") & (rows.engine == "dit8"))

    alone = cells(speed.build(keep_rows(ledger, committed, keep)), "1024", "fp8", "dit8")
    assert pick(alone, "H200", BESIDE_BF16).reason == "its run has no bf16 beside it"


def test_a_path_that_was_timed_over_few_steps_has_a_step_and_no_image(
    ledger, committed, cells, pick
):
    def keep(rows):
        return (rows.variant != "fp8") | (rows.quantity != "image_s")

    short = cells(speed.build(keep_rows(ledger, committed, keep)), "1024", "fp8", "dit8")
    lacking = pick(short, "H200", "image")
    assert lacking.reason == "timed over fewer than 48 steps"
    assert "--variants stock bf16 fp8 " in lacking.command
    step = row_of(committed, "fp8", "cfg_step_ms")
    assert pick(short, "H200", "CFG step").value == step.value


def test_speed_of_the_real_model_is_its_own_size_and_card(ledger, cells, pick, real):
    for size, seconds in ((1024, 150.0), (768, 90.0)):
        sampler = real["sampler"] | {"size_px": size}
        options = real | {"sampler": sampler, "gpu": "NVIDIA GeForce RTX 3090"}
        ledger.add(f"{size:012d}", "fp8", {"seconds": [seconds] * 5}, **options)
    table = speed.build(ledger.results)
    found = cells(table, "768", "fp8", "dit8")
    assert pick(found, "Ideogram 4", "image").value == 90.0
    assert pick(found, "Ideogram 4", "GPU").text == "NVIDIA GeForce RTX 3090"
    assert pick(cells(table, "1024", "fp8", "dit8"), "Ideogram 4", "image").value == 150.0


def test_products_with_the_range_of_the_runs_and_the_health_of_the_card(committed, cells, pick):
    table = gemm.build(committed)
    qkv = cells(table, "qkv", "13824 x 4608")
    fused = pick(qkv, "H200", "fused GEMM, M = 4096")
    assert fused.low < fused.value < fused.high
    page = (committed / "tables" / "gemm.md").read_text().splitlines()
    line = next(line for line in page if line.startswith("| dit8 |"))  # against bf16
    assert line.startswith(f"| dit8 | {fused.value:.2f} / ")
    gate = pick(qkv, "H200", "health gate, bf16")
    assert 615 < gate.low < gate.high < 769  # the gate, 80 % of what is expected, and that
    reported = pick(qkv, "RTX 3090", "fused GEMM", "reported")
    assert (reported.low, reported.high) == (2.79, 3.46)
    assert pick(qkv, "RTX 3090", "fused GEMM").reason == "needs a card of sm_86"
    mean = cells(table, "mean of a step", "all")
    assert line.endswith(f"| {pick(mean, 'H200', 'fused GEMM, both M').value:.2f} |")
    assert pick(mean, "H200", "fused GEMM, M = 4096").reason.endswith("is over both M")
    both = [pick(qkv, "H200", f"fused GEMM, M = {m}").value for m in (4096, 4396)]
    assert pick(qkv, "H200", "fused GEMM, both M").value == pytest.approx(
        math.sqrt(math.prod(both))
    )
    assert pick(qkv, "RTX 3090", "health gate, bf16").reason == "needs a card of sm_86"


def test_the_map_is_that_of_the_deployment_page(committed, cells, pick):
    table = deployment.build(committed)
    rows = pd.read_csv(committed / "tables" / "deployment_map.csv")
    names = {row[0].text for row in table.rows}
    assert len(table.rows) * 2 == len(rows) and "GeForce RTX 3090" in names
    row = rows[(rows.gpu == "rtx3090") & (rows.variant == "fused_int8") & (rows.resolution == 768)]
    found = cells(table, "GeForce RTX 3090", "fused_int8")
    predicted = pick(found, "fractions", "image, 768 px", "predicted").value
    assert f"{predicted:.5g}" == f"{row.predicted_image_s.item():.5g}"
    base = rows[(rows.gpu == "rtx3090") & (rows.variant == "bf16") & (rows.resolution == 1024)]
    ratio = (
        base.predicted_image_s.item()
        / pick(found, "fractions", "image, 1024 px", "predicted").value
    )
    gain = pick(found, "fractions", "times bf16, 1024 px", "predicted").value
    assert gain == pytest.approx(ratio, rel=1e-4)  # the CSV has five digits
    assert pick(found, "the papers", "768 px", "reported").text == "97.79 s/image"
    lacking = pick(found, "that card", "image, 768 px")
    assert lacking.reason.startswith("needs that card; ") and not lacking.command
    hopper = pick(cells(table, "H100 SXM", "fused_int8"), "that card", "image, 768 px")
    assert hopper.reason == "needs that card"
    assert hopper.command.endswith("--seconds 900 --expected-tflops RATE")
    large = pick(cells(table, "GeForce RTX 3090", "bf16"), "that card", "image, 768 px")
    assert large.reason == "does not apply: it does not fit the card" and not large.command
    unfused = pick(cells(table, "GeForce RTX 3090", "int8_unfused"), "from the", "fits", "counted")
    assert unfused.text == "yes" and "peaked at 24.9 GB" in unfused.note
    roomy = pick(cells(table, "H200 SXM", "int8_unfused"), "from the", "fits", "counted")
    assert not roomy.note
    (against,) = (note for note in table.notes if "contradict" in note)
    assert "A100 80 GB SXM: predicted 1." in against and "reported 1.38 times slower" in against
    assert "B200 (HGX): predicted" in against and "reported 3.49 times slower" in against
    own = cells(table, "H200 SXM", "fused_int8")
    image = pick(own, "that card", "image, 1024 px").value
    assert image == pytest.approx(row_of(committed, "fused_int8", "image_s").value, abs=0.05)


def test_the_breakdown_adds_up_and_bounds_what_linears_can_bring(committed, cells, pick):
    table = breakdown.build(committed)
    stock = cells(table, "1024", "bf16", "stock")
    parts = [pick(stock, "H200", name).value for name in (*list(breakdown.PARTS)[1:], "waiting")]
    measured = {
        label: cell.value
        for (kind, _, label), cell in stock.items()
        if kind == "measured" and label != "linears"
    }
    linears = next(
        cell.value
        for column, cell in zip(table.columns, table.rows[0], strict=True)
        if (column.label, column.unit) == ("linears", "ms")
    )
    assert linears + sum(parts) == pytest.approx(measured["step"], rel=1e-12)  # float addition
    share = linears / measured["step"]
    assert measured["bound if linears were free"] == pytest.approx(1 / (1 - share), rel=1e-12)
    assert measured["against stock"] == 1.0
    fused = cells(table, "1024", "fused_int8", "dit8")
    assert 3.5 < pick(fused, "H200", "against stock").value < 3.7  # three runs gave 3.60 to 3.62
    fp8 = cells(table, "1024", "fp8", "dit8")
    own = pick(fp8, "H200", "step").value * pick(fp8, "H200", "against stock").value
    assert own == pytest.approx(measured["step"], rel=0.02)  # stock diffusers of another run
    papers = cells(table, "not stated", "not stated", "theirs")
    assert pick(papers, "RTX 3090", "linears", "reported").value == 12
    assert "nothing" in pick(papers, "RTX 3090", "torch.compile", "reported").text


def test_a_run_without_stock_diffusers_has_no_factor(ledger, committed, cells, pick):
    def keep(rows):
        mine = rows[rows.variant == "fp8"].run_id
        return ~(rows.run_id.isin(mine) & (rows.engine == "stock"))

    table = breakdown.build(keep_rows(ledger, committed, keep))
    alone = pick(cells(table, "1024", "fp8", "dit8"), "H200", "against stock")
    assert "no stock diffusers" in alone.reason and "--variants stock bf16 fp8 " in alone.command


@pytest.mark.parametrize(
    ("variants", "counts"),
    [
        (("fp8",), {"fp8"}),
        (("rotated",), set()),  # measured apart from fused_int8, where it was measured beside it
        (("rotated", "fused_int8"), {"rotated", "fused_int8"}),
    ],
)
def test_the_newest_run_counts_and_of_the_engines_one_beside_fused_int8(
    ledger, committed, variants, counts, cells, pick
):
    bench = keep_rows(ledger, committed, lambda rows: rows.variant != "") / "bench"
    rows = pd.read_csv(bench / "model.csv")
    mine = rows[rows.variant.isin(variants) & (rows.engine == "dit8") & (rows.resolution == 768)]
    newer = "20991231-000000-f29ef40-nvidia_h200"
    old = max(mine.run_id)
    mine = mine[mine.run_id == old].assign(run_id=newer, value=lambda kept: 2 * kept.value)
    pd.concat([rows, mine]).to_csv(bench / "model.csv", index=False)
    shutil.copy(bench / "runs" / f"{old}.json", bench / "runs" / f"{newer}.json")

    def image(results, variant):
        return pick(cells(speed.build(results), "768", variant, "dit8"), "H200", "image").value

    for variant in ("fp8", "rotated", "fused_int8"):
        factor = 2 if variant in counts else 1
        assert image(ledger.results, variant) == factor * image(committed, variant)


def test_a_run_without_its_description_is_named(ledger, committed):
    (ledger.results / "bench").unlink()
    (ledger.results / "bench").mkdir()
    shutil.copy(committed / "bench" / "model.csv", ledger.results / "bench" / "model.csv")
    with pytest.raises(UserError, match=r"nvidia_h200.json must describe a measured run, got File"):
        build_tables(ledger.results, (1,))


def test_ratios_of_single_runs_lie_as_near_to_their_mean_as_the_notes_say(committed):
    rows = read_table(committed / "bench" / "gemm.csv", GEMM)
    runs = [own.to_dict("records") for _, own in rows.groupby("run_id")]
    for anchor in ("bf16", "fp8"):
        mean = ratios(sum(runs, []), anchor)
        off = [
            100 * abs(value / mean[cell] - 1)
            for run in runs
            for cell, value in ratios(run, anchor).items()
            if cell[0].startswith("dit8") and cell[2] in STEP_M and cell[3].endswith("_graph")
        ]
        assert max(off) <= gemm.COMPANY_PERCENT
