"""Lines for Q4_K: scale and minimum of every sub-block, before they are rounded to six bits.

    minimize  sum_i importance_i (x_i - (scale * code_i - minimum))^2      code_i in 0..15

For given codes this is weighted linear regression. So several grids give codes, each gets its best
line, and the line with the smallest error wins, which is the idea of ggml's search as well. ggml
tries 21 slopes one after the other and lets the minimum follow; here eight grids are spread over
both ends of the range, independent of each other and hence vectorized, and find better lines. The
winner then rounds the weights once more (Lloyd's iteration) and is fitted again, which takes off
another half per cent.

In the units u = (x - low) / (high - low) all sums are of order 1 whatever the weights, so that no
product overflows and fp32 can tell the errors of the lines apart.
"""

import torch

SUB = 32  # weights of a sub-block
CODE_MAX = 15
RANGE_MIN = 1e-30  # far below what d and dmin can hold; its inverse is still finite
TIE = 2e-7  # of the mean square: fp32 sums cannot tell closer lines apart, the first one is taken

# Codes of the smallest and the largest weight. Picked one after the other from a grid in steps of
# 1/4, each the one that lowered the error most, over Gaussian, Student-t and the mini's weights;
# within (-0.5, 15.5), so that nothing has to be clamped.
ENDS = (
    (0.0, 15.0),
    (0.75, 15.25),
    (-0.25, 14.75),
    (0.25, 15.25),
    (-0.25, 13.25),
    (-0.49, 15.25),
    (0.0, 14.0),
    (-0.25, 15.49),
)


def search_lines(
    x: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    importance: torch.Tensor,
    u: torch.Tensor,
    weighted: torch.Tensor,
    codes: torch.Tensor,
    products: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find scale >= 0 and minimum >= 0, (B,) each: x ~ scale * code - minimum.

    Args:
        x: (B, 32).
        low: (B,) smallest weights, or 0 if they are positive.
        high: (B,) largest weights.
        importance: (B, 32), sums to 1.
        u, weighted, codes, products: (B, 32) scratch.

    Returns:
        scales, minima.
    """
    span = high - low
    span.masked_fill_(span < RANGE_MIN, 1.0)
    torch.sub(x, low[:, None], out=u).mul_((1.0 / span)[:, None])
    mean_u = torch.mul(importance, u, out=weighted).sum(dim=1)
    zero = -low / span  # where x = 0 lies; a line must start at or below it
    sums = torch.empty(3, len(ENDS), len(x), device=x.device)  # of code, code^2 and u * code
    for i, (first, last) in enumerate(ENDS):
        torch.mul(u, last - first, out=codes).add_(first).round_()
        _sum_codes(codes, importance, weighted, products, sums[:, i])
    gain, slope, start = _fit_line(*sums, mean_u, zero)
    ties = TIE * torch.arange(len(ENDS), device=x.device)[:, None]
    gain, chosen = (gain - ties).max(dim=0, keepdim=True)
    slope, start = slope.gather(0, chosen), start.gather(0, chosen)

    torch.sub(u, start.view(-1, 1), out=codes).div_(slope.view(-1, 1)).round_().clamp_(0, CODE_MAX)
    _sum_codes(codes, importance, weighted, products, sums[:, 0])
    again = _fit_line(*sums[:, :1], mean_u, zero)
    is_better = again[0] > gain + TIE
    slope = torch.where(is_better, again[1], slope)[0]
    start = torch.where(is_better, again[2], start)[0]
    # A flat sub-block has u = 0, hence slope 0, start 0 and the minimum -low.
    return slope * span, (zero - start) * span


def _sum_codes(
    codes: torch.Tensor,
    importance: torch.Tensor,
    weighted: torch.Tensor,
    products: torch.Tensor,
    sums: torch.Tensor,
) -> None:
    """Write what a fit needs into `sums` (3, B); overwrites codes and products (B, 32)."""
    torch.sum(torch.mul(importance, codes, out=products), dim=1, out=sums[0])
    torch.sum(products.mul_(codes), dim=1, out=sums[1])
    torch.sum(codes.mul_(weighted), dim=1, out=sums[2])


def _fit_line(
    mean_c: torch.Tensor,
    mean_cc: torch.Tensor,
    mean_uc: torch.Tensor,
    mean_u: torch.Tensor,
    zero: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fit u ~ slope * code + start by weighted least squares, start <= zero.

    Args:
        mean_c: (G, B) of G grids, as mean_cc and mean_uc; mean_u and zero are (B,).

    Returns:
        gain, slope and start, (G, B). The gain is what the line takes off mean(u^2), the error of
        the line 0: the larger, the better.
    """
    # Less is the rounding error of equal codes, or comes from two neighbouring codes at the top of
    # a range that begins at 0; either would tilt the line wildly.
    variance = (mean_cc - mean_c * mean_c).clamp_(min=0.1)
    start = (mean_u * mean_cc - mean_uc * mean_c) / variance
    start = torch.minimum(start, zero)
    slope = (mean_uc - start * mean_c) / mean_cc.clamp(min=1e-6)  # the best for this start
    gain = slope * slope * mean_cc + start * (2.0 * mean_u - start)
    return gain, slope, start
