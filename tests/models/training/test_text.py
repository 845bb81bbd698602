import pytest
import torch

from dit8.models.pipeline import encode_chat
from dit8.models.training.pool import Pool
from dit8.models.training.text import fill_features, text_features


@pytest.fixture
def padded(toy, toy_prompts):
    """Right-padded ids and lengths; the padding is no special token, to see that none gets in."""
    rows = [encode_chat(toy.tokenizer, prompt.caption) for prompt in toy_prompts]
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), 80), 7, dtype=torch.int16)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids, lengths


def test_features_equal_those_of_the_pipeline(toy, toy_prompts, padded):
    ids, lengths = padded
    ours = text_features(toy.text_encoder, ids, lengths)
    captions = [prompt.caption for prompt in toy_prompts]
    stock, *_ = toy.encode_prompt(captions, 16, 16, 80, torch.device("cpu"))
    assert ours.shape == (5, 80, 13 * toy.text_encoder.config.text_config.hidden_size)
    for row, length in enumerate(lengths.tolist()):
        expected = stock[row, 80 - length : 80]
        # fp32 sums in another order through 36 layers; another tap order gives an error near 1
        assert (ours[row, :length] - expected).norm() / expected.norm() < 1e-5


def test_the_pool_keeps_the_real_rows_end_to_end(toy, padded):
    ids, lengths = padded
    pool = Pool(
        first=torch.tensor([0]),
        count=torch.tensor([5]),
        token_ids=ids,
        lengths=lengths,
        weight=torch.ones(5, 256, dtype=torch.uint8),
        pixels=None,
    )
    fill_features(pool, toy.text_encoder, batch=2)  # the last batch is smaller
    assert pool.features.shape[0] == int(lengths.sum()) and pool.features.dtype == torch.bfloat16
    assert pool.offset.tolist() == [0, *lengths.cumsum(0).tolist()[:-1]]
    index = torch.tensor([4, 1, 1])
    text, mask = pool.text(index)
    assert torch.equal(mask.sum(1), lengths[index])
    expected = text_features(toy.text_encoder, ids, lengths)
    for row, poster in enumerate(index.tolist()):
        length = int(lengths[poster])
        want = expected[poster, :length]
        # bf16 keeps 8 bits: 2^-9 relative a value
        assert (text[row, :length].float() - want).norm() / want.norm() < 2**-8
        assert not text[row, length:].any() and mask[row, :length].all()
