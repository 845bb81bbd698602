import pytest
import torch

from dit8.quant.calibrate import calibrate, load_stats
from dit8.quant.errors import UserError


def run(tiny, pipeline, path, prompts=None, generate=None, **keys):
    return calibrate(
        tiny.branch_modules(pipeline),
        tiny.architecture,
        generate or (lambda prompt: tiny.run_steps(pipeline, prompt)),
        prompts or tiny.prompts,
        path,
        **{"model_key": "tiny", "prompts_key": "abc", **keys},
    )


def assert_same(one, other):
    assert one.step_absmax.keys() == other.step_absmax.keys()
    for key, tensor in one.step_absmax.items():
        assert torch.equal(tensor, other.step_absmax[key]), key
    assert (one.rows, one.done, one.total) == (other.rows, other.done, other.total)


def hook_count(pipeline):
    modules = [*pipeline.transformer.modules(), *pipeline.unconditional_transformer.modules()]
    return sum(len(module._forward_pre_hooks) for module in modules)


def calibrated(tiny):
    return [group for group in tiny.architecture.groups if group.role != "rest"]


def test_maxima_equal_those_of_every_input_at_every_step(tiny, tmp_path):
    pipeline = tiny.make_pipeline()
    inputs = {}
    for branch, module in tiny.branch_modules(pipeline).items():
        for group in calibrated(tiny):
            for target in group.targets:  # every reader, to show that one activation is enough
                module.get_submodule(target).register_forward_pre_hook(
                    lambda _, args, key=(branch, group.name, target): inputs.setdefault(
                        key, []
                    ).append(args[0].flatten(0, -2))
                )
    stats = run(tiny, pipeline, tmp_path / "s.safetensors")
    for (branch, group, target), seen in inputs.items():
        for step in range(tiny.steps):
            rows = torch.cat(seen[step :: tiny.steps])  # this step of every prompt
            expected = rows.abs().amax(dim=0)
            assert torch.equal(stats.step_absmax[f"{branch}/{group}"][step], expected), target
    assert len(stats.step_absmax) == 2 * len(calibrated(tiny))  # q, k, v stored once
    forwards = len(tiny.prompts) * tiny.steps
    assert stats.rows == {
        "conditional": forwards * (tiny.text_tokens + tiny.image_tokens),
        "unconditional": forwards * tiny.image_tokens,
    }


def test_steps_differ_and_each_keeps_its_own(tiny, tiny_stats):
    tensor = tiny_stats.step_absmax["conditional/layers.0.feed_forward.w2"]
    assert tensor.shape == (tiny.steps, 256) and tensor.dtype == torch.float32
    assert not torch.equal(tensor[0], tensor[1])


def test_padded_rows_do_not_count(tiny, tmp_path):
    pipeline = tiny.make_pipeline()
    model, channel = pipeline.transformer, 5
    with torch.no_grad():
        # A padded row holds nothing but the indicator embedding of "not an image": make it huge
        # in one channel, and cancel it in text rows by the bias that only they receive.
        model.embed_image_indicator.weight[0, channel] = 100.0
        model.llm_cond_proj.bias[channel] = -100.0
    raw = []
    model.layers[0].attention.to_q.register_forward_pre_hook(
        lambda _, args: raw.append(args[0].abs().amax(dim=(0, 1))[channel].item())
    )
    plain = run(tiny, pipeline, tmp_path / "plain.safetensors")
    assert max(raw) < 6
    padded = run(
        tiny,
        pipeline,
        tmp_path / "padded.safetensors",
        generate=lambda prompt: tiny.run_steps(pipeline, prompt, padding=7),
    )
    assert max(raw) > 8  # the rows are there, and larger than any real one
    for key, tensor in plain.step_absmax.items():
        # padding changes the blocking of fp32 sums in attention and products, nothing else
        torch.testing.assert_close(padded.step_absmax[key], tensor, rtol=1e-4, atol=1e-5)
    assert padded.rows == plain.rows


@pytest.mark.parametrize("save_every", [1, 2])
def test_interrupted_calibration_continues_to_the_same_bits(tiny, tmp_path, save_every):
    pipeline = tiny.make_pipeline()
    unbroken = run(tiny, pipeline, tmp_path / "a.safetensors")
    path, ran = tmp_path / "b.safetensors", []

    def generate(prompt):
        ran.append(prompt.id)
        if len(ran) == 3:
            pipeline.transformer(**{})  # fails in the middle of the third prompt
        tiny.run_steps(pipeline, prompt)

    with pytest.raises(TypeError):
        run(tiny, pipeline, path, generate=generate, save_every=save_every)
    assert load_stats(path).done == ("a", "b")
    assert hook_count(pipeline) == 0
    progress = []
    resumed = run(
        tiny,
        pipeline,
        path,
        generate=generate,
        save_every=save_every,
        progress=lambda *counts: progress.append(counts),
    )
    assert ran == ["a", "b", "c", "c"]
    assert progress == [(2, 3), (3, 3)]
    assert_same(resumed, unbroken)
    assert_same(load_stats(path), unbroken)
    assert path.read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_finished_calibration_runs_nothing(tiny, tmp_path):
    pipeline, path = tiny.make_pipeline(), tmp_path / "s.safetensors"
    first = run(tiny, pipeline, path)
    again = run(tiny, pipeline, path, generate=lambda prompt: pytest.fail("ran a prompt"))
    assert_same(first, again)
    assert hook_count(pipeline) == 0


@pytest.mark.parametrize(
    "keys", [{"model_key": "other"}, {"prompts_key": "other"}], ids=["model", "prompts"]
)
def test_refuses_a_file_of_something_else(tiny, tmp_path, keys):
    pipeline, path = tiny.make_pipeline(), tmp_path / "s.safetensors"
    run(tiny, pipeline, path)
    with pytest.raises(UserError, match="must hold statistics of .*other.*delete it or write"):
        run(tiny, pipeline, path, **keys)


def test_refuses_activations_that_are_not_finite(tiny, tmp_path):
    pipeline, path = tiny.make_pipeline(), tmp_path / "s.safetensors"
    pipeline.transformer.layers[1].attention_norm1.weight.data[3] = torch.nan
    match = r"conditional/layers.1.attention.qkv must be finite, got NaN"
    with pytest.raises(UserError, match=match):
        run(tiny, pipeline, path)
    assert not path.exists()


def test_refuses_to_leave_a_branch_out(tiny, tmp_path):
    pipeline, path = tiny.make_pipeline(), tmp_path / "s.safetensors"

    def conditional_only(prompt):
        tiny.run_branch(pipeline.transformer)

    with pytest.raises(UserError, match="got no input of unconditional/layers.0.attention.qkv"):
        run(tiny, pipeline, path, generate=conditional_only)
    assert not path.exists()


def test_refuses_bad_arguments(tiny, tmp_path):
    pipeline, path = tiny.make_pipeline(), tmp_path / "s.safetensors"
    with pytest.raises(ValueError, match="prompts must have unique ids, got 2"):
        run(tiny, pipeline, path, prompts=[tiny.prompts[0]] * 2)
    with pytest.raises(ValueError, match="save_every must be >= 1, got 0"):
        run(tiny, pipeline, path, save_every=0)
