import pytest

from dit8.eval.score import Settings, configure, configure_all, parse_options
from dit8.eval.scorers import SCORERS
from dit8.quant.errors import UserError


def test_without_settings_a_scorer_stays_as_it_is():
    for name, scorer in SCORERS.items():
        assert configure(name, Settings()) == scorer


def test_settings_reach_the_scorers_that_have_them():
    options = {"clipscore": {"backbone": "ViT-L-14", "checkpoint": "x.pt"}}
    settings = Settings(readers=3, score_text="caption_json", options=options)
    assert configure("ocr_exact", settings).workers == 3
    assert configure("psnr", settings) == SCORERS["psnr"]
    clip = configure("clipscore", settings)
    assert (clip.backbone, clip.checkpoint) == ("ViT-L-14", "x.pt")
    assert clip.score_text == configure("clip_mini", settings).score_text == "caption_json"
    assert configure("lpips", Settings(options={"lpips": {"device": "cpu"}})).device == "cpu"


def test_a_scorers_own_text_goes_before_everyones():
    options = {"clipscore": {"score_text": "content"}}
    scorers = configure_all(
        ["clipscore", "hpsv2"], Settings(score_text="caption_json", options=options)
    )
    assert [scorer.score_text for scorer in scorers] == ["content", "caption_json"]
    assert configure("clip_mini", Settings()).score_text == "content"
    assert configure("clipscore", Settings()).score_text == "idea"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            Settings(score_text="poem"),
            "score_text must be one of idea, .*, got 'poem'; correct the name",
        ),
        (
            Settings(options={"psnr": {"score_text": "idea"}}),
            r"scorer psnr has no setting 'score_text', expected one of \(none\); correct or drop",
        ),
        (
            Settings(options={"clipscore": {"higher_is_better": False}}),
            "scorer clipscore has no setting 'higher_is_better', expected one of backbone, checkpo",
        ),
        (
            Settings(options={"clipscore": {"score_text": "poem"}}),
            "score_text must be one of idea, .*, got 'poem'",
        ),
        (
            Settings(options={"lpips": {"device": "cpu"}}),
            "settings are given for scorer lpips, expected one of psnr, clipscore; add it",
        ),
    ],
)
def test_a_setting_that_nobody_would_use_is_refused(settings, match):
    with pytest.raises(UserError, match=match):
        configure_all(["psnr", "clipscore"], settings)


def test_a_text_is_checked_where_no_scorer_would_see_it():
    with pytest.raises(UserError, match="score_text must be one of idea, .*, got 'poem'"):
        configure_all(["psnr"], Settings(score_text="poem"))


def test_assignments_become_options():
    texts = ["clipscore.backbone=local-dir:a=b", "clipscore.device=cpu", "lpips.checkpoint=x.pth"]
    assert parse_options(texts) == {
        "clipscore": {"backbone": "local-dir:a=b", "device": "cpu"},
        "lpips": {"checkpoint": "x.pth"},
    }
    assert parse_options([]) == {}


@pytest.mark.parametrize("text", ["clipscore", "clipscore=x", "clipscore.device=", ".a=b", "a.=b"])
def test_an_assignment_of_another_form_is_refused(text):
    with pytest.raises(UserError, match="must look like clipscore.backbone=ViT-L-14, got"):
        parse_options([text])
