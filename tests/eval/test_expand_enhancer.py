"""eval/expand_enhancer.py on a tiny text encoder and a tiny head, saved and loaded as real ones."""

from dataclasses import replace

import pytest
import torch
from diffusers import Ideogram4PromptEnhancerHead
from diffusers.pipelines.ideogram4 import prompt_enhancer

from dit8.eval import expand_enhancer
from dit8.eval.expand import expand
from dit8.eval.expand_enhancer import EnhancerExpander
from dit8.models.mini import TOY, build_text_encoder
from dit8.models.mini_tokenizer import build_tokenizer
from dit8.quant.errors import UserError

GOOD = (
    '{"compositional_deconstruction":{"background":"b","elements":[{"type":"obj","desc":"a fox"}]}}'
)


def save_head(folder, hidden: int):
    torch.manual_seed(1)
    Ideogram4PromptEnhancerHead(hidden, len(build_tokenizer())).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def enhancer(tmp_path_factory) -> EnhancerExpander:
    folder = tmp_path_factory.mktemp("enhancer")
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    build_text_encoder(TOY, len(tokenizer)).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    head = save_head(folder / "head", TOY.text_hidden)
    return EnhancerExpander(folder, head, device="cpu", dtype="float32", max_new_tokens=3)


@pytest.fixture
def answers(monkeypatch):
    """Replace generation alone; returns the script of answers and the seeds that were used."""
    script, seeds = [], []

    def generate(model, tokenizer, constraint, idea, height, width, **options):
        assert isinstance(idea, str) and (height, width) == (1024, 1024)
        seeds.append(options["generator"].initial_seed())
        return [script.pop(0)]

    monkeypatch.setattr(prompt_enhancer, "generate_captions", generate)
    return script, seeds


def test_a_valid_answer_is_taken_after_others_with_the_next_seeds(enhancer, answers):
    script, seeds = answers
    script += ["{", GOOD.replace(",", ", "), GOOD]
    assert expand(replace(enhancer, seed=5), "a fox") == GOOD
    assert seeds == [5, 6]


def test_random_weights_answer_nonsense_which_is_named_and_repeats(enhancer, monkeypatch):
    monkeypatch.setattr(expand_enhancer, "TRIES", 2)
    # a token a character: the true instruction would take 36 layers 5 s
    monkeypatch.setattr(prompt_enhancer, "CAPTION_SYSTEM_MESSAGE", "Answer.")
    errors = []
    for _ in range(2):
        with pytest.raises(UserError, match=r"no valid caption in 2 tries for the idea 'a fox', "):
            try:
                expand(enhancer, "a fox")
            except UserError as error:
                errors.append(str(error))
                raise
    assert errors[0] == errors[1]
    assert "caption: is not valid JSON" in errors[0]


def test_the_head_sits_on_the_text_encoder(enhancer):
    model, _, _ = expand_enhancer._load(
        enhancer.model, enhancer.head, enhancer.device, enhancer.dtype
    )
    head = Ideogram4PromptEnhancerHead.from_pretrained(enhancer.head)
    assert torch.equal(model.lm_head.weight, head.lm_head.weight)
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_what_is_missing_is_named(enhancer, tmp_path):
    assert enhancer.obstacle() is None
    no_head = r"enhancer is not available: .*none holds no config.json .*put the files of "
    with pytest.raises(UserError, match=no_head):
        expand(replace(enhancer, head=tmp_path / "none"), "a fox")
    with pytest.raises(UserError, match=r"text_encoder holds no config.json .*download.py fetches"):
        expand(replace(enhancer, model=tmp_path), "a fox")


def test_a_head_of_another_size_is_refused(enhancer, tmp_path):
    head = save_head(tmp_path / "head", 2 * TOY.text_hidden)
    with pytest.raises(UserError, match=r"must have weights of shape \(\d+, 32\) .*got \(\d+, 64"):
        expand(replace(enhancer, head=head), "a fox")


def test_the_identity_follows_weights_and_settings(enhancer, tmp_path):
    identity = enhancer.identity()
    assert identity == enhancer.identity()
    assert replace(enhancer, device="cuda").identity() == identity
    torch.manual_seed(2)
    Ideogram4PromptEnhancerHead(TOY.text_hidden, len(build_tokenizer())).save_pretrained(tmp_path)
    for other in (replace(enhancer, seed=1), replace(enhancer, head=tmp_path)):
        assert other.identity() != identity
