import hashlib
import json
import os
from dataclasses import replace

import pytest
import yaml

from dit8.models.hub import REPOSITORIES
from dit8.quant import release
from dit8.quant.errors import UserError
from dit8.quant.model_card import IDEOGRAM4, MINI, ReleaseCard, base_of
from dit8.quant.release import find_licence, write_release

CARD = ReleaseCard(
    name="Ideogram 4 in W8A8",
    format="w8a8",
    recipe="smoothquant",
    base=IDEOGRAM4,
    source_sha256="5" * 64,
    quantized=376,
    protected=34,
    commit="abc123",
    versions={"torch": "2.13.0", "triton": None},
)
MINI_CARD = replace(CARD, base=MINI)
WEIGHTS, RECIPE = b"w" * 1000, '{"recipe": {"name": "smoothquant"}}\n'


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of one file, its recipe beside it."""
    path = tmp_path / "smoothquant-0123" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(WEIGHTS)
    (path.parent / "recipe.json").write_text(RECIPE)
    (path.parent / "unrelated.txt").write_text("no part of it")
    return path


@pytest.fixture
def folders(tmp_path):
    """A checkpoint with a subfolder a branch, without a recipe."""
    path = tmp_path / "fp8-0123"
    for branch in ("transformer", "unconditional_transformer"):
        (path / branch).mkdir(parents=True)
        (path / branch / "model.safetensors").write_bytes(branch.encode())
        (path / branch / "config.json").write_text("{}")
        (path / branch / ".model.safetensors.12.tmp").write_text("half-written")
    return path


def names(folder):
    paths = folder.rglob("*")
    return sorted(path.relative_to(folder).as_posix() for path in paths if path.is_file())


def front_matter(text: str) -> dict:
    _, front, _ = text.split("---\n", 2)
    return yaml.safe_load(front)


def test_release_holds_weights_recipe_card_and_licence(checkpoint, tmp_path):
    target = tmp_path / "published" / "ideogram-4-w8a8"
    (file,) = write_release(target, checkpoint, CARD)
    assert names(target) == ["LICENSE", "README.md", "model.safetensors", "recipe.json"]
    assert (target / "model.safetensors").read_bytes() == WEIGHTS
    assert (target / "recipe.json").read_text() == RECIPE
    assert (file.path, file.size) == ("model.safetensors", 1000)
    assert file.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert file.sha256 in (target / "README.md").read_text()
    assert names(target.parent) == [f"ideogram-4-w8a8/{name}" for name in names(target)]


def test_a_folder_is_released_with_its_configurations(folders, tmp_path):
    files = write_release(tmp_path / "out", folders, replace(CARD, format="fp8", recipe=None))
    weights = ["transformer/model.safetensors", "unconditional_transformer/model.safetensors"]
    assert [file.path for file in files] == weights
    assert [path for path in names(tmp_path / "out") if "/" in path] == [
        "transformer/config.json",
        "transformer/model.safetensors",
        "unconditional_transformer/config.json",
        "unconditional_transformer/model.safetensors",
    ]
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert recipe == {"format": "fp8", "recipe": None, "source_sha256": "5" * 64}
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| recipe | none: the format stores weights" in text
    assert "`recipe.json` names the format, which has no recipe." in text


def test_a_gguf_is_released(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    (file,) = write_release(tmp_path / "out", path, CARD)
    assert file.path == "model.gguf"


def test_weights_are_hard_links_or_copies(checkpoint, tmp_path, monkeypatch):
    write_release(tmp_path / "linked", checkpoint, CARD)
    assert os.path.samefile(checkpoint, tmp_path / "linked" / "model.safetensors")

    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(release.os, "link", refuse)
    write_release(tmp_path / "copied", checkpoint, CARD)
    assert not os.path.samefile(checkpoint, tmp_path / "copied" / "model.safetensors")
    assert (tmp_path / "copied" / "model.safetensors").read_bytes() == WEIGHTS


def test_a_symbolic_link_is_published_as_the_file(checkpoint, tmp_path):
    (tmp_path / "latest.safetensors").symlink_to(checkpoint)
    write_release(tmp_path / "out", tmp_path / "latest.safetensors", CARD)
    released = tmp_path / "out" / "latest.safetensors"
    assert not released.is_symlink()
    assert released.read_bytes() == WEIGHTS


def test_an_existing_target_is_refused(checkpoint, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine").write_text("kept")
    with pytest.raises(UserError, match="out exists already; delete it or choose another"):
        write_release(target, checkpoint, CARD)
    assert names(target) == ["mine"]
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="dangling exists already"):
        write_release(tmp_path / "dangling", checkpoint, CARD)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failing_release_leaves_nothing(checkpoint, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(release, "render_card", fail)
    out = tmp_path / "out"
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt) as raised:
        write_release(out / "release", checkpoint, CARD)
    assert list(out.iterdir()) == []
    if isinstance(error, OSError):
        assert "cannot write" in str(raised.value) and "No space left" in str(raised.value)
    assert checkpoint.read_bytes() == WEIGHTS


def test_without_weights_there_is_no_release(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "recipe.json").write_text("{}")
    for path in (tmp_path / "empty", tmp_path / "empty" / "recipe.json", tmp_path / "nowhere"):
        with pytest.raises(UserError, match="must hold .safetensors or .gguf weights, got none"):
            write_release(tmp_path / "out", path, CARD)
    assert not (tmp_path / "out").exists()


def test_weights_too_large_for_the_mini_do_not_become_apache(checkpoint, tmp_path):
    os.truncate(checkpoint, MINI.largest_bytes - len(RECIPE) + 1)  # sparse
    with pytest.raises(UserError, match="at most 100000000 bytes, got 100000001; name the model"):
        write_release(tmp_path / "out", checkpoint, MINI_CARD)
    write_release(tmp_path / "out", checkpoint, CARD)
    os.truncate(checkpoint, MINI.largest_bytes - len(RECIPE))
    write_release(tmp_path / "mini", checkpoint, MINI_CARD)


def test_every_model_that_can_be_released_is_known():
    assert {base_of(name).repository for name in ("mini", "mini_planted")} == {None}
    assert base_of("ideogram4").repository == REPOSITORIES["fp8"]
    with pytest.raises(UserError, match="licence of model 'flux' is not known, expected one of"):
        base_of("flux")


def test_front_matter_names_licence_and_base(checkpoint, tmp_path):
    write_release(tmp_path / "out", checkpoint, CARD)
    front = front_matter((tmp_path / "out" / "README.md").read_text())
    assert front["license"] == "other"
    assert "non-commercial" in front["license_name"]
    assert front["license_link"] == f"https://huggingface.co/{IDEOGRAM4.repository}"
    assert front["base_model"] == IDEOGRAM4.repository
    assert front["base_model_relation"] == "quantized"
    assert front["library_name"] == "dit8"
    assert {"quantization", "w8a8", "ideogram"} <= set(front["tags"])


def test_the_minis_card_is_apache_and_not_ideogram(checkpoint, tmp_path):
    write_release(tmp_path / "out", checkpoint, MINI_CARD)
    text = (tmp_path / "out" / "README.md").read_text()
    front = front_matter(text)
    assert front["license"] == "apache-2.0"
    assert not {"base_model", "license_name", "extra_gated_prompt"} & set(front)
    licence = (tmp_path / "out" / "LICENSE").read_text()
    for part in (text, licence):
        assert "It is not Ideogram 4" in part
        assert "non-commercial" not in part.lower()
        assert IDEOGRAM4.repository not in part


def test_the_licence_keeps_derived_weights_under_the_bases(checkpoint, tmp_path):
    write_release(tmp_path / "plain", checkpoint, CARD)
    notice = " ".join((tmp_path / "plain" / "LICENSE").read_text().split())
    assert "Derived weights stay under the base model's licence" in notice
    assert "non-commercial use only" in notice
    assert "access must be asked for" in notice
    assert "Text encoder, tokenizer and VAE come from there" in notice
    assert IDEOGRAM4.repository in notice
    write_release(
        tmp_path / "full", checkpoint, replace(CARD, licence_text="\nWord\nfor word.\n\n")
    )
    full = (tmp_path / "full" / "LICENSE").read_text()
    assert full.startswith(IDEOGRAM4.notice)
    assert full.endswith("-" * 80 + "\n\nWord\nfor word.\n")


def test_the_card_is_filled_from_the_run(checkpoint, tmp_path):
    write_release(tmp_path / "out", checkpoint, CARD)
    text = (tmp_path / "out" / "README.md").read_text()
    for row in (
        "# Ideogram 4 in W8A8",
        "| format | w8a8 |",
        "| recipe | smoothquant |",
        "| linears quantized | 376 |",
        "| linears protected (kept unquantized) | 34 |",
        "| size of the weights | 1,000 bytes |",
        f"| base model | {IDEOGRAM4.repository} |",
        "| LoRA merged before quantizing | none |",
        f"| SHA-256 over the base model's branches | `{'5' * 64}` |",
        "| made with | dit8 at commit abc123, torch 2.13.0 |",
        f"| model.safetensors | 1000 | `{hashlib.sha256(WEIGHTS).hexdigest()}` |",
    ):
        assert row in text.splitlines(), row
    assert "`recipe.json` says what became of every linear and why." in text
    assert "$" not in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("name", ["LICENSE", "LICENSE.md", "licence.txt"])
def test_a_licence_is_found_beside_the_model(tmp_path, name):
    (tmp_path / "LICENSE_OF_SOMETHING_ELSE").write_text("no")
    assert find_licence(tmp_path) is None
    (tmp_path / name).write_text("Word for word.\n")
    assert find_licence(tmp_path) == "Word for word.\n"
