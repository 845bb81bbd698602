import pytest
import torch

from dit8.models.random_ideogram4 import IMAGE, SMALL, TEXT, RandomPrompt, build_random, run_random
from dit8.quant.architectures.ideogram4 import BRANCHES

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def branches():
    return build_random(2, full=False, dtype=torch.float32, device=CPU, seed=0)


def calls_of(branches, prompt, **keys):
    """Run and return what each branch was called with and what it answered."""
    seen = {branch: [] for branch in branches}
    handles = [
        module.register_forward_hook(
            lambda _, __, kwargs, out, b=branch: seen[b].append((kwargs, out[0])), with_kwargs=True
        )
        for branch, module in branches.items()
    ]
    run_random(branches, prompt, **{"steps": 3, "image_tokens": 9, "text_tokens": 4, **keys})
    for handle in handles:
        handle.remove()
    return seen


def test_widths_are_the_defaults_unless_small(branches):
    assert list(branches) == list(BRANCHES)
    for module in branches.values():
        assert {key: module.config[key] for key in SMALL} == SMALL
        assert len(module.layers) == 2 and not module.training
    with torch.device("meta"):
        full = build_random(1, full=True, dtype=torch.bfloat16, device=torch.device("meta"), seed=0)
    assert full["conditional"].layers[0].feed_forward.w2.weight.shape == (4608, 12288)
    assert full["conditional"].llm_cond_proj.weight.shape == (4608, 53248)


def test_dtype_and_seed_decide_the_weights(branches):
    again = build_random(2, full=False, dtype=torch.float32, device=CPU, seed=0)
    other = build_random(2, full=False, dtype=torch.bfloat16, device=CPU, seed=1)
    for name, tensor in branches["conditional"].state_dict().items():
        assert torch.equal(again["conditional"].state_dict()[name], tensor)
    assert other["conditional"].dtype == torch.bfloat16
    assert other["conditional"].rotary_emb.inv_freq.dtype == torch.float32  # positions need it
    assert torch.get_default_dtype() == torch.float32
    conditional, unconditional = (b.layers[0].feed_forward.w2.weight for b in branches.values())
    assert not torch.equal(conditional, unconditional)


def test_inputs_are_laid_out_as_the_pipeline_does(branches):
    seen = calls_of(branches, RandomPrompt("a", 1))
    assert [len(calls) for calls in seen.values()] == [3, 3]
    kwargs, output = seen["conditional"][0]
    assert kwargs["indicator"].tolist() == [[TEXT] * 4 + [IMAGE] * 9]
    assert kwargs["position_ids"][0, :5].tolist() == [
        [0, 0, 0],
        [1, 1, 1],
        [2, 2, 2],
        [3, 3, 3],
        [65536, 65536, 65536],
    ]
    assert kwargs["position_ids"][0, -1].tolist() == [65536, 65538, 65538]
    assert not kwargs["hidden_states"][0, :4].any() and kwargs["hidden_states"][0, 4:].all()
    assert kwargs["encoder_hidden_states"][0, :4].all()
    assert not kwargs["encoder_hidden_states"][0, 4:].any()
    assert output.shape == (1, 13, 16) and torch.isfinite(output).all()
    assert output[0, 4:].std() > 0.01  # nothing starts at zero, as the trained model's gates would
    kwargs, _ = seen["unconditional"][0]
    assert kwargs["indicator"].tolist() == [[IMAGE] * 9]
    assert not kwargs["encoder_hidden_states"].any()


def test_steps_move_time_and_noise_but_not_the_text(branches):
    calls = [kwargs for kwargs, _ in calls_of(branches, RandomPrompt("a", 1))["conditional"]]
    assert [float(k["timestep"]) for k in calls] == pytest.approx([1 / 6, 3 / 6, 5 / 6])
    assert torch.equal(calls[0]["encoder_hidden_states"], calls[1]["encoder_hidden_states"])
    assert not torch.equal(calls[0]["hidden_states"], calls[1]["hidden_states"])


def test_the_seed_of_a_prompt_decides_its_inputs(branches):
    one, same, other = (
        calls_of(branches, RandomPrompt("x", seed))["conditional"][0][0]["hidden_states"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
