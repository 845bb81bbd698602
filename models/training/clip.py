"""Train the two towers of clip-mini by contrast, within a budget of seconds.

The loss is CLIP's (Radford et al. 2021, arXiv:2103.00020, figure 3): the mean of two
cross-entropies over the similarities s = exp(scale) I T^T of all pictures and texts of a batch,

    L = (CE(s, i) + CE(s^T, i)) / 2,

with two additions. A part of the pictures also comes blurred; blurred ones stand among the wrong
answers of the texts, so a text prefers its sharp picture. And a little noise is added to every
picture, because what a generator draws is never one exact colour.
"""

import time
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional as F

from dit8.models.training.branch import ADAMW_SHARE, Average, learning_rate
from dit8.models.training.clip_stream import GROUP, Block, Reservoir
from dit8.models.training.muon import StackedMuon
from dit8.models.training.pool import to_signal

MAX_SCALE = 100.0  # as CLIP: a larger one made its training unstable
BLUR_PX = (1.5, 5.0)  # range of the standard deviation, one for each step
KERNEL_PX = 31  # three of the largest deviations on either side
NOISE = 0.02  # standard deviation on [-1, 1]: 2.5 of 255 codes


def gaussian_blur(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur signals (B, C, H, W) by a separable Gaussian; the edge is continued outwards."""
    offset = torch.arange(KERNEL_PX, device=x.device, dtype=x.dtype) - KERNEL_PX // 2
    kernel = torch.exp(-0.5 * (offset / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, KERNEL_PX)
    half = KERNEL_PX // 2
    x = F.pad(x, (half, half, half, half), mode="replicate")
    x = F.conv2d(x, kernel, groups=x.shape[1])
    return F.conv2d(x, kernel.transpose(2, 3), groups=x.shape[1])


def clip_loss(
    model: torch.nn.Module, pictures: torch.Tensor, ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the contrastive loss.

    Args:
        model: open_clip's CLIP.
        pictures: (N + B, 3, H, W); the last B belong to no text.
        ids: (N, T) tokens of the first N pictures' texts.

    Returns:
        the loss, and the share of texts whose own picture scores highest; both scalars.
    """
    image = model.encode_image(pictures, normalize=True).float()
    text = model.encode_text(ids, normalize=True).float()
    similarity = model.logit_scale.exp() * text @ image.T  # (N, N + B)
    target = torch.arange(len(ids), device=ids.device)
    of_texts = F.cross_entropy(similarity, target)
    of_pictures = F.cross_entropy(similarity[:, : len(ids)].T, target)
    right = (similarity.argmax(dim=1) == target).float().mean()
    return (of_texts + of_pictures) / 2, right.detach()


def build_optimizers(model: torch.nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Build Muon for the blocks' matrices and AdamW for everything else."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if ".resblocks." in name and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    return [StackedMuon(matrices, lr=lr), torch.optim.AdamW(rest, lr=lr, weight_decay=0.01)]


def train_clip(
    model: torch.nn.Module,
    average: Average,
    blocks: Iterator[Block],
    reservoir: Reservoir,
    *,
    seconds: float,
    elapsed: float,
    first_step: int,
    groups: int,
    blurred: int,
    lr: float,
    cool_down: float,
    every_seconds: float,
    compile_model: bool,
    log: Callable[..., None],
    at_pause: Callable[[float, int], None],
) -> int:
    """Train until `seconds` of schedule are spent, `elapsed` of them in earlier runs.

    Every step takes one new block into the reservoir and trains on `groups` groups of it, the first
    `blurred` pictures of the batch also blurred. `at_pause(elapsed, step)` is called about every
    `every_seconds` and at the end, for evaluation and saving; its time does not count, nor does
    that of the first step, which compiles. Returns the step count.
    """
    device = reservoir.ids.device
    cuda = device.type == "cuda"
    optimizers = build_optimizers(model, lr)
    loss_of = torch.compile(clip_loss) if compile_model else clip_loss
    while reservoir.filled < min(groups, reservoir.groups):
        reservoir.put(next(blocks))
    model.train()
    step, last_pause, losses = first_step, elapsed, []
    before = shown = time.monotonic()
    while elapsed < seconds:
        reservoir.put(next(blocks))
        pixels, ids = reservoir.draw(groups)
        clean = to_signal(pixels)
        low, high = BLUR_PX
        sigma = low + (high - low) * float(torch.rand(()))
        pictures = torch.cat([clean, gaussian_blur(clean[:blurred], sigma)])
        pictures = pictures + NOISE * torch.randn_like(pictures)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            loss, right = loss_of(model, pictures, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = learning_rate(lr, elapsed / seconds, step - first_step, cool_down)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate if isinstance(optimizer, StackedMuon) else ADAMW_SHARE * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(torch.tensor(MAX_SCALE).log()))
        average.update(model)
        losses.append(torch.stack([loss.detach(), right]))
        step += 1
        if step == first_step + 1:
            losses[-1].tolist()  # waits for the device
            before = shown = time.monotonic()
        elif step % 20 == 0 or not cuda:
            loss_mean, right_mean = torch.stack(losses).mean(0).tolist()  # waits as well
            now = time.monotonic()
            elapsed += now - before
            before = now
            if step % 100 == 0 or elapsed >= seconds:
                log(
                    step=step,
                    samples=step * groups * GROUP,
                    loss=loss_mean,
                    right=right_mean,
                    scale=float(model.logit_scale.detach().exp()),
                    lr=rate,
                    samples_per_s=len(losses) * groups * GROUP / max(now - shown, 1e-9),
                )
                losses, shown = [], now
            if elapsed - last_pause >= every_seconds and elapsed < seconds:
                at_pause(elapsed, step)
                last_pause, before = elapsed, time.monotonic()
                shown += before - now
    at_pause(elapsed, step)
    return step
