import pytest

from dit8.conf.paths import ROOT
from dit8.eval.gemm_rows import CALLS, GEMM, PATHS, SHAPES, STEP_M, make_row
from dit8.eval.ledger import upsert
from dit8.scripts import speed_tables
from dit8.scripts.speed_tables import gemm_table, write_table


def row(path, shape, m, mode, ms, run="r1", gpu="card"):
    shared = {"run_id": run, "gpu": gpu, "versions": "torch 2", "commit": "abc"}
    n, k = SHAPES[shape]
    return make_row(shared, path, shape, (m, n, k), mode, [ms])


def step(path, mode, ms, **options):
    return [row(path, shape, m, mode, ms, **options) for shape in CALLS for m in STEP_M]


ROWS = [
    *step("bf16", "gemm_graph", 1.0),
    *step("dit8", "gemm_graph", 0.5),
    *step("dit8_quant", "quant_gemm_graph", 0.625),
    row("bf16", "qkv", 17, "gemm_graph", 0.02),
    row("bf16", "qkv", 17, "gemm_eager", 0.03),
    row("dit8_quant", "qkv", 17, "quant_gemm_graph", 0.01),
    row("dit8_quant", "qkv", 17, "quant_gemm_eager", 0.04),
]


def lines_after(text: str, title: str) -> list[str]:
    """Return the table that follows a title."""
    lines = text.split(title)[1].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[first:]:
        if not line:
            return table
        table.append(line)
    return table


def test_ratios_and_mean_of_the_gemm_alone():
    table = lines_after(gemm_table(ROWS), "GEMM alone against cuBLAS bf16")
    assert table[0] == "| path | qkv | attn_out | ffn_up | ffn_up2 | ffn_down | llm_proj | mean |"
    assert table[1] == "|" + " --- |" * 8
    two = "2.00 / 2.00"
    assert f"| dit8 | {two} | {two} | – | {two} | {two} | – | 2.00 |" in table
    assert [line.split()[1] for line in table[2:]] == ["bf16", "dit8"]


def test_against_fp8():
    rows = [*ROWS, *step("fp8", "gemm_graph", 0.4)]
    table = lines_after(gemm_table(rows), "GEMM alone against cuBLASLt FP8")
    assert [line[-8:] for line in table[2:]] == ["| 0.40 |", "| 1.00 |", "| 0.80 |"]
    assert lines_after(gemm_table(ROWS), "GEMM alone against cuBLASLt FP8")[2:] == []


def test_paths_without_rows_are_named():
    absent = "fp8, int_mm, unfused, fake_quant, comfy_kitchen, sgl_kernel, sdnq, torchao"
    assert f"\nNot measured on this GPU: {absent}.\n" in gemm_table(ROWS)
    everything = [row(path, "qkv", 17, "gemm_graph", 1.0) for path in PATHS]
    assert "Not measured on" not in gemm_table(everything)


def test_operations_per_second():
    table = lines_after(gemm_table(ROWS), "10¹² operations per second")
    tops = " / ".join(f"{2 * m * 13824 * 4608 / 0.5e-3 / 1e12:.0f}" for m in STEP_M)
    (mine,) = (line for line in table if line.startswith("| dit8 "))
    assert mine.startswith(f"| dit8 | {tops} | ") and len(table[0].split("|")) == 9


def test_quantize_and_gemm():
    table = lines_after(gemm_table(ROWS), "Quantize + GEMM against cuBLAS bf16, CUDA graphs")
    (mine,) = table[2:]
    assert mine.startswith("| dit8_quant | 1.60 / 1.60 | ") and mine.endswith("| 1.60 |")


def test_few_rows_show_graphs_and_eager():
    table = lines_after(gemm_table(ROWS), "few rows")
    assert [line.split(" |")[0] for line in table[2:]] == ["| 1", "| 17", "| 256", "| 1088"]
    assert table[3] == "| 17 | 2.00 / 0.75 | – | – | – | – | – |"


def test_a_number_without_its_partner_keeps_its_place():
    rows = [row("bf16", "qkv", 4396, "gemm_graph", 1.0), row("dit8", "qkv", 4396, "gemm_graph", 2)]
    assert "| dit8 | – / 0.50 | – |" in gemm_table(rows)


def test_peers_of_another_run_are_joined_and_runs_named():
    later = [*step("bf16", "gemm_graph", 3.0, run="r2"), *step("sdnq", "gemm_graph", 2.0, run="r2")]
    text = gemm_table([*later, *ROWS])
    table = lines_after(text, "GEMM alone against cuBLAS bf16")
    assert [line[-8:] for line in table if line.startswith("| sdnq")] == ["| 1.50 |"]
    assert [line[-8:] for line in table if line.startswith("| dit8 ")] == ["| 2.00 |"]
    assert "Runs: r1, r2\n" in text
    assert gemm_table([*ROWS, *later]) == text  # whatever the order


def test_ours_against_a_peer_in_runs_that_have_both():
    title = "ours (dit8) against each peer"
    assert lines_after(gemm_table(ROWS), title)[2:] == []
    both = [
        *step("sgl_kernel", "gemm_graph", 3.0, run="r2"),
        *step("dit8", "gemm_graph", 2.0, run="r2"),
    ]
    table = lines_after(gemm_table([*ROWS, *both]), title)
    (mine,) = table[2:]
    assert mine.startswith("| sgl_kernel | 1.50 / 1.50 |") and mine.endswith("| 1.50 |")


def test_gpus_do_not_mix():
    text = gemm_table([*ROWS, *step("bf16", "gemm_graph", 0.1, gpu="another")])
    assert text.index("another: the matrix products") < text.index("card: the matrix products")
    assert "| dit8 |" not in text[: text.index("card:")]
    assert "| dit8 | 2.00" in text[text.index("card:") :]


def test_nothing_measured():
    assert gemm_table([]) == "No matrix product was measured.\n"


def test_the_script_writes_the_page(tmp_path, run_here, one_sentence):
    ended = run_here("speed_tables", "--results", str(tmp_path))
    one_sentence(ended, "speed_tables", "gemm.csv must hold rows, got none; run scripts/bench_gemm")
    upsert(tmp_path / "bench" / "gemm.csv", GEMM, ROWS)
    ended = run_here("speed_tables", "--results", str(tmp_path))
    page = tmp_path / "tables" / "gemm.md"
    assert ended.document == {"tables": [str(page)]}
    assert page.read_text(encoding="utf-8") == gemm_table(ROWS)


@pytest.mark.parametrize("name", speed_tables.TABLES)
def test_the_committed_page_is_what_its_rows_say(tmp_path, name):
    source, _, _ = speed_tables.TABLES[name]
    if not (ROOT / "results" / source).exists():
        assert not (ROOT / "results" / "tables" / f"{name}.md").exists()
        pytest.skip(f"results/{source} holds no rows yet")
    copy = tmp_path / source
    copy.parent.mkdir(parents=True)
    copy.symlink_to(ROOT / "results" / source)
    committed = (ROOT / "results" / "tables" / f"{name}.md").read_text(encoding="utf-8")
    assert write_table(tmp_path, name).read_text(encoding="utf-8") == committed
