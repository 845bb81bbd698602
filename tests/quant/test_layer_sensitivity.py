import copy

import pytest
import torch
from torch import nn

from dit8.quant.errors import UserError
from dit8.quant.int8 import dequantize, quantize_rows, quantize_weight
from dit8.quant.layer_sensitivity import (
    exchanged,
    plain_int8,
    record_inputs,
    velocities,
    velocity_damage,
)
from dit8.quant.linear import Int8Linear

W2 = "layers.1.feed_forward.w2"


@pytest.fixture
def branch(tiny):
    """One branch with six recorded calls and their references."""
    module = tiny.make_branch(0)
    with torch.no_grad():
        nn.init.normal_(module.final_layer.linear.weight, std=0.1)

    def generate(prompt):
        for step in range(2):
            tiny.run_branch(module, seed=prompt.seed + 10 * step, padding=3)

    calls = record_inputs({"b": module}, generate, tiny.prompts)["b"]
    return module, calls, velocities(module, calls)


def relative(v, reference):
    difference = (v.double() - reference.double()).norm()
    return float(difference / reference.double().norm())


def test_equals_the_error_of_a_model_built_with_the_change(branch, tiny):
    module, calls, references = branch
    changed = copy.deepcopy(module)
    linear = changed.get_submodule(W2)
    linear.weight.data += 0.05 * torch.randn_like(linear.weight)
    damage = velocity_damage(module, calls, {W2: copy.deepcopy(linear)}, references)
    assert damage.dtype == torch.float64 and damage.shape == (6,)
    with torch.no_grad():
        outputs = [changed(**call.kwargs)[0][0, -tiny.image_tokens :] for call in calls]
    expected = [relative(v, r) for v, r in zip(outputs, references, strict=True)]
    torch.testing.assert_close(damage, torch.tensor(expected, dtype=torch.float64))
    assert damage.min() > 1e-4


def test_no_change_is_no_damage(branch):
    module, calls, references = branch
    same = {W2: copy.deepcopy(module.get_submodule(W2))}
    assert torch.equal(velocity_damage(module, calls, same, references), torch.zeros(6).double())


def test_text_rows_do_not_count(branch):
    module, calls, references = branch

    class HurtsText(nn.Module):
        """The output projection, plus an error on every row that is not of the image."""

        def forward(self, x):
            y = linear(x)
            y[:, : -references[0].shape[0]] += 1.0
            return y

    linear = module.final_layer.linear
    damage = velocity_damage(module, calls, {"final_layer.linear": HurtsText()}, references)
    assert not damage.any()


def test_batches_agree_and_report(branch):
    module, calls, references = branch
    replacements = plain_int8(module, [W2])
    single = velocity_damage(module, calls, replacements, references)
    seen = []
    batched = velocity_damage(
        module, calls, replacements, references, batch=4, progress=seen.append
    )
    assert seen == [4, 2]
    # fp32 blocking moves a few activations across a rounding boundary of int8
    torch.testing.assert_close(batched, single, rtol=0.05, atol=1e-6)


def test_plain_int8_is_per_channel_per_row_and_unsmoothed(tiny):
    module = tiny.make_branch(0)
    names = ["llm_cond_proj", "layers.0.attention.to_q"]
    replacements = plain_int8(module, names)
    assert list(replacements) == names
    for name, replacement in replacements.items():
        linear = module.get_submodule(name)
        assert isinstance(replacement, Int8Linear) and replacement.smooth is None
        codes, scales = quantize_weight(linear.weight.detach())
        assert torch.equal(replacement.wq, codes) and torch.equal(replacement.ws, scales)
        x = torch.randn(5, linear.in_features)
        x_codes, x_scales = quantize_rows(x)
        product = (
            dequantize(x_codes, x_scales, torch.float64)
            @ dequantize(codes, scales[:, None], torch.float64).T
        )
        expected = product + (0 if linear.bias is None else linear.bias.detach().double())
        torch.testing.assert_close(replacement(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_linears_are_back_whatever_happens(branch):
    module, calls, references = branch
    original = module.get_submodule(W2)
    velocity_damage(module, calls, plain_int8(module, [W2]), references)
    assert module.get_submodule(W2) is original
    with pytest.raises(RuntimeError, match="stop"), exchanged(module, plain_int8(module, [W2])):
        assert isinstance(module.get_submodule(W2), Int8Linear)
        raise RuntimeError("stop")
    assert module.get_submodule(W2) is original


def test_refuses_what_is_no_linear(branch):
    module, calls, references = branch
    with pytest.raises(UserError, match="layers.9.w2 must be a torch.nn.Linear, got NoneType"):
        velocity_damage(module, calls, {"layers.9.w2": nn.Identity()}, references)
    with pytest.raises(ValueError, match="references must be 6, one a call, got 5"):
        velocity_damage(module, calls, {}, references[:5])
