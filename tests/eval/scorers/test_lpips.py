"""LPIPS from a torch hub folder of made-up backbones, against its equation."""

import dataclasses
import hashlib
import importlib.util

import numpy as np
import pytest
import torch

from dit8.eval.scorers import get_scorer
from dit8.eval.scorers import lpips as scorer_file
from dit8.eval.scorers.lpips import NETWORKS, PACKAGES, Network, distance
from dit8.models.torchvision_shim import import_torchvision
from dit8.quant.errors import UserError

needs_lpips = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES),
    reason="needs the extra: pip install -e '.[lpips]'",
)
NAMES = {"lpips": "alex", "lpips_vgg": "vgg", "lpips_squeeze": "squeeze"}
# outputs of torchvision's `features` that the paper compares: every ReLU before a pooling for
# VGG, all five of AlexNet, and SqueezeNet's first ReLU, poolings' successors and fire modules
TAPS = {
    "alex": (1, 4, 7, 9, 11),
    "vgg": (3, 8, 15, 22, 29),
    "squeeze": (1, 4, 7, 9, 10, 11, 12),
}


def make_features(net: str) -> torch.nn.Module:
    """Make a backbone's features with random weights, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = getattr(import_torchvision().models, NETWORKS[net].function)(weights=None)
    return model.features.eval()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return a function that puts a backbone into a torch hub folder under its hash."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    scorer_file._load.cache_clear()

    def put(net: str) -> torch.nn.Module:
        features = make_features(net)
        state = {f"features.{name}": value for name, value in features.state_dict().items()}
        state["classifier.6.bias"] = torch.zeros(1000)  # as in the true file; not used
        folder = tmp_path / "torch" / "hub" / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, folder / "new.pth")
        digits = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()[:8]
        name = f"{net}-{digits}.pth"
        (folder / "new.pth").rename(folder / name)
        monkeypatch.setitem(NETWORKS, net, Network(NETWORKS[net].function, name))
        return features

    yield put
    scorer_file._load.cache_clear()


@pytest.fixture
def pairs(make_sample):
    rng = np.random.default_rng(2)
    first = rng.integers(0, 256, (64, 80, 3), dtype=np.uint8)
    other = np.clip(first + rng.normal(0, 40, first.shape), 0, 255).astype(np.uint8)
    samples = [make_sample(other, "p0"), make_sample(first, "p1", 1)]
    references = [
        make_sample(first, "p1", 1, folder="reference"),
        make_sample(first, "p0", folder="reference"),
    ]
    return samples, references, (first, other)


def lpips_by_hand(net: str, features: torch.nn.Module, a: np.ndarray, b: np.ndarray) -> float:
    """Compute equation 1 of Zhang et al. with torchvision's own network and the wheel's weights."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    heads = torch.load(scorer_file._heads(net), "cpu", weights_only=True)

    def unit_features(pixels: np.ndarray) -> list[torch.Tensor]:
        x = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 * 2 - 1
        x, found = ((x - shift) / scale)[None], []
        for index, layer in enumerate(features):
            x = layer(x)
            if index in TAPS[net]:
                norm = x.double().square().sum(dim=1, keepdim=True).sqrt()
                found.append(x.double() / norm.clamp_min(1e-12))
        return found

    total = 0.0
    with torch.no_grad():
        for level, (y, y0) in enumerate(zip(unit_features(a), unit_features(b), strict=True)):
            weight = heads[f"lin{level}.model.1.weight"].double()  # (1, C, 1, 1)
            total += float(((y - y0) ** 2 * weight).sum(dim=1).mean())
    return total


@needs_lpips
@pytest.mark.parametrize("name", NAMES)
def test_the_score_is_the_papers_equation(name, hub, pairs):
    net = NAMES[name]
    features = hub(net)
    samples, references, (first, other) = pairs
    values = get_scorer(name).score(samples, references)
    # fp32 features against fp64 sums of them: 1e-5 is a hundred roundings
    assert values[0] == pytest.approx(lpips_by_hand(net, features, other, first), rel=1e-5)
    assert values[0] > 0.01
    assert values[1] == 0.0  # identical pictures


@needs_lpips
def test_every_weight_is_the_files_and_the_generator_is_not_moved(hub):
    features = hub("alex")
    scorer = get_scorer("lpips")
    before = torch.get_rng_state()
    model = scorer_file._load("alex", scorer._path, "cpu")
    assert torch.equal(torch.get_rng_state(), before)
    loaded = {name.partition(".")[2]: value for name, value in model.net.state_dict().items()}
    expected = features.state_dict()
    assert loaded.keys() == expected.keys() and len(loaded) == 10
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    heads = torch.load(scorer_file._heads("alex"), "cpu", weights_only=True)
    state = model.state_dict()
    assert len(heads) == 5 and all(torch.equal(state[name], heads[name]) for name in heads)


@needs_lpips
def test_a_file_from_elsewhere_is_taken_and_recorded(hub, pairs, tmp_path, monkeypatch):
    hub("alex")
    scorer = get_scorer("lpips")
    elsewhere = tmp_path / "mine.pth"
    scorer._path.rename(elsewhere)
    assert scorer.obstacle() is not None
    mine = dataclasses.replace(scorer, checkpoint=str(elsewhere))
    assert mine.obstacle() is None
    identity = mine.identity()
    assert identity["sha256"] == hashlib.sha256(elsewhere.read_bytes()).hexdigest()
    assert identity["net"] == "alex" and identity["version"] == "0.1"
    assert len(identity["heads_sha256"]) == 64
    assert mine.score(pairs[0], pairs[1])[0] > 0


@needs_lpips
@pytest.mark.parametrize("name", NAMES)
def test_without_weights_nothing_is_scored_at_random(name, tmp_path, monkeypatch, pairs):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    scorer, network = get_scorer(name), NETWORKS[NAMES[name]]
    reason = scorer.obstacle()
    where = "$TORCH_HOME/hub/checkpoints"  # no folder of this machine: the reason is recorded
    assert reason.startswith(f"not measured: {network.file} is not in {where}; get it with ")
    assert f"models.{network.function}(weights='DEFAULT')" in reason
    for call in (scorer.identity, lambda: scorer.score(pairs[0], pairs[1])):
        with pytest.raises(UserError, match=f"{name} not measured: {network.file} is not in"):
            call()


def test_published_files_carry_their_hash():
    assert {net: NETWORKS[net].sha256 for net in NETWORKS} == {
        "alex": "7be5be79",
        "vgg": "397923af",
        "squeeze": "b8a52dc0",
    }


@needs_lpips
def test_a_wrong_file_is_refused(hub, pairs):
    hub("alex")
    scorer = get_scorer("lpips")
    damaged = bytearray(scorer._path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    scorer._path.write_bytes(damaged)
    digits = NETWORKS["alex"].sha256
    with pytest.raises(UserError, match=rf"has the sha256 \w+, expected {digits}; delete the file"):
        scorer.score(pairs[0], pairs[1])


@needs_lpips
def test_a_checkpoint_that_does_not_exist_is_named(tmp_path):
    scorer = dataclasses.replace(get_scorer("lpips"), checkpoint=str(tmp_path / "none.pth"))
    assert scorer.obstacle() == (
        f"not measured: checkpoint {tmp_path / 'none.pth'} of lpips does not exist; correct the "
        "path"
    )


@pytest.mark.parametrize(
    ("absent", "said"),
    [
        (("lpips",), "not measured: lpips is not installed; get it with `pip install .*lpips]"),
        (PACKAGES, "not measured: lpips and torchvision are not installed; get"),
    ],
)
def test_a_missing_package_is_named(absent, said, monkeypatch, pairs):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in absent else find_spec(name)
    )
    with pytest.raises(UserError, match=said):
        get_scorer("lpips").score(pairs[0], pairs[1])


@needs_lpips
def test_another_size_and_too_small_a_picture_are_named(hub, make_sample):
    hub("alex")
    scorer = get_scorer("lpips")
    large = np.zeros((64, 48, 3), dtype=np.uint8)
    sample, reference = make_sample(large, "p"), make_sample(large[:48], "p", folder="reference")
    with pytest.raises(UserError, match=r"variant/p_0.png is 48x64 px, .*48x48 px"):
        scorer.score([sample], [reference])
    sample = make_sample(large[:31], "p")
    reference = make_sample(large[:31], "p", folder="reference")
    with pytest.raises(UserError, match=r"p_0.png is 48x31 px, expected at least 32x32 px; gene"):
        scorer.score([sample], [reference])


@needs_lpips
@pytest.mark.gpu
def test_a_gpu_computes_the_same(hub, pairs):
    hub("alex")
    path = get_scorer("lpips")._path
    first, other = pairs[2]
    cpu = distance(scorer_file._load("alex", path, "cpu"), first, other, "cpu")
    gpu = distance(scorer_file._load("alex", path, "cuda"), first, other, "cuda")
    # fp32 on both; TF32 would differ by 1e-3
    assert gpu == pytest.approx(cpu, rel=2e-5)
