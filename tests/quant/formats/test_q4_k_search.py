import torch

from dit8.quant.formats.q4_k import ENDS, search_lines


def search(x, importance=None):
    if importance is None:
        importance = torch.full_like(x, 1 / 32)
    low, high = x.amin(dim=1).clamp(max=0.0), x.amax(dim=1)
    return search_lines(x, low, high, importance, *torch.empty(4, *x.shape))


def error(x, scales, minima, importance):
    """The weighted squared error with the best codes, (B,) fp64."""
    x, scales, minima = x.double(), scales.double()[:, None], minima.double()[:, None]
    codes = ((x + minima) / scales).round().clamp(0, 15)
    return (importance * (scales * codes - minima - x).square()).sum(dim=1)


def random(n=500, seed=0):
    return torch.randn(n, 32, generator=torch.Generator().manual_seed(seed))


def test_finds_the_line_that_made_the_weights():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(16, (200, 32), generator=generator)
    codes[:, 0], codes[:, 1] = 0, 15
    scales = torch.rand(200, generator=generator) + 0.01
    minima = 8 * torch.rand(200, generator=generator)
    found_scales, found_minima = search(scales[:, None] * codes - minima[:, None])
    # fp32 sums of 32 terms up to 225: some 1e-5 of the range
    assert ((found_scales - scales).abs() < 1e-5 * scales).all()
    assert ((found_minima - minima).abs() < 1e-4 * scales).all()


def test_no_line_is_worse_than_from_the_smallest_to_the_largest_weight():
    x = random()
    importance = x.abs() / x.abs().sum(dim=1, keepdim=True)
    low, high = x.amin(dim=1), x.amax(dim=1)
    plain = error(x, (high - low) / 15, -low, importance)
    found = error(x, *search(x, importance), importance)
    assert (found <= plain * (1 + 1e-5)).all()  # fp32 against fp64
    assert found.mean() < 0.785 * plain.mean()  # measured 0.780


def test_scale_and_position_of_the_weights_do_not_matter():
    x = random() - 2.0
    scales, minima = search(x)
    for factor in (2.0**-60, 2.0**40):
        scaled, shifted = search(x * factor)
        assert torch.equal(scaled, scales * factor) and torch.equal(shifted, minima * factor)


def test_minima_are_never_negative_and_flat_weights_have_scale_zero():
    scales, minima = search(random() + 3.0)
    assert (minima >= 0).all() and (scales > 0).all()
    scales, minima = search(torch.full((3, 32), -1.5))
    assert scales.tolist() == [0.0] * 3 and minima.tolist() == [1.5] * 3


def test_no_grid_leaves_the_codes():
    """Rounded half to even, its ends are codes already."""
    for first, last in ENDS:
        assert 0 <= round(first) <= round(last) <= 15
