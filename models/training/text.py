"""Text features for training, computed once a poster by the pipeline's own text path."""

import torch
from diffusers import Ideogram4Pipeline

from dit8.models.training.pool import Pool


@torch.no_grad()
def text_features(encoder, token_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Compute the tapped features of right-padded ids (B, T): (B, T, F) fp32, hidden-major.

    The encoder is causal, so padding on the right cannot reach the real tokens; the pipeline pads
    on the left and masks, which gives the same numbers.
    """
    width = token_ids.shape[1]
    column = torch.arange(width, device=token_ids.device)
    mask = (column < lengths[:, None]).long()
    taps = Ideogram4Pipeline._get_text_encoder_hidden_states(
        encoder, token_ids.long(), mask, column.expand(len(token_ids), -1)
    )
    return torch.stack(taps).permute(1, 2, 3, 0).flatten(2)


@torch.no_grad()
def fill_features(pool: Pool, encoder, batch: int = 2048) -> None:
    """Compute every poster's features and store the real tokens' rows end to end, in bf16."""
    width = pool.token_ids.shape[1]
    pool.offset = torch.cumsum(pool.lengths, 0) - pool.lengths
    rows = int(pool.lengths.sum())
    out = None
    column = torch.arange(width, device=pool.token_ids.device)
    for low in range(0, len(pool.token_ids), batch):
        lengths = pool.lengths[low : low + batch]
        features = text_features(encoder, pool.token_ids[low : low + batch], lengths)
        if out is None:
            out = torch.empty(
                rows, features.shape[-1], dtype=torch.bfloat16, device=features.device
            )
        start = int(pool.offset[low])
        real = features[column < lengths[:, None]]
        out[start : start + len(real)] = real.to(torch.bfloat16)
    pool.features = out
