"""META stands in for a GPU where only the places of tensors count."""

import copy

import pytest
import torch

from dit8.models import offload
from dit8.models.engine.forward import EngineBranch
from dit8.models.offload import CONDITIONING, TEXT, BranchGuest, Guest
from dit8.quant.errors import UserError
from dit8.quant.formats.table import FORMATS
from dit8.quant.int8 import quantize_weight
from dit8.quant.linear import Int8Linear, WeightOnlyLinear, swap_linears

CPU, META = torch.device("cpu"), torch.device("meta")


def tensors_of(module):
    yield from module.named_parameters()
    yield from module.named_buffers()


def addresses(module):
    return {name: tensor.data_ptr() for name, tensor in tensors_of(module)}


@pytest.fixture
def branch(toy):
    """A branch whose linears are stock, int8 with smooth vectors, and NF4."""
    module = copy.deepcopy(toy.transformer)
    found, replacements = dict(module.named_modules()), {}
    for part in ("to_q", "to_k", "to_v"):
        weight = found[f"layers.0.attention.{part}"].weight.detach()
        smooth = torch.full((128,), 2.0)
        codes, scales = quantize_weight(weight * smooth)
        replacements[f"layers.0.attention.{part}"] = Int8Linear(codes, scales, smooth)
    name = "layers.1.feed_forward.w1"
    codec, weight = FORMATS["nf4"].codec, found[name].weight.detach()
    replacements[name] = WeightOnlyLinear(codec, codec.encode(weight), tuple(weight.shape))
    swap_linears(module, replacements)
    return module


def test_a_guest_comes_back_to_the_same_memory(branch):
    guest = Guest("a branch", branch.modules())
    before, values = addresses(branch), copy.deepcopy(branch.state_dict())
    for _ in range(2):
        guest.enter(META)
        places = {name: tensor.device for name, tensor in tensors_of(branch)}
        stays = [name for name, place in places.items() if place != META]
        # read by the host in every call
        assert stays == ["layers.1.feed_forward.w1.stored_weight_quant_state_bitsandbytes__nf4"]
        guest.leave()
        guest.leave()  # nothing more to do
        assert addresses(branch) == before
    after = branch.state_dict()
    assert all(torch.equal(after[name], value) for name, value in values.items())
    assert guest.nbytes == sum(tensor.nbytes for _, tensor in tensors_of(branch))


def test_a_parameter_stays_the_same_object(branch):
    weight = branch.layers[0].feed_forward.w2.weight
    guest = Guest("a branch", branch.modules())
    guest.enter(META)
    assert branch.layers[0].feed_forward.w2.weight.device == META
    guest.leave()
    assert branch.layers[0].feed_forward.w2.weight is weight and weight.device == CPU


def place_of(branch, groups):
    """Name the devices of the tensors whose name has one of these words."""
    return {
        tensor.device
        for name, tensor in tensors_of(branch)
        if set(groups) & set(name.split(".")) and "quant_state" not in name
    }


def test_what_a_table_holds_leaves_early(branch):
    guest = BranchGuest("conditional", EngineBranch(branch))
    body = ("attention", "feed_forward", "input_proj", "linear", "rotary_emb", "norm_q")
    guest.enter(META, with_text=True)
    for groups in (CONDITIONING, TEXT, body):
        assert place_of(branch, groups) == {META}
    guest.shrink()
    assert place_of(branch, CONDITIONING) == place_of(branch, TEXT) == {CPU}
    assert place_of(branch, body) == {META}
    guest.leave()
    assert {tensor.device for _, tensor in tensors_of(branch)} == {CPU}
    guest.enter(META, with_text=False)
    assert place_of(branch, TEXT) == {CPU}
    assert place_of(branch, (*CONDITIONING, *body)) == {META}


def test_stacked_weights_travel_once_and_stay_stacked(branch):
    engine = EngineBranch(branch)
    guest = BranchGuest("conditional", engine)
    before = addresses(branch)
    moved = []

    def fake_device(tensor):  # another place of the same memory
        moved.append(tensor.nbytes)
        return tensor.clone()

    for part in (guest._conditioning, guest._text, guest._body):
        for module, _ in part._home:
            module._apply(fake_device, recurse=False)
    guest._share()
    copies = addresses(branch)
    kept = {name for name in before if copies[name] == before[name]}
    own = {name.rpartition(".")[2] for name in kept if "quant_state" not in name}
    assert own <= {"ws", "smooth"}  # which Int8Linear moves itself
    for block in engine.blocks:
        for projection in (p for p in block.projections if p.is_stacked):
            name = "wq" if isinstance(projection.linear, Int8Linear) else "weight"
            whole = getattr(projection.linear, name)
            assert getattr(projection.parts[0], name).data_ptr() == whole.data_ptr()
    weights = sum(tensor.nbytes for _, tensor in tensors_of(branch))
    smooth = 3 * 128 * 4  # three views of one vector count three times
    exact = 3 * 128 * 4  # scales
    assert weights - smooth - exact <= sum(moved) <= weights + smooth
    guest.leave()
    assert addresses(branch) == before


def test_a_branch_that_left_forgets_its_layouts(branch):
    engine = EngineBranch(branch)
    guest = BranchGuest("conditional", engine)
    guest.enter(CPU, with_text=True)
    engine.tabulate(torch.tensor([0.5]))
    engine.prepare([torch.randn(3, 416)], (2, 2), 1)
    guest.leave()
    with pytest.raises(ValueError, match="call tabulate and prepare first"):
        engine.velocity(torch.zeros(1, 4, 64), 0)


def test_a_guest_that_does_not_fit_is_one_sentence(branch, monkeypatch):
    def fail(self, function, recurse):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    guest = BranchGuest("conditional", EngineBranch(branch))
    monkeypatch.setattr(type(branch.layers[0].feed_forward.w2), "_apply", fail)
    match = r"adaLN of the conditional branch \(0.00 GB\) needs more GPU memory than is free; use a"
    with pytest.raises(UserError, match=match):
        guest.enter(META, with_text=True)
    assert offload.REMEDY.startswith("use a variant with smaller weights")
