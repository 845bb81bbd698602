import pytest
from transformers import AutoTokenizer

from dit8.models.mini_tokenizer import BOILERPLATE, SPECIAL, WORDS, build_tokenizer
from dit8.models.posters import TIERS, caption_json, make_poster


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def pieces(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    "text",
    [
        "7525",
        "25,25]",
        '{"type":"text","bbox":[25,0,150,1000],"text":"7525,","desc":"red serif"}',
        "CAFÉ ÅÄÖ 東京 🚲",
        "tab\tand\nnew line \r end",
        "two  spaces and a trailing one ",
        "swords wordy  redred",
        "\x00\x7f",
        "",
    ],
)
def test_every_string_survives(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("tier", TIERS)
def test_captions_survive(tokenizer, tier):
    for seed in range(30):
        text = caption_json(make_poster(tier, seed, held_out=True))
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_quoted_text_is_one_token_a_character(tokenizer):
    # whole numbers and words inside a text would hide its letters from the model
    assert pieces(tokenizer, ',"text":"7525"') == [',"text":"', "7", "5", "2", "5", '"']
    assert pieces(tokenizer, ',"text":"HF9DDSN"')[1:-1] == list("HF9DDSN")


def test_boxes_and_words_are_whole_tokens(tokenizer):
    text = '{"type":"obj","bbox":[25,1000,0,975],"desc":"red circle"},'
    boxes = ['{"type":"obj","bbox":[', "25,", "1000,", "0,", "975]", ',"desc":"']
    assert pieces(tokenizer, text) == [*boxes, "red", " circle", '"},']


def test_other_characters_fall_back_to_their_bytes(tokenizer):
    assert pieces(tokenizer, "É") == ["<0xC3>", "<0x89>"]


def test_ids_are_distinct_and_the_specials_lead(tokenizer):
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(tokenizer)))
    assert [vocabulary[token] for token in SPECIAL] == [0, 1, 2]
    assert all(token in vocabulary for token in (*BOILERPLATE, *WORDS))
    assert len(tokenizer) < 2**15  # the pool keeps ids as int16


def test_it_is_the_same_after_saving(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    text = caption_json(make_poster("medium", 1, held_out=True)) + "É 7525"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.decode(again(text)["input_ids"]) == text
    messages = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    rendered = [
        t.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        for t in (tokenizer, again)
    ]
    assert rendered[0] == rendered[1]


def test_the_template_takes_plain_and_structured_content(tokenizer):
    plain = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]
    text = tokenizer.apply_chat_template(plain, tokenize=False)
    assert text == "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n"
