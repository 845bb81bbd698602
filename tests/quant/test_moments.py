from types import SimpleNamespace

import pytest
import torch
from scipy import stats

from dit8.quant.errors import UserError
from dit8.quant.moments import Moments, kurtosis, merge, recording_moments


def run(tiny, pipeline, prompts=None, **keys):
    with recording_moments(tiny.branch_modules(pipeline), tiny.architecture) as recorder:
        for prompt in prompts or tiny.prompts:
            recorder.begin_prompt()
            tiny.run_steps(pipeline, prompt, **keys)
    return recorder.moments()


def capture(tiny, pipeline):
    """Record the inputs of every group beside, in a way of their own: key -> one list a forward."""
    seen = {}
    for branch, module in tiny.branch_modules(pipeline).items():
        for group in tiny.architecture.groups:
            module.get_submodule(group.targets[0]).register_forward_pre_hook(
                lambda _, args, key=f"{branch}/{group.name}": seen.setdefault(key, []).append(
                    args[0]
                )
            )
    return seen


def hook_count(pipeline):
    modules = [*pipeline.transformer.modules(), *pipeline.unconditional_transformer.modules()]
    return sum(len(module._forward_pre_hooks) for module in modules)


def power_sums(values):
    powers = [(values**p).sum() for p in range(5)]
    return torch.stack(powers)


def test_equals_scipy_over_all_prompts_of_each_step(tiny):
    pipeline = tiny.make_pipeline()
    seen = capture(tiny, pipeline)
    moments = run(tiny, pipeline)
    assert moments.maxima.keys() == moments.sums.keys() == seen.keys()
    assert len(seen) == 2 * len(tiny.architecture.groups)
    for key, forwards in seen.items():
        measured = kurtosis(moments.sums[key])
        for step in range(tiny.steps):
            rows = torch.cat([x.flatten(0, -2) for x in forwards[step :: tiny.steps]])
            rows = rows[(rows != 0).any(dim=1)]
            if key == "unconditional/llm_cond_proj":
                assert len(rows) == 0  # it reads zeros only
                assert measured[step].isnan() and not moments.maxima[key].any()
                continue
            assert torch.equal(moments.maxima[key][step], rows.abs().amax(dim=0)), key
            assert moments.sums[key][step][0] == rows.numel()
            expected = stats.kurtosis(rows.double().numpy(), axis=None, fisher=False)
            assert float(measured[step]) == pytest.approx(expected, rel=1e-9), key


def test_rows_of_zeros_do_not_count(tiny):
    pipeline = tiny.make_pipeline()
    sums = run(tiny, pipeline).sums
    forwards = len(tiny.prompts)
    text = sums["conditional/llm_cond_proj"][0][0]
    assert text == forwards * tiny.text_tokens * 13 * 16  # image rows hold no text features
    image = sums["conditional/input_proj"][0][0]
    assert image == forwards * tiny.image_tokens * 16


def test_padding_does_not_count(tiny):
    pipeline = tiny.make_pipeline()
    plain, padded = run(tiny, pipeline), run(tiny, pipeline, padding=7)
    for key, sums in plain.sums.items():
        assert torch.equal(padded.sums[key][:, 0], sums[:, 0]), key
        # padding changes the blocking of fp32 sums in attention and products, nothing else
        torch.testing.assert_close(padded.maxima[key], plain.maxima[key], rtol=1e-4, atol=1e-5)


def test_merging_equals_recording_together(tiny):
    pipeline = tiny.make_pipeline()
    whole = run(tiny, pipeline)
    merged = merge(run(tiny, pipeline, tiny.prompts[::2]), run(tiny, pipeline, tiny.prompts[1::2]))
    for key in whole.sums:
        assert torch.equal(merged.maxima[key], whole.maxima[key])
        # the same fp64 values added in another order
        torch.testing.assert_close(merged.sums[key], whole.sums[key], rtol=1e-12, atol=1e-9)


def test_merge_refuses_other_activations():
    one = Moments({"a": torch.zeros(2, 4)}, {"a": torch.zeros(2, 5)})
    other = Moments({"a": torch.zeros(3, 4)}, {"a": torch.zeros(3, 5)})
    with pytest.raises(ValueError, match="same activations and steps, got 1 and 1"):
        merge(one, other)


def test_known_kurtoses():
    generator = torch.Generator().manual_seed(0)
    gauss = torch.randn(200_000, generator=generator, dtype=torch.float64)
    # the standard error of a Gaussian's kurtosis is sqrt(24 / n) = 0.011
    assert float(kurtosis(power_sums(gauss))) == pytest.approx(3.0, abs=0.05)
    signs = torch.tensor([-1.0, 1.0] * 8, dtype=torch.float64)
    assert float(kurtosis(power_sums(signs))) == pytest.approx(1.0)
    spike = torch.zeros(1000, dtype=torch.float64)
    spike[3] = 1.0
    assert float(kurtosis(power_sums(spike))) == pytest.approx(1000, rel=0.01)
    assert float(kurtosis(power_sums(gauss + 1000))) == pytest.approx(3.0, abs=0.06)
    assert kurtosis(power_sums(torch.full((9,), 0.1, dtype=torch.float64))).isnan()


def test_hooks_go_whatever_happens(tiny):
    pipeline = tiny.make_pipeline()
    with (
        pytest.raises(RuntimeError, match="stop"),
        recording_moments(tiny.branch_modules(pipeline), tiny.architecture),
    ):
        assert hook_count(pipeline) == 2 * (1 + len(tiny.architecture.groups))
        raise RuntimeError("stop")
    assert hook_count(pipeline) == 0


def test_branch_without_indicator_counts_every_row(tiny):
    linear = torch.nn.Linear(3, 2)
    group = SimpleNamespace(name="g", targets=("0",))
    plain = SimpleNamespace(groups=[group], indicator_argument=None, padding_indicator=0)
    module = torch.nn.Sequential(linear)
    with recording_moments({"b": module}, plain) as recorder:
        recorder.begin_prompt()
        module(torch.tensor([[[1.0, -2.0, 0.0], [0.0, 0.0, 3.0]]]))
    moments = recorder.moments()
    assert moments.sums["b/g"].tolist() == [[6.0, 2.0, 14.0, 20.0, 98.0]]
    assert moments.maxima["b/g"].tolist() == [[1.0, 2.0, 3.0]]


def test_refuses_activations_that_are_not_finite(tiny):
    pipeline = tiny.make_pipeline()
    pipeline.transformer.layers[1].attention_norm1.weight.data[3] = torch.nan
    match = "conditional/layers.1.attention.qkv must be finite, got NaN or infinity; run the model"
    with pytest.raises(UserError, match=match):
        run(tiny, pipeline)
