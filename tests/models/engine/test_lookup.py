import copy

import pytest
import torch
from diffusers import Ideogram4Pipeline
from torch.nn import functional as F

from dit8.models.engine.lookup import Modulation, positions, rotary, tabulate_modulation

TIMES = torch.tensor([0.0, 0.3, 0.999])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_row_is_what_a_block_computes_in_its_step(toy, dtype):
    module = copy.deepcopy(toy.transformer).to(dtype)
    table = tabulate_modulation(module, TIMES)
    assert table.blocks.shape == (3, 2, 4, 128) and table.final.shape == (3, 128)
    assert table.blocks.dtype == table.final.dtype == torch.float32
    for step, time in enumerate(TIMES):
        t = time[None].to(dtype)  # as the pipeline does; in bf16 it is another time
        conditioning = F.silu(module.adaln_proj(module.t_embedding(t)))
        for index, layer in enumerate(module.layers):
            a, b, c, d = layer.adaln_modulation(conditioning).float().chunk(4, dim=-1)
            row = torch.cat([1 + a, b.tanh(), 1 + c, d.tanh()])
            # products of one row and of three; in bf16 a result may round the other way
            tolerance = 1e-5 if dtype == torch.float32 else 2**-6
            assert torch.allclose(table.blocks[step, index], row, rtol=tolerance, atol=tolerance)
        final = 1 + module.final_layer.adaln_modulation(F.silu(conditioning)).float()[0]
        assert torch.allclose(table.final[step], final, rtol=tolerance, atol=tolerance)


def test_a_table_is_replaced_in_place_or_not_at_all():
    old, new, longer = (Modulation(torch.rand(s, 2, 4, 8), torch.rand(s, 8)) for s in (3, 3, 4))
    blocks, final = old.blocks, old.final
    assert not old.replace(longer)
    assert old.replace(new)
    assert torch.equal(blocks, new.blocks) and torch.equal(final, new.final)


@pytest.mark.parametrize("lengths", [(0,), (0, 0), (5,), (4, 7, 4)])
def test_positions_are_those_of_the_pipeline_without_padding(lengths):
    slots = max(lengths) + 2
    ids, _, indicator = Ideogram4Pipeline._prepare_ids(
        list(lengths), 2, 3, slots, torch.device("cpu")
    )
    expected = [rows[kind != 0] for rows, kind in zip(ids, indicator, strict=True)]
    assert torch.equal(positions(lengths, (2, 3)), torch.cat(expected))


def test_rotary_tables_are_the_modules_in_halves(toy):
    place = positions((5, 0), (2, 3))
    cos, sin = rotary(toy.transformer, place)
    assert cos.shape == sin.shape == (17, 32) and cos.is_contiguous() and sin.is_contiguous()
    for half, whole in zip((cos, sin), toy.transformer.rotary_emb(place[None]), strict=True):
        assert half.dtype == torch.float32
        assert torch.equal(torch.cat([half, half], dim=1), whole[0])
