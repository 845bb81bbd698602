import inspect
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import yaml

from dit8.models.pipeline import load_pipeline
from dit8.quant.checkpoint.load import load_quantized
from dit8.quant.model_card import (
    BASES,
    IDEOGRAM4,
    MINI,
    EvaluationRow,
    ReleaseCard,
    ReleasedFile,
    render_card,
)

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


def front_matter(text: str) -> dict:
    _, front, _ = text.split("---\n", 2)
    return yaml.safe_load(front)


def test_front_matter_survives_odd_values():
    base = replace(MINI, licence={"license": "apache-2.0", "note": 'a: "b" # c\u2028\n- d'})
    front = front_matter(render_card(replace(CARD, base=base, format="on"), "out", ()))
    assert front["note"] == 'a: "b" # c\u2028\n- d'
    assert "on" in front["tags"]  # a word that YAML would read as true


def test_sizes_are_decimal_and_exact():
    files = (
        ReleasedFile("a", 20_400_000_001, "0"),
        ReleasedFile("b", 4_000_000, "1"),
    )
    assert "| 20.40 GB (20,404,000,001 bytes) |" in render_card(CARD, "out", files)


def test_what_is_not_known_is_said_to_be_so():
    bare = replace(CARD, commit=None, versions={})
    assert "| made with | dit8, commit not known |" in render_card(bare, "out", ())
    dirty = replace(CARD, dirty=True, lora="style.safetensors at 0.8")
    text = render_card(dirty, "out", ())
    assert "dit8 at commit abc123 with uncommitted changes" in text
    assert "| LoRA merged before quantizing | style.safetensors at 0.8 |" in text
    assert "## Evaluation\n\nNot measured.\n" in text


def test_evaluation_rows_are_shown_with_their_intervals():
    rows = (
        EvaluationRow("psnr", "dB", "mini_hard", 200, 41.0567, 40.08, 42.01),
        EvaluationRow("ocr_exact", "fraction of texts", "mini_hard", 200, 0.65),
    )
    text = render_card(replace(CARD, evaluation=rows), "out", ())
    assert "| psnr | dB | mini_hard | 200 | 41.06 | [40.08, 42.01] |" in text
    assert "| ocr_exact | fraction of texts | mini_hard | 200 | 0.65 | not measured |" in text
    assert "Not measured." not in text


@pytest.mark.parametrize("field", ["name", "format", "recipe", "source_sha256"])
@pytest.mark.parametrize("value", ["", "two\nlines"])
def test_a_card_refuses_what_breaks_its_table(field, value):
    with pytest.raises(ValueError, match=f"ReleaseCard: {field} must be one line of text, got"):
        replace(CARD, **{field: value})


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_the_usage_runs_against_the_real_signatures(base, tmp_path, monkeypatch):
    text = render_card(replace(CARD, base=base), "my-release", ())
    code = text.split("```python\n")[1].split("```")[0]
    calls = {}

    def record(name, function):
        def call(*args, **kwargs):
            calls[name] = inspect.signature(function).bind(*args, **kwargs).arguments
            return draw

        return call

    def draw(caption, **options):
        calls["draw"] = {"caption": caption, **options}
        saved = SimpleNamespace(save=lambda name: calls.setdefault("saved", name))
        return SimpleNamespace(images=[saved])

    for name, function in (
        ("dit8.models.pipeline", load_pipeline),
        ("dit8.quant.checkpoint.load", load_quantized),
    ):
        stub = ModuleType(name)
        setattr(stub, function.__name__, record(function.__name__, function))
        monkeypatch.setitem(sys.modules, name, stub)
    (tmp_path / "caption.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "usage", "exec"), {})
    assert calls["load_pipeline"]["folder"].as_posix() == base.folder
    assert calls["load_pipeline"]["branches"] is False
    assert calls["load_quantized"]["path"] == "my-release"
    assert calls["draw"]["caption"] == "{}"
    assert calls["saved"] == "picture.png"
