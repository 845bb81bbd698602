"""Train one branch by flow matching on the pool, within a budget of seconds."""

import copy
import time
from collections.abc import Callable

import torch

from dit8.models.posters import TIERS
from dit8.models.training.flow import flow_loss, rope_table
from dit8.models.training.muon import StackedMuon
from dit8.models.training.pool import Pool

T_MEAN, T_STD = -0.1, 1.2  # t = sigmoid(N(mean, std)): a little more noise than data
EMA_DECAY = 0.999
WARM_UP_STEPS = 200
ADAMW_SHARE = 0.6  # rate of the parameters that are no block matrix
# Share of each tier by progress of the schedule. Free placement delays glyphs, so the fixed slot
# comes first; it is solved within the first twentieth.
CURRICULUM = (
    (0.00, {"slot": 0.70, "easy": 0.30, "medium": 0.00, "hard": 0.00}),
    (0.05, {"slot": 0.40, "easy": 0.45, "medium": 0.10, "hard": 0.05}),
    (0.15, {"slot": 0.08, "easy": 0.40, "medium": 0.30, "hard": 0.22}),
    (0.35, {"slot": 0.01, "easy": 0.22, "medium": 0.40, "hard": 0.37}),
    (1.00, {"slot": 0.00, "easy": 0.14, "medium": 0.42, "hard": 0.44}),
)


def tier_shares(progress: float) -> list[float]:
    """Interpolate the curriculum at a progress in 0..1; one share a tier, in TIERS order."""
    for (p0, a), (p1, b) in zip(CURRICULUM, CURRICULUM[1:], strict=False):
        if progress <= p1:
            mix = (progress - p0) / (p1 - p0)
            return [(1 - mix) * a[tier] + mix * b[tier] for tier in TIERS]
    return [CURRICULUM[-1][1][tier] for tier in TIERS]


def learning_rate(peak: float, progress: float, step: int, cool_down: float) -> float:
    """Warm up for WARM_UP_STEPS, hold, then fall linearly to 1 % over the last `cool_down`."""
    return peak * min((step + 1) / WARM_UP_STEPS, 1.0, 0.01 + 0.99 * (1 - progress) / cool_down)


class Average:
    """Exponential moving average of a model's parameters, with a warm-up of its decay."""

    def __init__(self, model: torch.nn.Module):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.steps = 0

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        self.steps += 1
        decay = min(EMA_DECAY, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(
            list(self.model.parameters()), [p.detach() for p in model.parameters()], 1 - decay
        )


def train_branch(
    model: torch.nn.Module,
    average: Average,
    pool: Pool,
    *,
    conditional: bool,
    seconds: float,
    elapsed: float,
    first_step: int,
    batch: int,
    lr: float,
    cool_down: float,
    compile_model: bool,
    every_seconds: float,
    log: Callable[..., None],
    at_pause: Callable[[float, int], None],
) -> int:
    """Train until `seconds` of schedule are spent, `elapsed` of them in earlier runs.

    `at_pause(elapsed, step)` is called about every `every_seconds`, and at the end, for evaluation
    and saving; its time does not count. The optimizer's moments start anew in every run, which the
    warm-up absorbs. Returns the step count.
    """
    device = pool.latents.device
    cuda = device.type == "cuda"
    optimizers = build_optimizers(model, lr)
    loss_of = torch.compile(flow_loss) if compile_model else flow_loss
    width = pool.token_ids.shape[1] if conditional else 0
    rope = rope_table(model, width, device)
    model.train()
    step, shown, last_pause = first_step, time.monotonic(), elapsed
    before = time.monotonic()
    running, rate, logged = torch.zeros((), device=device), 0.0, first_step

    def show(steps: int) -> None:
        mean = float(running) / steps  # synchronizes, so the clock below is the GPU's too
        running.zero_()
        log(
            stage="conditional" if conditional else "unconditional",
            step=step,
            samples=step * batch,
            loss=mean,
            lr=rate,
            samples_per_s=steps * batch / (time.monotonic() - shown),
        )

    while elapsed < seconds:
        progress = elapsed / seconds
        # The unconditional branch learns what pictures look like at the end of the curriculum.
        shares = torch.tensor(tier_shares(progress if conditional else 1.0), device=device)
        index = pool.draw(shares, batch)
        data = pool.latents[index].float()
        text, mask = pool.text(index) if conditional else (None, None)
        t = torch.sigmoid(torch.randn(batch, device=device) * T_STD + T_MEAN)
        weight = pool.weight[index].float()
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            loss = loss_of(model, data, torch.randn_like(data), t, weight, rope, text, mask)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = learning_rate(lr, progress, step - first_step, cool_down)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate if isinstance(optimizer, StackedMuon) else ADAMW_SHARE * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update(model)
        running += loss.detach()
        step += 1
        if step % 100 == 0:
            show(step - logged)
            logged, shown = step, time.monotonic()
        if step == first_step + 1:  # the first step compiles: its time does not count
            float(loss.detach())
            before = shown = time.monotonic()
        elif step % 20 == 0 or not cuda:
            now = time.monotonic()
            elapsed += now - before
            before = now
            if elapsed - last_pause >= every_seconds and elapsed < seconds:
                at_pause(elapsed, step)
                last_pause, before = elapsed, time.monotonic()
                shown += before - now
    if step > logged:
        show(step - logged)
    at_pause(elapsed, step)
    return step


def build_optimizers(model: torch.nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Build Muon for the blocks' matrices and AdamW for everything else."""
    matrices = [p for n, p in model.layers.named_parameters() if p.ndim == 2 and "adaln" not in n]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    adamw = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.985), weight_decay=0.01, fused=True)
    return [StackedMuon(matrices, lr=lr), adamw]
