import json

import numpy as np
import pytest
import torch

from dit8.eval import score_text
from dit8.eval.score_text import content_in_words
from dit8.models.posters import TIERS, caption, make_poster
from dit8.models.training.pool import to_signal

pytest.importorskip("open_clip", reason="needs the extra: pip install -e .[clip]")

from dit8.models import clip_mini  # noqa: E402
from dit8.models.clip_mini import (  # noqa: E402
    CONTEXT,
    END,
    FINE,
    FULL,
    MAX_BYTES,
    PAD,
    TOY,
    build_clip,
    build_clip_tokenizer,
    encode_texts,
    save_clip,
)

TEXT = "flat red; word ENAKE, yellow sans, row 5, column 5; navy ring, row 1, column 8"


@pytest.fixture(scope="module")
def tokenizer():
    return build_clip_tokenizer()


def test_a_content_is_few_tokens_and_comes_back(tokenizer):
    ids = tokenizer(TEXT).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == [
        *("<start>", "flat", " red", "; word ", "E", "N", "A", "K", "E"),
        *(", ", "yellow", " sans", ", row 5", ", column 5"),
        *("; ", "navy", " ring", ", row 1", ", column 8", "<end>"),
    ]
    for text in (TEXT, "word RED; word row 12", "Été 東京 <end"):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_every_poster_fits_the_context(tokenizer):
    posters = [make_poster(tier, seed, held_out=False) for tier in TIERS for seed in range(300)]
    texts = [content_in_words(caption(poster)) for poster in posters]
    lengths = [len(ids) for ids in tokenizer(texts).input_ids]
    assert max(lengths) <= 42 < CONTEXT


def test_the_end_has_the_highest_id_and_stays_when_a_text_is_cut(tokenizer):
    assert tokenizer.convert_tokens_to_ids(END) == len(tokenizer) - 1
    ids = encode_texts(tokenizer, ["A", "A" * 100])
    assert ids.shape == (2, CONTEXT) and ids.dtype == torch.int64
    assert ids.argmax(dim=1).tolist() == [2, CONTEXT - 1]
    assert set(ids[0, 3:].tolist()) == {tokenizer.convert_tokens_to_ids(PAD)} == {0}


def test_weights_depend_on_the_seed_alone():
    a, b, c = (build_clip(TOY, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["visual.proj"], c["visual.proj"])


@pytest.mark.parametrize("size", [FULL, FINE])
def test_the_full_sizes_fit_the_limit(size):
    with torch.device("meta"):
        count = sum(p.numel() for p in build_clip(size, 0).parameters())
    assert 0.9 * MAX_BYTES < 2 * count < MAX_BYTES - 100_000  # bf16, and the file's header


@torch.no_grad()
def test_a_saved_folder_is_one_of_open_clips(tmp_path, tokenizer):
    import open_clip

    model = build_clip(TOY, 2).eval()
    save_clip(model, TOY, tmp_path / "clip")
    again, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}/clip")
    again.eval()
    expected = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    loaded = again.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name].float()) for name in loaded)
    tokenize = open_clip.get_tokenizer(f"local-dir:{tmp_path}/clip")
    assert torch.equal(tokenize([TEXT]), encode_texts(tokenizer, [TEXT]))
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    prepared = preprocess(Image.fromarray(pixels))
    # p / 255, - 0.5, / 0.5 against p / 127.5 - 1: each rounds in fp32
    assert torch.allclose(prepared, to_signal(torch.from_numpy(pixels)[None])[0], atol=1e-6)
    config = json.loads((tmp_path / "clip" / "open_clip_config.json").read_text())
    assert config["model_cfg"]["text_cfg"]["context_length"] == CONTEXT
    assert not list((tmp_path / "clip").glob("*.partial"))


def test_the_tokenizer_knows_the_places_that_contents_name():
    assert clip_mini.CELLS == score_text.CELLS
