import pytest
import torch

from dit8.quant.calibrate import absmax, calibrate, channel_crest
from dit8.quant.errors import UserError
from dit8.quant.outliers import plant_outliers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_planting_changes_no_bit_of_the_output(tiny, dtype):
    branch = tiny.make_branch(0, dtype)
    before = tiny.run_branch(branch)
    tensors = {name: tensor.clone() for name, tensor in branch.state_dict().items()}
    planted, report = plant_outliers(tensors, tiny.architecture, seed=5)
    changed = {name for name in tensors if not torch.equal(planted[name], tensors[name])}
    groups = [group for group in tiny.architecture.groups if group.source is not None]
    touched = {group.source for group in groups} | {t for g in groups for t in g.targets}
    # to_q/to_k rows are normalized per head, so only their columns may change; w1 likewise
    assert changed == {f"{name}.weight" for name in touched}
    assert [entry.group for entry in report] == [group.name for group in groups]
    branch.load_state_dict(planted)
    assert torch.equal(tiny.run_branch(branch), before)


def test_planted_channels_grow_by_the_stated_factor(tiny, tmp_path):
    def measure(pipeline, name):
        return calibrate(
            tiny.branch_modules(pipeline),
            tiny.architecture,
            lambda prompt: tiny.run_steps(pipeline, prompt),
            tiny.prompts[:1],
            tmp_path / name,
            model_key=name,
            prompts_key="one",
        )

    pipeline = tiny.make_pipeline()
    natural = measure(pipeline, "natural")
    planted, report = plant_outliers(
        pipeline.transformer.state_dict(), tiny.architecture, seed=5, factors=(64.0,)
    )
    pipeline.transformer.load_state_dict(planted)
    after = measure(pipeline, "planted")
    for entry in report:
        key = f"conditional/{entry.group}"
        factors = torch.ones(absmax(natural, key).shape)
        factors[list(entry.channels)] = torch.tensor(entry.factors)
        assert torch.equal(absmax(after, key), absmax(natural, key) * factors)
    crest = {
        name: channel_crest(absmax(stats, "conditional/layers.0.feed_forward.w2")).item()
        for name, stats in (("natural", natural), ("planted", after))
    }
    # random channels: one typical of the median rises to 64 times it, one below a little less
    assert crest["planted"] > 20 > 8 > crest["natural"]


def test_seed_decides_and_one_channel_is_the_least(tiny):
    tensors = tiny.make_branch(0).state_dict()
    draws = [plant_outliers(tensors, tiny.architecture, seed=seed)[1] for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert {len(entry.channels) for entry in draws[0]} == {1, 2, 3}  # K = 128, 208, 256
    _, only = plant_outliers(
        tensors,
        tiny.architecture,
        1,
        fraction=1e-6,
        groups=[g for g in tiny.architecture.groups if g.role == "text"],
    )
    assert [(entry.group, len(entry.channels)) for entry in only] == [("llm_cond_proj", 1)]


@pytest.mark.parametrize("factor", [3.0, 0.5, 0.0, -2.0])
def test_factors_must_be_powers_of_two(tiny, factor):
    with pytest.raises(ValueError, match="factors must be powers of two >= 1, got"):
        plant_outliers({}, tiny.architecture, 0, factors=(8.0, factor))


def test_fraction_must_be_a_fraction(tiny):
    with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\], got 0"):
        plant_outliers({}, tiny.architecture, 0, fraction=0)


def test_planting_refuses_to_leave_the_range_of_the_dtype(tiny):
    tensors = {name: t.half() for name, t in tiny.make_branch(0).state_dict().items()}
    with pytest.raises(UserError, match="must fold without rounding"):
        plant_outliers(tensors, tiny.architecture, 0, factors=(2.0**20,))
