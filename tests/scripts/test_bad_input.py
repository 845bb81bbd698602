"""A user's mistake ends with exit code 2 and one sentence: what, got, expected, what to do."""

import shutil
from pathlib import Path

import pytest
import torch

from dit8.models import artifacts
from dit8.quant.formats.table import FORMATS
from dit8.scripts.cli import compose

W8A8 = FORMATS["w8a8"]

# script, overrides with {file} (a regular file) and {folder}, what the sentence must say
MISTAKES = {
    "unknown variant": ("evaluate", ["variant=int9"], "variant must be one of bf16, .*got 'int9'"),
    "unknown model": ("quantize", ["model=maxi"], "model must be one of ideogram4, .*got 'maxi'"),
    "unknown recipe": ("quantize", ["recipe=magic"], "recipe must be one of alpha.*got 'magic'"),
    "mistyped key": ("evaluate", ["stepz=3"], "'stepz'.*conf/schema.py lists every key"),
    "mistyped nested key": ("quantize", ["recipe.alhpa=1"], "'recipe.alhpa'.*lists every key"),
    "mistyped calibration": ("calibrate", ["calibration.m=1"], "'calibration.m'.*every key"),
    "wrong type": ("evaluate", ["steps=abc"], "'abc'.*conf/schema.py lists every key"),
    "no override": ("evaluate", ["steps"], "steps"),
    "recipe out of range": ("quantize", ["recipe.alpha=2"], "alpha must .*got 2"),
    "recipe protects what": ("quantize", ["recipe.protect=most"], "protect must .*got 'most'"),
    "no such model folder": ("quantize", ["model.path={folder}/none"], "must be a diffusers folde"),
    "size": ("evaluate", ["size=100"], "size must be a multiple of 16 pixels, got 100; use 96"),
    "size of generate": ("generate", ["size=40"], "size must be a multiple of 16 pixels, got 40"),
    "size of the model": ("calibrate", ["model.size=70"], "size must be a multiple of 16.*got 70"),
    "steps": ("evaluate", ["steps=0"], "steps must be at least 1, got 0"),
    "steps of generate": ("generate", ["steps=-1"], "steps must be at least 1, got -1"),
    "steps of calibration": ("quantize", ["calibration.sampler.steps=0"], "steps must be at le"),
    "unwritable checkpoints": ("quantize", ["checkpoints={file}/x"], "{file}/x.*choose a folder"),
    "unwritable results": ("evaluate", ["results={file}/x"], "{file}/x.*choose a folder that"),
    "unwritable pictures": ("evaluate", ["out={file}/x"], "{file}/x.*choose a folder"),
    "unwritable picture": ("generate", ["out={file}/x.png"], "{file}/x.png.*choose a folder"),
    "unknown scorer": ("evaluate", ["scorers=[taste]"], "scorer 'taste' does not exist, expected"),
    "unknown score text": ("evaluate", ["score_text=poem"], "score_text must be one of .*'poem'"),
    "unknown prompt style": ("evaluate", ["prompt_style=ode"], "prompt_style must be one of.*'ode"),
    "scorer option": ("evaluate", ["+scorer_options.psnr.x=1"], "psnr has no setting 'x', expecte"),
    "unknown prompts": ("evaluate", ["prompts=none"], "prompts must be one of .*got 'none'"),
    "prompts of calibration": ("quantize", ["calibration.prompts=none"], "prompts must be one"),
    "no prompts": ("evaluate", ["n=0"], "n must be between 1 and 200, got 0"),
    "too few prompts": ("evaluate", ["n=2"], "n must be at least 3, got 2; fewer give no interval"),
    "more prompts than there are": ("evaluate", ["n=201"], "between 1 and 200, got 201"),
    "no calibration prompts": ("calibrate", ["calibration.n=0"], "n must be between 1 and 32, go"),
    "batch": ("evaluate", ["batch=0"], "batch must be at least 1, got 0"),
    "unknown dtype": ("evaluate", ["dtype=int4"], "dtype must be one of float32, .*got 'int4'"),
    "unknown engine": ("evaluate", ["engine=turbo"], "engine must be one of .*dit8, got 'tur"),
    "engine of generate": ("generate", ["engine=turbo"], "engine must be one of stock, dit8"),
    "stock on a small card": (
        "evaluate",
        ["hardware=cuda_24gb", "hardware.device=cpu"],
        "engine must be dit8 where the hardware is staged, got 'stock'.*add engine=dit8",
    ),
    "generate, stock on a small card": (
        "generate",
        ["hardware.staged=true"],
        "engine must be dit8 where the hardware is staged",
    ),
    "unknown hardware": ("evaluate", ["hardware=tpu"], "hardware must be one of auto, .*got 'tpu'"),
    "unknown device": ("evaluate", ["hardware.device=tpu"], "must be auto, cpu or cuda, got 'tpu'"),
    "gemm without int8": ("evaluate", ["variant.gemm=fused"], "gemm goes with an int8 format"),
    "stage of training": ("train_mini", ["stop_after=lunch"], "stop_after must be one of vae"),
    "size of training": ("train_mini", ["size=huge"], "size must be full or toy, got 'huge'"),
}
# what stands at model.path -> what the sentence must say
NO_MODELS = {
    "a checkpoint": ("file", "must be a diffusers folder at .*, got a file there; use model=mini"),
    "a folder of weights": ("empty", "got no model_index.json in it there; use model=mini"),
    "FLUX": (
        '{"_class_name": "FluxPipeline"}',
        "must name the class Ideogram4Pipeline, got 'FluxPipeline'; commands take Ideogram 4 only "
        ".*use model=mini or quantize its transformer .* quant.checkpoint.write.save_checkpoint",
    ),
    "another": ('{"_class_name": "SanaPipeline"}', "got 'SanaPipeline'; .*: use model=mini$"),
    "no class": ("[]", "must name the class Ideogram4Pipeline, got None; restore the model"),
    "broken index": ('{"_class_name": "Flux', "model_index.json is not valid JSON .*; restore the"),
    "binary index": ("\udcff", "model_index.json is not valid JSON .*; restore the model folder"),
}
CAPTION = '{"compositional_deconstruction":{"background":"red","elements":[]}}'


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_sentence(place, run_here, one_sentence, mistake):
    script, overrides, pattern = MISTAKES[mistake]
    file = place.folder / "a_file"
    file.write_text("not a folder")
    names = {"file": file, "folder": place.folder}
    overrides = [override.format(**names) for override in overrides]
    poster = place.folder / "poster.png"
    options = {
        "evaluate": [*place.evaluation, "variant=bf16"],
        "generate": [CAPTION, *place.common, "variant=bf16", "steps=2", f"out={poster}"],
        "train_mini": [f"out={place.folder / 'training'}"],
    }.get(script, place.common)
    ended = run_here(script, *options, *overrides)
    one_sentence(ended, script, pattern.replace("{file}", str(file)))
    assert file.read_text() == "not a folder"
    assert not list(place.folder.rglob("*.png"))


@pytest.mark.parametrize("script", ["quantize", "generate"])
@pytest.mark.parametrize("case", NO_MODELS)
def test_what_is_no_model_of_ours(place, run_here, one_sentence, script, case):
    content, pattern = NO_MODELS[case]
    model = place.folder / "given"
    if content == "file":
        model.write_bytes(b"weights")
    else:
        model.mkdir()
        if content != "empty":
            text = content.encode(errors="surrogateescape")
            (model / "model_index.json").write_bytes(text)
    first = [CAPTION, "variant=bf16", "steps=2"] if script == "generate" else []
    options = [*first, *place.common, f"model.path={model}"]
    one_sentence(run_here(script, *options), script, pattern)


def test_a_process_ends_like_that_too(place, run_script, one_sentence):
    ended = run_script("evaluate", *place.evaluation, "stepz=3", cwd=place.folder)
    one_sentence(ended, "evaluate", "'stepz'.*conf/schema.py lists every key")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("script", ["evaluate", "quantize"])
def test_cuda_without_a_gpu(bare_place, run_here, one_sentence, script):
    options = {"evaluate": bare_place.evaluation, "quantize": bare_place.common}[script]
    ended = run_here(script, *options, "hardware=cuda")
    one_sentence(ended, script, "needs an NVIDIA GPU .*without a device; use hardware=cpu")


@pytest.mark.parametrize("script", ["evaluate", "generate"])
def test_a_missing_checkpoint_that_is_not_cheap(bare_place, run_here, one_sentence, script):
    first = [CAPTION] if script == "generate" else []
    options = bare_place.evaluation if script == "evaluate" else [*bare_place.common, "steps=2"]
    change = ["model.build_missing=false", "variant=int8"]
    command = "python scripts/quantize.py model=mini format=w8a8 recipe=smoothquant"
    pattern = f"is missing; make it with {command}"
    one_sentence(run_here(script, *first, *options, *change), script, pattern)
    assert not bare_place.checkpoints.exists()
    assert not bare_place.out.exists()


def test_a_planted_model_that_is_not_cheap(place, run_here, one_sentence):
    change = ["model=mini_planted", f"model.path={place.folder}/x", "model.build_missing=false"]
    ended = run_here("quantize", *place.common[1:], *change)
    one_sentence(ended, "quantize", "is not in .*make it with scripts/plant_outliers.py")


def test_a_checkpoint_of_another_model(place, other_model, run_here, one_sentence):
    def options(model):
        return [*place.evaluation, f"model.path={model}", "variant=int8"]

    def path(model):
        config = compose("evaluate", options(model))
        return artifacts.checkpoint_path(config, artifacts.open_model(config.model), W8A8)

    config = compose("quantize", [*place.common, f"model.path={other_model}"])
    theirs = artifacts.quantize_model(config, artifacts.open_model(config.model), W8A8).path.parent
    assert theirs == path(other_model)
    shutil.copytree(theirs, path(place.model))
    assert run_here("evaluate", *options(place.model), "variant=bf16").code == 0  # the reference
    ended = run_here("evaluate", *options(place.model))
    one_sentence(ended, "evaluate", "must be made from model .*got model .*quantize this model")


def test_a_caption_over_the_limit_in_a_set(place, run_here, one_sentence):
    for script, options in (("evaluate", place.evaluation), ("calibrate", place.common)):
        ended = run_here(script, *options, "model.max_sequence_length=20")
        pattern = r"caption of prompt \S+ has \d+ tokens, expected at most 20; shorten it"
        one_sentence(ended, script, pattern)


def test_a_broken_line_in_a_prompt_set(place, run_here, one_sentence):
    path = place.folder / "mine.jsonl"
    path.write_text('{"id": "a", "caption": {}, "texts": [], "seed": 0}\n')
    ended = run_here("evaluate", *place.evaluation, f"prompts={path}", "n=1")
    one_sentence(ended, "evaluate", f"{path}:1: compositional_deconstruction must be an object")


def test_a_damaged_ledger_is_found_before_anything_is_drawn(place, run_here, one_sentence):
    ledger = place.results / "scores.csv"
    ledger.parent.mkdir()
    ledger.write_text("a,b\n1,2\n")
    ended = run_here("evaluate", *place.evaluation, "variant=bf16")
    one_sentence(ended, "evaluate", "has columns .*expected .*restore it")
    assert ledger.read_text() == "a,b\n1,2\n"
    assert not place.out.exists()


def test_a_bug_shows_its_traceback(place, run_here, monkeypatch):
    """Only a user's mistake is put in one sentence; hiding a bug would help nobody."""

    def fail(_: Path):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(artifacts, "source_sha256", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run_here("quantize", *place.common)
