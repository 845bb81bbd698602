import pytest
import torch

from dit8.scripts.kernel_components import (
    COMPONENTS,
    PROFILED_STEPS,
    WARM_STEPS,
    StepProfiler,
    by_component,
    component_of,
)

NAMES = {
    "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x256": "attention",
    "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<256, 64, 64>>": "attention",
    "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::Kernel)": "attention",
    "void (anonymous)::softmax_warp_forward<c10::BFloat16>": "attention",
    "int8_gemm_kernel": "gemm_int8",
    "int8_gemm_swiglu_kernel": "gemm_int8",
    "sm80_xmma_gemm_i8i32_i8i32_i32_tn_n_tilesize128x128x64_imma": "gemm_int8",
    "nvjet_tst_256x128_64x4_1x2_h_bz_coopA_NTN": "gemm_bf16",
    "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_bf16_128x256_32x3_tn>": "gemm_bf16",
    "void cublasLt::splitKreduce_kernel<32, 16, int, float>": "gemm_bf16",
    "norm_kernel": "norms",
    "triton_red_fused_add_addmm_mean_mul_pow_rsqrt_tanh_5": "norms",
    "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, MeanOps>>": "norms",
    "swiglu_kernel": "swiglu",
    "triton_poi_fused_mm_mul_silu_3": "swiglu",
    "qk_norm_rope_kernel": "rope",
    "triton_poi_fused__scaled_dot_product_flash_attention_add_cat_mul_neg_2": "rope",
    "void at::native::CatArrayBatchedCopy_alignedK_contig<OpaqueType<2u>>": "rope",
    "void at::native::CatArrayBatchedCopy_vectorized<OpaqueType<1u>, unsigned int, 2>": "other",
    "quant_rows_kernel": "quantize",
    "void at::native::vectorized_elementwise_kernel<4, CUDAFunctor_add<BFloat16>>": "other",
    **dict.fromkeys(("e4m3_kernel", "q8_0_kernel", "q4_k_kernel", "nf4_kernel"), "other"),
    "Memcpy DtoD (Device -> Device)": "other",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_belongs_where_its_name_says(name):
    assert component_of(name) == NAMES[name]


def test_components_add_up_and_are_all_there():
    found = by_component({"norm_kernel": 1.5, "rsqrt_kernel": 0.5, "copy_kernel": 4.0})
    assert list(found) == list(COMPONENTS)
    assert found["norms"] == 2.0 and found["other"] == 4.0 and sum(found.values()) == 6.0


def test_only_the_steps_after_the_warm_ones_are_profiled():
    waits = []
    profiler = StepProfiler(torch.device("cpu"), lambda: waits.append(1))
    x = torch.ones(64, 64)
    for index in range(WARM_STEPS + PROFILED_STEPS):
        # the step's own work: a product in the profiled ones, none before
        _ = x @ x if index >= WARM_STEPS else x + x
        profiler(index)
    assert len(profiler.steps) == PROFILED_STEPS
    for step in profiler.steps:
        assert step["aten::mm"] > 0 and "aten::add" not in step
    assert len(waits) == WARM_STEPS + PROFILED_STEPS
