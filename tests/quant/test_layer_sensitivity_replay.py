import pytest
import torch
from torch import nn

from dit8.quant.errors import UserError
from dit8.quant.layer_sensitivity import IMAGE, record_inputs, velocities


def record(tiny, pipeline, prompts=None, steps=None, padding=0, **keys):
    return record_inputs(
        tiny.branch_modules(pipeline),
        lambda prompt: tiny.run_steps(pipeline, prompt, padding=padding),
        prompts or tiny.prompts,
        steps,
        **keys,
    )


def outputs(tiny, pipeline, padding=0):
    """Run the prompts again and keep what the branches return, beside the recorder."""
    kept = {branch: [] for branch in tiny.branch_modules(pipeline)}
    handles = [
        module.register_forward_hook(lambda _, __, out, b=branch: kept[b].append(out[0]))
        for branch, module in tiny.branch_modules(pipeline).items()
    ]
    for prompt in tiny.prompts:
        tiny.run_steps(pipeline, prompt, padding=padding)
    for handle in handles:
        handle.remove()
    return kept


def hook_count(pipeline):
    modules = [*pipeline.transformer.modules(), *pipeline.unconditional_transformer.modules()]
    return sum(len(module._forward_pre_hooks) for module in modules)


class Bare(nn.Module):
    """A branch that knows no indicator and takes unbatched positions, like a FLUX transformer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.batches = []

    def forward(self, x, positions, scale=1.0):
        self.batches.append(len(x))
        return scale * self.linear(x) + positions


def test_replays_what_the_branches_returned_on_image_rows(tiny):
    pipeline = tiny.make_pipeline()
    calls, expected = record(tiny, pipeline, padding=4), outputs(tiny, pipeline, padding=4)
    for branch, module in tiny.branch_modules(pipeline).items():
        assert [(c.prompt, c.step) for c in calls[branch]] == [
            (prompt.id, step) for prompt in tiny.prompts for step in range(tiny.steps)
        ]
        replayed = velocities(module, calls[branch])
        for v, output in zip(replayed, expected[branch], strict=True):
            assert v.shape == (tiny.image_tokens, 16)
            assert torch.equal(v, output[0, -tiny.image_tokens :])


def test_keeps_chosen_steps_only_in_their_dtype(tiny):
    pipeline = tiny.make_pipeline(torch.bfloat16)
    calls = record_inputs(
        {"conditional": pipeline.transformer},
        lambda prompt: [
            tiny.run_branch(pipeline.transformer, seed=prompt.seed) for _ in range(tiny.steps)
        ],
        tiny.prompts,
        {0, 2},
    )["conditional"]
    assert [c.step for c in calls] == [0, 2] * len(tiny.prompts)
    assert calls[0].kwargs["hidden_states"].dtype == torch.bfloat16
    assert calls[0].kwargs["position_ids"].dtype == torch.int64


def test_equal_tensors_are_kept_once_and_none_is_shared_with_the_model(tiny):
    module, x = Bare(), torch.ones(1, 2, 3)
    positions = torch.zeros(2, 3)

    def generate(prompt):
        module(x, positions)
        x.add_(1)  # a sampler may write into its latents
        module(x, positions)

    calls = record_inputs({"b": module}, generate, tiny.prompts[:2])["b"]
    assert [float(call.args[0].mean()) for call in calls] == [1.0, 2.0, 2.0, 3.0]
    assert len({call.args[1].data_ptr() for call in calls}) == 1
    assert calls[0].args[1].data_ptr() != positions.data_ptr()


def test_batches_give_the_same_velocities(tiny):
    pipeline = tiny.make_pipeline()
    calls = record(tiny, pipeline)
    for branch, module in tiny.branch_modules(pipeline).items():
        single, seen = velocities(module, calls[branch]), []
        batched = velocities(module, calls[branch], batch=4, progress=seen.append)
        assert seen == [4, 4, 1]  # steps and prompts alike, since t is per picture
        for a, b in zip(single, batched, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # fp32 sums, other blocking


def test_other_shapes_and_values_are_not_joined(tiny):
    module = Bare()
    ones, positions = torch.ones(1, 2, 3), torch.zeros(2, 3)

    def generate(prompt):
        module(ones, positions)
        module(2 * ones, positions)  # joined with the one before
        module(ones, positions + 1)  # positions are shared by a batch, so not joined
        module(torch.ones(1, 5, 3), torch.zeros(5, 3))  # another length
        module(ones, positions, scale=2.0)  # another argument
        module(ones, positions, scale=3.0)  # another value of it

    calls = record_inputs({"b": module}, generate, tiny.prompts[:1])["b"]
    expected = [module(*c.args, **c.kwargs)[0] for c in calls]
    module.batches.clear()
    replayed = velocities(module, calls, batch=8)
    assert module.batches == [2, 1, 1, 1, 1]
    for v, output in zip(replayed, expected, strict=True):
        torch.testing.assert_close(v, output)
    assert all(call.image_rows is None for call in calls)  # no indicator: all rows


def test_a_call_with_several_pictures_goes_alone(tiny):
    module, x = Bare(), torch.ones(2, 4, 3)
    generate = lambda prompt: (module(x, torch.zeros(4, 3)), module(2 * x, torch.zeros(4, 3)))  # noqa: E731
    calls = record_inputs({"b": module}, generate, tiny.prompts[:1])["b"]
    module.batches.clear()
    assert [tuple(v.shape) for v in velocities(module, calls, batch=8)] == [(8, 3), (8, 3)]
    assert module.batches == [2, 2]


def test_image_rows_are_those_of_the_indicator(tiny):
    call = record(tiny, tiny.make_pipeline(), padding=2)["conditional"][0]
    assert torch.equal(call.image_rows, call.kwargs["indicator"] == IMAGE)
    assert int(call.image_rows.sum()) == tiny.image_tokens


def test_reports_progress(tiny):
    seen = []
    record(tiny, tiny.make_pipeline(), progress=lambda *counts: seen.append(counts))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_hooks_go_whatever_happens(tiny):
    pipeline = tiny.make_pipeline()
    match = "prompt a must run at least 4 steps of conditional, got 3"
    with pytest.raises(ValueError, match=match):
        record(tiny, pipeline, steps=[3])
    assert hook_count(pipeline) == 0


def test_refuses_a_velocity_that_is_not_finite(tiny):
    pipeline = tiny.make_pipeline()
    calls = record(tiny, pipeline)["conditional"]
    pipeline.transformer.final_layer.linear.bias.data[0] = torch.inf
    with pytest.raises(UserError, match="of prompt a, step 0, must be finite, got NaN or infinity"):
        velocities(pipeline.transformer, calls)
