import copy

import pytest
import torch

from dit8.models.mini import TOY, build_transformer
from dit8.models.posters import TIERS
from dit8.models.training import branch
from dit8.models.training.branch import (
    ADAMW_SHARE,
    CURRICULUM,
    EMA_DECAY,
    WARM_UP_STEPS,
    Average,
    build_optimizers,
    learning_rate,
    tier_shares,
    train_branch,
)
from dit8.models.training.muon import StackedMuon
from dit8.models.training.pool import Pool


def test_shares_are_a_distribution_that_moves_continuously():
    rows = torch.tensor([tier_shares(i / 1000) for i in range(1001)])
    assert torch.allclose(rows.sum(1), torch.ones(1001), atol=1e-6) and rows.min() >= 0
    # the steepest stretch moves a share by 0.32 over a tenth of the schedule, or 0.3 over 0.05
    assert (rows[1:] - rows[:-1]).abs().max() < 0.01


def test_shares_meet_the_table_and_stay_at_its_end():
    for progress, shares in CURRICULUM:
        assert tier_shares(progress) == pytest.approx([shares[tier] for tier in TIERS])
    assert tier_shares(1.2) == tier_shares(1.0)
    assert tier_shares(1.0)[TIERS.index("slot")] == 0


def test_rate_warms_up_holds_and_cools_down():
    def rate(progress, step):
        return learning_rate(2.0, progress, step, cool_down=0.4)

    assert rate(0.0, 0) == pytest.approx(2.0 / WARM_UP_STEPS)
    assert rate(0.3, WARM_UP_STEPS - 1) == rate(0.59, 10**6) == 2.0
    assert rate(0.8, 10**6) == pytest.approx(2.0 * (0.01 + 0.99 * 0.5))
    assert rate(1.0, 10**6) == pytest.approx(0.02)
    assert rate(0.99, 3) == pytest.approx(2.0 * 4 / WARM_UP_STEPS)  # a resumed end warms up too


def test_average_follows_with_a_decay_that_grows():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = Average(model)
    model.weight.data.fill_(1.0)
    average.update(model)
    assert float(average.model.weight) == pytest.approx(1 - 2 / 11)  # decay 2/11 at the first step
    expected = 1 - (2 / 11) * (3 / 12)
    average.update(model)
    assert float(average.model.weight) == pytest.approx(expected)
    average.steps = 10**6
    average.update(model)
    assert float(average.model.weight) == pytest.approx(1 - (1 - expected) * EMA_DECAY)
    assert not average.model.weight.requires_grad and model.weight.requires_grad


def test_muon_gets_the_blocks_matrices_and_adamw_the_rest():
    model = build_transformer(TOY)
    muon, adamw = build_optimizers(model, 1e-3)
    names = {id(p): name for name, p in model.named_parameters()}
    of_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    of_adamw = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert of_muon | of_adamw == set(names.values()) and not of_muon & of_adamw
    assert len(of_muon) == 7 * TOY.layers
    assert all(".attention.to_" in name or ".feed_forward.w" in name for name in of_muon)


@pytest.fixture(autouse=True)
def steps_for_seconds(clock):
    clock(branch)


@pytest.fixture
def pool(toy):
    """Eight posters of random latents and features, two a tier, captions of different lengths."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([3, 5, 2, 6, 4, 1, 6, 2])
    width = toy.transformer.config.llm_features_dim
    return Pool(
        first=torch.tensor([0, 2, 4, 6]),
        count=torch.tensor([2, 2, 2, 2]),
        token_ids=torch.zeros(8, 6, dtype=torch.int16),
        lengths=lengths,
        weight=torch.ones(8, 256, dtype=torch.uint8),
        pixels=None,
        latents=torch.randn(8, 256, 64, generator=generator).to(torch.bfloat16),
        features=torch.randn(int(lengths.sum()), width, generator=generator).to(torch.bfloat16),
        offset=lengths.cumsum(0) - lengths,
    )


def train(model, pool, average, **changes):
    pauses, rows = [], []
    options = {
        "conditional": True,
        "seconds": 12.0,  # of a clock that advances 1 s a step
        "elapsed": 0.0,
        "first_step": 0,
        "batch": 2,
        "lr": 1e-2,
        "cool_down": 0.4,
        "compile_model": False,
        "every_seconds": 4.0,
        "log": lambda **row: rows.append(row),
        "at_pause": lambda elapsed, step: pauses.append((elapsed, step)),
    } | changes
    return train_branch(model, average, pool, **options), pauses, rows


@pytest.mark.parametrize("conditional", [True, False])
def test_training_moves_what_takes_part_and_pauses_in_time(toy, pool, conditional):
    model = copy.deepcopy(toy.transformer)
    average = Average(model)
    step, pauses, _ = train(model, pool, average, conditional=conditional)
    # the first step compiles and does not count; the clock also ticks once during each pause
    assert pauses == [(4.0, 5), (8.0, 9), (12.0, 13)]
    assert average.steps == step == 13
    before, after = toy.transformer.state_dict(), model.state_dict()
    block, text = "layers.0.feed_forward.w2.weight", "llm_cond_proj.weight"
    assert not torch.equal(before[block], after[block])
    assert torch.equal(before[text], after[text]) == (not conditional)
    assert not torch.equal(average.model.state_dict()[block], after[block])
    assert all(torch.isfinite(value).all() for value in after.values())


def test_a_finished_schedule_trains_no_more(toy, pool):
    model = copy.deepcopy(toy.transformer)
    step, pauses, _ = train(model, pool, Average(model), elapsed=12.0, first_step=77)
    assert (step, pauses) == (77, [(12.0, 77)])
    for a, b in zip(model.parameters(), toy.transformer.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_resumed_branch_counts_on_and_warms_up_again(toy, pool, monkeypatch):
    rates = {}

    def watch(optimizer):
        original = optimizer.step

        def step(*rest):
            rates.setdefault(type(optimizer), []).append(optimizer.param_groups[0]["lr"])
            return original(*rest)

        optimizer.step = step
        return optimizer

    monkeypatch.setattr(
        "dit8.models.training.branch.build_optimizers",
        lambda model, lr: [watch(optimizer) for optimizer in build_optimizers(model, lr)],
    )
    model = copy.deepcopy(toy.transformer)
    step, pauses, _ = train(model, pool, Average(model), elapsed=9.0, first_step=1000)
    assert step == 1004 and pauses == [(12.0, 1004)]
    first = 1e-2 / WARM_UP_STEPS
    assert rates[StackedMuon][0] == pytest.approx(first)
    assert rates[torch.optim.AdamW][0] == pytest.approx(ADAMW_SHARE * first)
    assert len(rates[StackedMuon]) == 4


def test_the_loss_falls_on_what_can_be_learned(toy, pool):
    # constant data: the velocity at noise is then a function of x_t that a tiny net finds soon
    pool.latents = torch.full_like(pool.latents, 2.0)
    model = copy.deepcopy(toy.transformer)
    options = {"seconds": 210.0, "every_seconds": 999.0, "conditional": False, "batch": 1}
    _, _, rows = train(model, pool, Average(model), **options)
    assert [row["step"] for row in rows[:2]] == [100, 200]
    assert rows[0]["stage"] == "unconditional" and rows[0]["samples"] == 100
    assert rows[1]["loss"] < 0.5 * rows[0]["loss"]
