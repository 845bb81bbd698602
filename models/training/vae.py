"""Train the mini's VAE on full posters: L1 + MSE + edges + KL, with noise on the latents."""

import time

import torch
from torch.nn import functional as F

from dit8.models.training.pool import PoolFiller, to_pixels, to_signal

KL_WEIGHT = 2e-4
EDGE_WEIGHT = 0.3
LATENT_NOISE = 0.1  # std added before decoding: the sampler's latents are never exact


def _edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def vae_loss(vae, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Compute the training loss of signals x (B, 3, H, W); weight (B, 1, H, W) stresses text."""
    posterior = vae.encode(x).latent_dist
    z = posterior.sample()
    y = vae.decode(z + LATENT_NOISE * torch.randn_like(z)).sample.float()
    error = (y - x).abs() + (y - x).square()
    loss = (weight * error).mean()
    for a, b in zip(_edges(y), _edges(x), strict=True):
        loss = loss + EDGE_WEIGHT * (a - b).abs().mean()
    return loss + KL_WEIGHT * posterior.kl().mean() / z[0].numel()


def train_vae(vae, filler: PoolFiller, *, seconds, batch, lr, shares, log, compile_model) -> int:
    """Train for `seconds` of wall-clock time while the pool fills; returns the steps made.

    The rate is constant after 100 steps of warm-up and falls linearly to 1 % over the last 40 %.
    """
    device = filler.pool.pixels.device
    vae.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    loss_of = torch.compile(vae_loss) if compile_model else vae_loss
    while int(filler.drawn().min()) < 1:
        filler.collect()
        time.sleep(0.05)
    start, step = time.monotonic(), 0
    while (done := (time.monotonic() - start) / seconds) < 1:
        filler.collect()
        rate = lr * min(1, (step + 1) / 100, 0.01 + 0.99 * (1 - done) / 0.4)
        for group in optimizer.param_groups:
            group["lr"] = rate
        index = filler.pool.draw(shares, batch, ready=filler.drawn())
        x = to_signal(filler.pool.pixels[index])
        weight = filler.pool.weight[index].view(batch, 1, 16, 16).float()
        weight = F.interpolate(weight, scale_factor=16, mode="nearest")
        weight = weight / weight.mean()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of(vae, x, weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0 or step == 1:
            log(stage="vae", step=step, samples=step * batch, loss=float(loss.detach()), lr=rate)
    vae.eval()
    return step


@torch.no_grad()
def reconstruct(vae, pixels: torch.Tensor) -> torch.Tensor:
    """Encode and decode (B, H, W, 3) uint8 posters through the posterior mean."""
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.is_cuda):
        y = vae.decode(vae.encode(to_signal(pixels)).latent_dist.mode()).sample
    return to_pixels(y)
