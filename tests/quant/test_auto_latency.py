from pathlib import Path

import pytest

from dit8.quant.auto import (
    COLUMNS,
    SCHEMES,
    GemmTime,
    group_cost,
    latency_scheme,
    load_latency,
    role_of,
)
from dit8.quant.errors import UserError
from dit8.quant.types import Group, Scheme

HEADER = ",".join(COLUMNS)
TABLE = Path(__file__).resolve().parents[2] / "conf" / "latency" / "h200.csv"
QKV = Group("layers.0.attention.qkv", "n", "norm", ("q", "k", "v"))
W2 = Group("layers.0.feed_forward.w2", "w3", "linear", ("w2",))
REST = Group("layers.0.adaln_modulation", None, "none", ("adaln",), "rest")
# role -> (bf16 / int8 with row quantization), the middle of the reference's range
RATIOS = {"qkv": 1.5, "o": 1.45, "up": 1.6, "w2": 1.6, "text": 1.575}


def row(role="w2", n=4608, k=12288, ms=0.5):
    return GemmTime("g", role, n, k, "int8", 4096, ms, "made up")


@pytest.fixture
def written(tmp_path):
    def write(*lines, header=HEADER):
        path = tmp_path / "t.csv"
        path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
        return path

    return write


def test_shipped_table_follows_from_its_sources():
    table = load_latency(TABLE)
    assert len(table) == len(RATIOS) * len(SCHEMES)
    times = {(entry.role, entry.scheme): entry for entry in table}
    for (role, scheme), entry in times.items():
        bf16 = 2 * entry.m * entry.n * entry.k / 790e12 * 1e3
        int8 = bf16 / RATIOS[role]
        extra = entry.m * entry.k * 4 / 1.79e12 * 1e3
        expected = {"bf16": bf16, "int8": int8, "int8_rotate": int8 + extra}[scheme]
        assert entry.ms == pytest.approx(expected, abs=5e-5)  # four decimals
        assert entry.source.startswith("reference, not measured by this repo: ")
        assert (entry.gpu, entry.m) == ("h200", 4096)


def test_exact_shape_is_looked_up():
    table = load_latency(TABLE)
    shapes = {name: (4608, 4608) for name in "qkv"}
    expected = next(e.ms for e in table if e.role == "qkv" and e.scheme == "int8")
    assert group_cost(table, QKV, shapes, "int8") == expected


def test_other_shapes_scale_the_row_of_the_role():
    # as large as the text row in N and K, yet scaled from w2's
    table = [row(ms=0.5), row("text", 256, 768, ms=9.0)]
    cost = group_cost(table, W2, {"w2": (512, 768)}, "int8")
    assert cost == pytest.approx(0.5 * 512 * 768 / (4608 * 12288))


def test_unknown_role_scales_the_nearest_row():
    table = [row(ms=0.5), row("o", 4608, 4608, ms=0.2)]
    cost = group_cost(table, REST, {"adaln": (18432, 512)}, "int8")
    assert cost == pytest.approx(0.2 * 18432 * 512 / 4608**2)


def test_scheme_without_a_row_is_refused():
    with pytest.raises(ValueError, match="the table has no row of scheme 'bf16'"):
        group_cost([row()], W2, {"w2": (1, 1)}, "bf16")


@pytest.mark.parametrize(
    ("scheme", "name"),
    [
        (Scheme("keep"), "bf16"),
        (Scheme("int8", alpha=0.5, carrier="explicit"), "int8"),
        (Scheme("int8", rotation=64), "int8_rotate"),
    ],
    ids=["keep", "smooth", "rotate"],
)
def test_names_the_row_of_a_scheme(scheme, name):
    assert latency_scheme(scheme) == name


def test_roles_of_the_architecture(tiny):
    roles = {group.name: role_of(group) for group in tiny.architecture.groups}
    assert {roles[f"layers.1.attention.{name}"] for name in ("qkv", "o")} == {"qkv", "o"}
    assert roles["layers.1.feed_forward.up"] == "up"
    assert roles["layers.0.feed_forward.w2"] == "w2"
    assert roles["llm_cond_proj"] == "text"
    assert roles["layers.0.adaln_modulation"] == roles["final_layer.adaln_modulation"] == "adaln"
    assert roles["input_proj"] == roles["t_embedding.mlp_in"] == "outside"


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="must be a latency table, got no such file; use conf/"):
        load_latency(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ([], "must have rows, got none; restore it"),
        (["g,w2,1,1,int8,1"], r"t\.csv:2 must have 8 cells of the right types, got"),
        (["g,w2,1,x,int8,1,1,s"], r"t\.csv:2 must have 8 cells of the right types"),
        (["g,w2,1,1,int4,1,1,s"], "one of the schemes bf16, int8, int8_rotate and positive"),
        (["g,w2,1,1,int8,1,0,s"], "positive n, k, m and ms, got int8 1 1 1 0.0; correct it"),
        (["g,w2,1,1,int8,1,inf,s"], "positive n, k, m and ms, got int8 1 1 1 inf"),
        (["g,w2,1,1,int8,1,1,s", "h,w2,1,1,int8,1,1,s"], r"one GPU and one M, got \['g', 'h'\]"),
    ],
    ids=["empty", "short", "text", "scheme", "zero", "inf", "gpus"],
)
def test_bad_tables(written, lines, match):
    with pytest.raises(UserError, match=match):
        load_latency(written(*lines))


def test_other_columns(written):
    with pytest.raises(UserError, match="must have the columns gpu, role, .*, got n, k; correct"):
        load_latency(written("1,1", header="n,k"))
