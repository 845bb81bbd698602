"""clipscore, clip_mini, pickscore and hpsv2: equations, text, weights that are not there."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dit8.eval import text_image
from dit8.eval.clip_models import Backbone, Towers, load_towers
from dit8.eval.images import load_rgb
from dit8.eval.scorers import SCORERS
from dit8.eval.scorers.clipscore import CLIP_MINI
from dit8.eval.scorers.hpsv2 import MEAN, STD, letterbox
from dit8.models.types import Sample
from dit8.quant.errors import UserError

NAMES = ("clip_mini", "clipscore", "hpsv2", "hpsv2_v20", "pickscore")


@pytest.fixture
def scorers(tiny_clip, transformers_clip):
    """All five on tiny weights, comparing ideas."""
    own = {
        "clip_mini": {"backbone": f"local-dir:{tiny_clip.folder}"},
        "clipscore": {"checkpoint": str(transformers_clip)},
        "pickscore": {"checkpoint": str(transformers_clip)},
        "hpsv2": {"checkpoint": str(tiny_clip.checkpoint), "backbone": tiny_clip.name},
        "hpsv2_v20": {"checkpoint": str(tiny_clip.checkpoint), "backbone": tiny_clip.name},
    }
    return {
        name: dataclasses.replace(SCORERS[name], score_text="idea", device="cpu", **own[name])
        for name in NAMES
    }


def cosines(scorer, pictures) -> np.ndarray:
    """Cosines by the towers alone; these are tested in test_clip_models.py."""
    towers = load_towers(scorer.locate(scorer), "cpu")
    pairs = [(towers.image(load_rgb(s.image_path)), towers.text(s.prompt.idea)) for s in pictures]
    return np.array([float(torch.dot(a, b)) for a, b in pairs])


def test_each_score_is_its_equation(scorers, pictures):
    factors = {"hpsv2": 1, "hpsv2_v20": 1, "pickscore": 50, "clipscore": 100, "clip_mini": 100}
    for name, scorer in scorers.items():
        expected = factors[name] * cosines(scorer, pictures)
        if name.startswith("clip"):
            expected = expected.clip(min=0)
        values = scorer.score(pictures)
        assert values.dtype == np.float64 and len(set(values)) > 1
        # fp32 features of length 1, then one dot product in fp64
        assert values == pytest.approx(expected, rel=1e-5, abs=1e-5), name
        assert all(scorer.bounds[0] <= value <= scorer.bounds[1] for value in values)


def test_a_negative_cosine_is_zero_for_clipscore_only(scorers, pictures, monkeypatch):
    def opposite(backbone, device):
        away = torch.tensor([-0.6, 0.8])
        return Towers(lambda _: away, lambda _: torch.tensor([1.0, 0.0]), lambda _: away, 50.0)

    monkeypatch.setattr(text_image, "load_towers", opposite)
    values = {name: scorer.score(pictures[:1])[0] for name, scorer in scorers.items()}
    expected = {"clip_mini": 0, "clipscore": 0, "hpsv2": -0.6, "hpsv2_v20": -0.6, "pickscore": -30}
    assert values == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_value_depends_neither_on_order_nor_on_company(scorers, pictures, name):
    values = scorers[name].score(pictures)
    assert np.array_equal(scorers[name].score(pictures[::-1]), values[::-1])
    assert np.array_equal([scorers[name].score([p])[0] for p in pictures], values)
    assert scorers[name].score([]).shape == (0,)


def test_rounding_cannot_leave_the_bounds(scorers, pictures, monkeypatch):
    long = torch.tensor([1.0 + 1e-7])
    towers = Towers(lambda _: long, lambda _: long, lambda _: long, 50.0)
    monkeypatch.setattr(text_image, "load_towers", lambda backbone, device: towers)
    assert scorers["hpsv2"].score(pictures[:1])[0] == 1.0


def test_a_nan_stays_a_nan(scorers, pictures, monkeypatch):
    """So that it is seen: a maximum with zero could hide it."""
    nothing = torch.tensor([float("nan")])
    towers = Towers(lambda _: nothing, lambda _: nothing, lambda _: nothing, 50.0)
    monkeypatch.setattr(text_image, "load_towers", lambda backbone, device: towers)
    for name, scorer in scorers.items():
        assert np.isnan(scorer.score(pictures[:1])[0]), name


def test_the_text_is_part_of_the_score(scorers, pictures):
    by_idea = scorers["pickscore"].score(pictures)
    other = dataclasses.replace(scorers["pickscore"], score_text="caption_json")
    assert not np.allclose(other.score(pictures), by_idea, atol=1e-3)
    assert other.identity()["score_text"] == "caption_json"


def with_prompt(sample: Sample, **fields) -> Sample:
    return dataclasses.replace(sample, prompt=dataclasses.replace(sample.prompt, **fields))


def test_tokens_cut_off_are_counted(scorers, pictures):
    words = [with_prompt(pictures[0], idea=" ".join("a" * n)) for n in (14, 15, 20)]
    for name in ("clipscore", "clip_mini"):  # a context of 16 holds 14 words of one token
        assert scorers[name].text_record(words) == {
            "score_text": "idea",
            "texts": 3,
            "texts_truncated": 2,
            "tokens_cut": 7,
        }


def test_a_prompt_without_idea_stops_the_scorer_before_it_loads(scorers, pictures, monkeypatch):
    monkeypatch.setattr(text_image, "load_towers", lambda *_: pytest.fail("loaded"))
    bare = [*pictures, with_prompt(pictures[0], id="bare", idea="")]
    with pytest.raises(UserError, match="prompt bare has no idea"):
        scorers["hpsv2"].score(bare)


def test_what_a_run_records(scorers, transformers_clip, tiny_clip):
    records = {name: scorer.identity() for name, scorer in scorers.items()}
    json.dumps(records, allow_nan=False)
    digest = hashlib.sha256((transformers_clip / "model.safetensors").read_bytes()).hexdigest()
    assert records["pickscore"]["sha256"] == digest
    assert records["pickscore"]["environment"]["transformers"].startswith("5.")
    assert records["hpsv2"]["weights"] == "tiny.pt"
    assert records["hpsv2"]["environment"]["open-clip-torch"].startswith("3.")
    # a record that is committed may not name this machine's folders
    assert all(
        str(tiny_clip.folder.parent) not in json.dumps(r)
        for n, r in records.items()
        if n != "clip_mini"
    )


def test_other_weights_than_expected_are_refused(scorers, pictures):
    for name, scorer in scorers.items():
        wrong = dataclasses.replace(scorer, sha256="0000")
        with pytest.raises(UserError, match=r"has the sha256 \w{64}, expected 0000; delete"):
            wrong.score(pictures)
        with pytest.raises(UserError, match="expected 0000"):
            wrong.identity()
        right = dataclasses.replace(scorer, sha256=scorer.identity()["sha256"])
        assert np.array_equal(right.score(pictures), scorer.score(pictures)), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "clipscore",
            r"openai/clip-vit-base-patch32 .* get it with `hf download openai/clip-vit-ba",
        ),
        (
            "pickscore",
            r"PickScore_v1 \(3.9 GB\) is not in the hub's cache; get it with `hf downloa",
        ),
        (
            "hpsv2",
            r"HPS_v2.1_compressed.pt of xswu/HPSv2 \(2 GB\) .* get it with `hf download xswu",
        ),
        ("hpsv2_v20", r"HPS_v2_compressed.pt of .* get it with `hf download xswu/HPSv2 HPS_v2_com"),
    ],
)
def test_without_weights_nothing_is_measured(hub_cache, pictures, name, message):
    obstacle = SCORERS[name].obstacle()
    assert obstacle.startswith("not measured: ")
    with pytest.raises(UserError, match=f"^{name} not measured: .*{message}"):
        SCORERS[name].score(pictures)
    with pytest.raises(UserError, match="not measured"):
        SCORERS[name].identity()


def test_a_path_that_is_not_there_is_named():
    for name in ("clipscore", "pickscore", "hpsv2"):
        scorer = dataclasses.replace(SCORERS[name], checkpoint="none/w.pt")
        assert scorer.obstacle() == (
            f"not measured: checkpoint none/w.pt of {name} does not exist; correct the path"
        )


def test_a_folder_without_weights_is_named(tmp_path):
    for name in ("clipscore", "pickscore"):
        scorer = dataclasses.replace(SCORERS[name], checkpoint=str(tmp_path))
        assert "holds no model.safetensors; get it with `hf download" in scorer.obstacle()
    scorer = dataclasses.replace(SCORERS["clip_mini"], backbone=f"local-dir:{tmp_path}")
    assert "name a folder of open_clip" in scorer.obstacle()


def test_clip_mini_says_how_it_is_made(monkeypatch, tmp_path):
    monkeypatch.setattr("dit8.eval.scorers.clipscore.ROOT", tmp_path)
    assert SCORERS["clip_mini"].backbone == CLIP_MINI
    assert SCORERS["clip_mini"].obstacle() == (
        "not measured: models/clip_mini holds no open_clip_config.json with "
        "open_clip_model.safetensors; get it with "
        "`python scripts/train_clip_mini.py --folder models/clip_mini`"
    )


def test_a_named_architecture_needs_its_file(tiny_clip, pictures):
    scorer = dataclasses.replace(SCORERS["clipscore"], backbone=tiny_clip.name, device="cpu")
    assert "tiny-clip of open_clip needs its weights; get it with checkpoint=" in scorer.obstacle()
    scorer = dataclasses.replace(scorer, checkpoint=str(tiny_clip.checkpoint))
    assert scorer.obstacle() is None
    assert scorer.score(pictures).shape == (3,)


def test_a_package_that_is_not_installed_is_named(scorers, monkeypatch):
    monkeypatch.setattr(text_image, "missing_packages", lambda library: ["open-clip-torch"])
    assert scorers["hpsv2"].obstacle() == (
        "not measured: open-clip-torch is not installed; get it with "
        "`pip install -c constraints.txt -e '.[clip]'`"
    )


def test_the_hub_cache_is_used(hub_cache, transformers_clip, tiny_clip, pictures, scorers):
    for repo, names in (
        ("openai/clip-vit-base-patch32", (p.name for p in transformers_clip.iterdir())),
        ("yuvalkirstain/PickScore_v1", ("model.safetensors", "config.json")),
        (
            "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
            ("preprocessor_config.json", "tokenizer.json"),
        ),
    ):
        for name in names:
            hub_cache(repo, name, transformers_clip / name)
    hub_cache("xswu/HPSv2", "HPS_v2.1_compressed.pt", tiny_clip.checkpoint)
    for name in ("clipscore", "pickscore"):
        cached = dataclasses.replace(SCORERS[name], device="cpu")
        assert cached.obstacle() is None
        assert np.array_equal(cached.score(pictures), scorers[name].score(pictures))
    cached = dataclasses.replace(SCORERS["hpsv2"], backbone=tiny_clip.name, device="cpu")
    assert np.array_equal(cached.score(pictures), scorers["hpsv2"].score(pictures))
    assert SCORERS["hpsv2_v20"].obstacle() is not None  # the other version is not there


def test_pickscore_without_its_processor_names_that(hub_cache, transformers_clip):
    for name in ("model.safetensors", "config.json"):
        hub_cache("yuvalkirstain/PickScore_v1", name, transformers_clip / name)
    assert (
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K (4 MB) is not in" in SCORERS["pickscore"].obstacle()
    )


@pytest.mark.parametrize("shape", [(64, 64), (100, 37), (24, 64), (300, 201)])
def test_letterbox_is_hpsv2s(open_clip, shape):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = F.to_tensor(Image.fromarray(pixels))
    size = tuple(round(side * 64 / max(shape)) for side in shape)
    image = F.resize(image, list(size), InterpolationMode.BICUBIC)
    gap = [64 - side for side in size]
    sides = [gap[1] // 2, gap[0] // 2, gap[1] - gap[1] // 2, gap[0] - gap[0] // 2]
    expected = F.normalize(F.pad(image, sides, fill=0), MEAN, STD)
    # the same fp32 operations; division by 255 and by std may round once each
    assert torch.allclose(letterbox(pixels, 64), expected, atol=1e-6)
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    if shape == (24, 64):
        assert torch.allclose(letterbox(pixels, 64)[:, 0, 0], black)
        assert torch.allclose(letterbox(pixels, 64)[:, -1, -1], black)


def test_hpsv2_sees_the_whole_picture_where_clip_crops(tiny_clip, pictures):
    backbone = Backbone("open_clip", tiny_clip.name, tiny_clip.checkpoint)
    wide = load_rgb(pictures[2].image_path)
    changed = wide.copy()
    changed[:, :3] = 0  # a margin that the centre crop leaves out
    crop = load_towers(backbone, "cpu").prepare
    letter = load_towers(dataclasses.replace(backbone, preprocess=letterbox), "cpu").prepare
    assert torch.equal(crop(wide), crop(changed))
    assert not torch.equal(letter(wide), letter(changed))


def test_a_truncated_picture_is_named(scorers, pictures):
    path = pictures[1].image_path
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=f"{path.name}: cannot be read"):
        scorers["clipscore"].score(pictures)


def test_older_weights_are_taken_where_there_are_no_safetensors(
    transformers_clip, tmp_path, scorers, pictures
):
    from safetensors.torch import load_file

    folder = tmp_path / "clip"
    shutil.copytree(transformers_clip, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    old = dataclasses.replace(scorers["pickscore"], checkpoint=str(folder))
    assert old.identity()["weights"] == "pytorch_model.bin"
    # weights at other addresses: the matrix products may add in another order
    assert old.score(pictures) == pytest.approx(scorers["pickscore"].score(pictures), rel=1e-5)
