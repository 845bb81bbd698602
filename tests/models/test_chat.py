import torch

from dit8.models.pipeline import encode_chat


def test_a_caption_becomes_one_user_turn_and_the_cue(toy):
    ids = encode_chat(toy.tokenizer, "RUBE")
    expected = "<|im_start|>user\nRUBE<|im_end|>\n<|im_start|>assistant\n"
    assert toy.tokenizer.decode(ids) == expected
    assert isinstance(ids, list) and isinstance(ids[0], int)


def test_ids_are_what_the_pipeline_feeds_its_encoder(toy, toy_prompts, monkeypatch):
    seen = []

    def watch(encoder, token_ids, mask, positions):
        seen.extend(row[real.bool()].tolist() for row, real in zip(token_ids, mask, strict=True))
        features = torch.zeros(*token_ids.shape, encoder.config.text_config.hidden_size)
        return [features] * 13

    monkeypatch.setattr(toy, "_get_text_encoder_hidden_states", watch)
    captions = [prompt.caption for prompt in toy_prompts]
    toy.encode_prompt(captions, 4, 4, 80, torch.device("cpu"))
    assert seen == [encode_chat(toy.tokenizer, caption) for caption in captions]
