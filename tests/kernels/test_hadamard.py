import math

import pytest
import torch

from dit8.kernels.backend import KernelError
from dit8.kernels.hadamard import (
    _build,
    check_group,
    is_group,
    largest_group,
    regular_hadamard,
    rotate,
)

CPU = torch.device("cpu")
GROUPS = (4, 16, 64, 256)


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def integers(*shape, largest=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, shape, generator=generator).float()


def sylvester(group):
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < group:
        matrix = torch.kron(matrix, two)
    return matrix / math.sqrt(group)


def test_order_4_by_hand():
    wanted = torch.tensor(
        [[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float32
    )
    assert torch.equal(regular_hadamard(4, CPU, torch.float32), wanted / 2)
    assert torch.equal(rotate(torch.tensor([[2.0, 0, 0, 0]]), 4), torch.tensor([[1.0, 1, 1, -1]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("group", (*GROUPS, 1024))
def test_matrix_is_regular_symmetric_and_its_own_inverse(group, dtype):
    matrix = regular_hadamard(group, CPU, dtype)
    # Powers of two: every product and sum below is exact, so equality is asked for, not 1e-15.
    assert torch.equal(matrix.abs(), torch.full_like(matrix, 1 / math.sqrt(group)))
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(matrix @ matrix, torch.eye(group, dtype=dtype))
    assert torch.equal(matrix.sum(dim=0), torch.ones(group, dtype=dtype))
    assert matrix.dtype == dtype


@pytest.mark.parametrize("group", GROUPS)
def test_matrix_is_the_one_of_comfy_kitchen(group):
    int8_utils = pytest.importorskip("comfy_kitchen.tensor.int8_utils")
    assert torch.equal(
        regular_hadamard(group, CPU, torch.float32), int8_utils._build_hadamard(group)
    )
    x, weight = integers(3, 2 * group), integers(5, 2 * group, seed=1)
    theirs = int8_utils._build_hadamard(group)
    assert torch.equal(rotate(x, group), int8_utils._rotate_activation(x, theirs, group))
    assert torch.equal(rotate(weight, group), int8_utils._rotate_weight(weight, theirs, group))


@pytest.mark.parametrize("group", GROUPS)
def test_output_of_a_linear_is_unchanged(group):
    x, weight = normal(7, 3, 512), normal(11, 512, seed=1)
    exact, rotated = x @ weight.T, rotate(x, group) @ rotate(weight, group).T
    # fp64: three sums of at most 512 terms, each with relative error about sqrt(512) 2^-53
    assert (rotated - exact).norm() <= 1e-14 * exact.norm()
    assert (rotate(x, group).norm(dim=-1) - x.norm(dim=-1)).abs().max() <= 1e-13
    assert not torch.allclose(rotate(x, group), x)


def test_twice_is_the_identity_and_groups_stay_apart():
    x = integers(3, 512)
    for group in GROUPS:
        assert torch.equal(rotate(rotate(x, group), group), x)  # exact: multiples of 1/256 < 2^12
        changed = x.clone()
        changed[:, group:] += 1
        assert torch.equal(rotate(changed, group)[:, :group], rotate(x, group)[:, :group])
    assert not torch.equal(rotate(x, 64), rotate(x, 256))


def test_an_outlier_spreads_and_a_common_offset_does_not_gather():
    outlier = torch.zeros(1, 256, dtype=torch.float64)
    outlier[0, 77] = 16
    assert torch.equal(rotate(outlier, 256).abs(), torch.ones(1, 256, dtype=torch.float64))
    offset = torch.full((1, 256), 3.0, dtype=torch.float64)
    assert torch.equal(rotate(offset, 256), offset)
    # the reason for a regular matrix: Sylvester's turns the same offset into one outlier
    assert (offset @ sylvester(256)).abs().max() == 48


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtype_stays_and_is_rounded_to_once(dtype):
    x = normal(5, 256).to(dtype)
    got, exact = rotate(x, 256), rotate(x.double(), 256)
    assert got.dtype == dtype and exact.dtype == torch.float64
    assert torch.equal(got, rotate(x.float(), 256).to(dtype))
    # one rounding to dtype, after fp32 sums of 256 terms of at most 1/4: 256 * 2^-24 * 16 at most
    half = torch.finfo(dtype).eps / 2
    assert ((got.double() - exact).abs() <= half * exact.abs() + 2**-17).all()


def test_autocast_does_not_reach_the_sums():
    x = normal(5, 64, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = rotate(x, 64)
    assert got.dtype == torch.float32 and torch.equal(got, rotate(x, 64))


def test_matrix_made_in_inference_mode_serves_autograd():
    _build.cache_clear()
    with torch.inference_mode():
        rotate(torch.ones(1, 16, dtype=torch.float64), 16)
        matrix = regular_hadamard(16, CPU, torch.float64)
    assert matrix is regular_hadamard(16, CPU, torch.float64)
    x = torch.ones(1, 16, dtype=torch.float64, requires_grad=True)
    rotate(x, 16).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))  # columns sum to 1


def test_compiled_graph_holds_the_matrix_as_a_constant():
    graphs = []

    def keep(module, _inputs):
        graphs.append(module)
        return module.forward

    x = integers(2, 64)
    compiled = torch.compile(lambda t: rotate(t, 64), fullgraph=True, backend=keep)
    assert torch.equal(compiled(x), rotate(x, 64))
    (graph,) = graphs
    assert "kron" not in graph.code  # it would be made anew in every call


def test_not_finite_spreads_over_its_group_only():
    x = torch.zeros(3, 32)
    x[0, 1], x[1, 17] = torch.nan, torch.inf
    finite = rotate(x, 16).isfinite()
    assert torch.equal(
        finite.reshape(3, 2, 16).all(-1), ~torch.tensor([[1, 0], [0, 1], [0, 0]]).bool()
    )
    assert not finite[0, :16].any() and not finite[1, 16:].any()


@pytest.mark.parametrize(
    ("k", "limit", "group"),
    [
        (4608, 256, 256),
        (12288, 256, 256),
        (53248, 256, 256),
        (53248, 4096, 4096),
        (4608, 64, 64),
        (4608, 100, 64),
        (128, 256, 64),
        (96, 256, 16),
        (20, 256, 4),
        (4, 4, 4),
    ],
)
def test_largest_group(k, limit, group):
    assert largest_group(k, limit) == group
    check_group(k, group)


def test_is_group():
    assert [g for g in range(-4, 300) if is_group(1024, g)] == [4, 16, 64, 256]
    assert not is_group(96, 64) and not is_group(0, 4)


def test_refuses_what_cannot_be_rotated():
    for k in (6, 2, 1, 0):
        with pytest.raises(KernelError, match=rf"power of 4 from 4 to 256, got K={k}; leave this"):
            largest_group(k)
    with pytest.raises(KernelError, match="power of 4 from 4 to 3, got K=4608"):
        largest_group(4608, 3)
    for group in (64, 8, 2, 1, 0, -4):
        with pytest.raises(
            KernelError, match=rf"power of 4 >= 4 that divides K=96, got {group}; tak"
        ):
            rotate(torch.zeros(1, 96), group)
    with pytest.raises(ValueError, match=r"x must be \(..., K\) floating, got \(1, 4\) torch.int8"):
        rotate(torch.zeros(1, 4, dtype=torch.int8), 4)
    for group in (8, 0, 1):
        with pytest.raises(ValueError, match=f"group must be a power of 4 >= 4, got {group}"):
            regular_hadamard(group, CPU, torch.float32)
