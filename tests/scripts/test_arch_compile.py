"""Compiling for a GPU that is not there, and counting in its machine code."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from triton.runtime import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from dit8.kernels.int8_gemm_triton import Config, launch  # noqa: E402
from dit8.scripts.arch_compile import (  # noqa: E402
    Usage,
    call_by_name,
    compiling_for,
    parse_usage,
    read_usage,
)

CONFIG = Config(16, 64, 256, 1, 4, 4)


def gemm_values(k, config=CONFIG):
    values = {"x": torch.zeros(17, k, dtype=torch.int8), "x_scale": torch.ones(17)}
    values |= {"w": torch.zeros(64, k, dtype=torch.int8), "w_scale": torch.ones(64)}
    values |= {"bias": None, "gate": None, "residual": None, "config": config}
    return values | {"out": torch.full((17, 64), torch.nan)}


def compile_gemm(sm, k=256, config=CONFIG):
    values = gemm_values(k, config)
    with compiling_for(sm) as builds:
        call_by_name(launch, values)
    return builds, values


def test_a_launch_is_compiled_and_left_out():
    builds, values = compile_gemm(86)
    (build,) = builds
    assert build.kernel.metadata.target.arch == 86
    assert ".target sm_86" in build.kernel.asm["ptx"]
    assert build.grid[0] == 2  # 17 rows are two blocks of 16, 64 columns one of 64
    assert values["out"].isnan().all()
    named = dict(zip(build.kernel.src.fn.arg_names, build.arguments, strict=True))
    assert named["x_ptr"] is values["x"] and named["out_ptr"] is values["out"]
    assert (named["M"], named["BLOCK_K"]) == (17, 256)


@pytest.mark.parametrize(
    ("sm", "instructions"), [(80, "mma.sync"), (90, "wgmma"), (120, "mma.sync")]
)
def test_machine_code_is_read(sm, instructions):
    builds, _ = compile_gemm(sm, config=Config(64, 64, 128, 8, 4, 4))
    usage = read_usage(builds[0].kernel)
    assert 32 <= usage.registers <= 255
    assert (usage.stack_bytes, usage.spill_instructions) == (0, 0)
    # (64 + 64) x 128 bytes per stage; before wgmma one stage less is kept
    assert usage.shared_bytes == 16384 * (4 if sm == 90 else 3)
    assert usage.integer_mma == instructions


def test_spills_are_seen():
    # A K that is no multiple of 16 takes one masked load per byte: thousands of values at a time.
    builds, _ = compile_gemm(80, k=257, config=Config(64, 64, 256, 8, 4, 3))
    usage = read_usage(builds[0].kernel)
    assert usage.stack_bytes > 1000 and usage.spill_instructions > 1000


def test_the_driver_is_put_back_even_after_an_error(monkeypatch):
    run, mine = JITFunction.run, object()
    before = driver._active
    try:
        driver.set_active(mine)
        with pytest.raises(KeyError), compiling_for(80):
            assert driver.active is not mine
            raise KeyError
        assert driver.active is mine
    finally:
        driver.set_active(before)
    assert JITFunction.run is run


def test_a_parameter_without_a_value_is_named():
    with pytest.raises(ValueError, match="launch_two takes w, got x, config; add what is"):
        call_by_name(launch_two, {"x": 1, "config": 2})


def launch_two(x, w, bias=None):
    return x, w, bias


def test_values_are_matched_by_name_and_defaults_stay():
    seen = []

    def take(b, a, c=3):
        seen.append((a, b, c))

    call_by_name(take, {"a": 1, "b": 2, "other": 9})
    assert seen == [(1, 2, 3)]


LISTING = """
Resource usage:
 Function first:
  REG:40 STACK:16 SHARED:0 LOCAL:0 CONSTANT[0]:440
 Function second:
  REG:128 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:440
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;  /* 0x00000a00 */
        /*0010*/              @!P0 STL.64 [R1+0x8], R2 ;
        /*0020*/             @!UP1 LDL R5, [R1] ;
        /*0030*/               @PT LDL.LU R6, [R1+0x4] ;
        /*10040*/                  IMMA.16832.S8.S8.SAT R8, R4.ROW, R6.COL, R8 ;
        /*0050*/                   LDG.E R4, [R2.64] ;
"""


def test_instructions_are_counted_by_family():
    assert parse_usage(LISTING, 512) == Usage(128, 16, 3, 512, "mma.sync")
    wide = LISTING.replace("IMMA.16832.S8.S8.SAT", "IGMMA.64x128x32.S8.S8")
    assert parse_usage(wide, 0).integer_mma == "wgmma"
    floats = LISTING.replace("IMMA.16832.S8.S8.SAT", "HMMA.16816.F32")
    assert parse_usage(floats, 0).integer_mma == "none"


@pytest.mark.parametrize("text", ["", "REG:40 STACK:16", "/*0000*/ EXIT ;"])
def test_a_listing_without_code_is_no_measurement(text):
    with pytest.raises(ValueError, match="cuobjdump must list a function, got"):
        parse_usage(text, 0)
