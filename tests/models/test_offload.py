"""models/offload.py on the CPU, with `.to` watched in place of a bus."""

import pytest
import torch

from dit8.models import offload
from dit8.models.generate import denoise
from dit8.models.offload import staged
from dit8.models.pipeline import load_pipeline
from dit8.quant.architectures.ideogram4 import branch_modules

CPU = torch.device("cpu")
META = torch.device("meta")
STEPS = 2  # of small_sampler; the last is unguided, but the pipeline runs both branches in each


@pytest.fixture
def pipeline(toy_folder):
    return load_pipeline(toy_folder, "float32", "float32", CPU)


@pytest.fixture
def visits(pipeline, monkeypatch):
    """Record, in order, who went where; on the CPU nothing else would show it."""
    moved = []
    for name, module in {"text": pipeline.text_encoder, **branch_modules(pipeline)}.items():

        def to(device, name=name):
            moved.append((name, str(device)))

        monkeypatch.setattr(module, "to", to)
    return moved


def hooks_of(pipeline):
    modules = branch_modules(pipeline).values()
    return [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in modules]


def test_the_latents_are_the_same_bit_for_bit(pipeline, toy_prompts, small_sampler):
    pictures, expected = denoise(pipeline, toy_prompts[:2], small_sampler)
    with staged(pipeline, CPU):
        staged_pictures, latents = denoise(pipeline, toy_prompts[:2], small_sampler)
    assert torch.equal(latents, expected)
    for one, other in zip(staged_pictures, pictures, strict=True):
        assert one.tobytes() == other.tobytes()


class Elsewhere:
    """A device beside the CPU's: each module's tensors are here or there, and only told so."""

    def __init__(self):
        self.on = set()
        self.most = 0

    def watch(self, name):
        def to(device):
            if str(device) == "cpu":
                self.on.discard(name)
            else:
                self.on.add(name)
            self.most = max(self.most, len(self.on))

        return to


def test_one_module_visits_at_a_time_and_all_of_them_do(
    pipeline, toy_prompts, small_sampler, monkeypatch
):
    elsewhere, seen = Elsewhere(), []
    visitors = {"text": pipeline.text_encoder, **branch_modules(pipeline)}
    # tensors stay where they are: moving them to META, a device that every machine has, loses them
    monkeypatch.setattr("dit8.models.offload._moved", lambda value, device: value)
    for name, module in visitors.items():
        monkeypatch.setattr(module, "to", elsewhere.watch(name))
    genuine = pipeline.text_encoder.language_model.embed_tokens.forward

    def embedded(tokens):
        seen.append(("text", set(elsewhere.on)))
        return genuine(tokens)

    monkeypatch.setattr(pipeline.text_encoder.language_model.embed_tokens, "forward", embedded)
    for name, module in branch_modules(pipeline).items():
        module.layers[0].register_forward_pre_hook(
            lambda *_, name=name: seen.append((name, set(elsewhere.on)))
        )
    with staged(pipeline, META):
        denoise(pipeline, toy_prompts[:1], small_sampler, decode=False)
        assert elsewhere.on == {"unconditional"}
    assert elsewhere.on == set()
    assert elsewhere.most == 1
    assert [name for name, _ in seen] == ["text", *STEPS * ["conditional", "unconditional"]]
    assert all(there == {name} for name, there in seen)


def test_modules_move_once_a_visit(pipeline, toy_prompts, small_sampler, visits):
    with staged(pipeline, CPU):
        denoise(pipeline, toy_prompts[:1], small_sampler, decode=False)
        inside = list(visits)
    # every visit sends the two others home and fetches its own: 3 moves
    assert len(inside) == 3 * (1 + 2 * STEPS)
    fetched = [name for name, _ in inside[2::3]]
    assert fetched == ["text", *STEPS * ["conditional", "unconditional"]]
    for start in range(0, len(inside), 3):
        assert len({name for name, _ in inside[start : start + 3]}) == 3
    assert visits[len(inside) :] == [(n, "cpu") for n in ("text", "conditional", "unconditional")]


def test_inputs_go_to_the_device_and_outputs_come_back(pipeline, visits, monkeypatch):
    """META stands in for the device: its tensors are shapes, so what comes back is only named."""
    genuine = offload._moved

    def moved(value, device):
        return genuine(value, device) if device == META else ("back", device, value)

    monkeypatch.setattr(offload, "_moved", moved)
    pipeline.transformer.forward = lambda x, *, pair: (x, pair)
    x = torch.ones(2)
    with staged(pipeline, META):
        name, device, (first, pair) = pipeline.transformer(x, pair=[x, (x, {"x": x}, 3)])
    assert (name, device) == ("back", CPU)
    assert first.is_meta and pair[0].is_meta and pair[1][0].is_meta and pair[1][1]["x"].is_meta
    assert (type(pair), type(pair[1]), pair[1][2]) == (list, tuple, 3)
    assert not x.is_meta


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_removed_afterwards(pipeline, toy_prompts, small_sampler, visits, fails):
    before = hooks_of(pipeline)
    encode = pipeline.encode_prompt
    if fails:
        with pytest.raises(RuntimeError, match="out of memory"):
            with staged(pipeline, CPU):
                assert hooks_of(pipeline) == [count + 2 for count in before]
                assert pipeline.encode_prompt != encode
                raise RuntimeError("out of memory")
    else:
        with staged(pipeline, CPU):
            pass
    assert hooks_of(pipeline) == before
    assert "encode_prompt" not in vars(pipeline)
    assert pipeline.encode_prompt == encode
    assert [name for name, _ in visits] == ["text", "conditional", "unconditional"]
    assert {device for _, device in visits} == {"cpu"}


def test_a_failing_step_brings_every_module_home(pipeline, toy_prompts, small_sampler, monkeypatch):
    _, expected = denoise(pipeline, toy_prompts[:1], small_sampler, decode=False)

    def fail(*_, **__):
        raise KeyboardInterrupt

    before = hooks_of(pipeline)
    with monkeypatch.context() as broken:
        broken.setattr(pipeline.unconditional_transformer.layers[1], "forward", fail)
        with pytest.raises(KeyboardInterrupt), staged(pipeline, CPU):
            denoise(pipeline, toy_prompts[:1], small_sampler, decode=False)
    assert hooks_of(pipeline) == before
    _, latents = denoise(pipeline, toy_prompts[:1], small_sampler, decode=False)
    assert torch.equal(latents, expected)


def test_an_encode_prompt_of_the_users_own_is_put_back(pipeline, toy_prompts, small_sampler):
    genuine, seen = pipeline.encode_prompt, []

    def own(*args, **kwargs):
        seen.append(kwargs["device"])
        return genuine(*args, **kwargs)

    pipeline.encode_prompt = own
    with staged(pipeline, CPU):
        denoise(pipeline, toy_prompts[:1], small_sampler, decode=False)
    assert pipeline.encode_prompt is own
    assert seen == [CPU]


@pytest.mark.gpu
def test_a_gpu_holds_one_module_at_a_time(pipeline, toy_prompts, small_sampler):
    cuda = torch.device("cuda")
    _, expected = denoise(pipeline, toy_prompts[:1], small_sampler, decode=False)
    with staged(pipeline, cuda):
        _, latents = denoise(pipeline, toy_prompts[:1], small_sampler, decode=False)
        modules = [pipeline.text_encoder, *branch_modules(pipeline).values()]
        places = [next(module.parameters()).device.type for module in modules]
        assert places == ["cpu", "cpu", "cuda"]
    # fp32 on another device: sums in another order, and TF32 is off by default
    assert (latents - expected).norm() / expected.norm() < 1e-3
    assert all(next(module.parameters()).device == CPU for module in modules)
