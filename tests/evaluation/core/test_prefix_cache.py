"""Stems and branches give what the forward pass gives over the whole row, for every lever."""

from __future__ import annotations

import pytest
import torch

from model.prefix_cache import continue_stems, position_tables, positions_beyond, read_stems
from tests.model.configs import EAGER, FUSED, VARIANTS, scrambled

LENGTHS = (10, 7, 1, 0)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 0.03}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("num_positions", [24, 60])  # within the trained length, and beyond
def test_equal_to_the_forward_pass(name: str, dtype: torch.dtype, num_positions: int) -> None:
    model = scrambled(VARIANTS[name], dtype)
    generator = torch.Generator().manual_seed(0)
    stems = torch.randint(0, 70, (len(LENGTHS), 12), generator=generator)
    branches = torch.randint(0, 70, (len(LENGTHS), 3, num_positions - 12), generator=generator)
    tables = position_tables(model, num_positions)
    with torch.no_grad(), positions_beyond(model, num_positions):
        read = read_stems(model, stems, torch.tensor(LENGTHS), tables)
        hidden = continue_stems(model, read, branches, tables)
        for row, length in enumerate(LENGTHS):
            for number in range(3):
                whole = torch.cat((stems[row, :length], branches[row, number]))[None]
                expected = model(whole)[0, length:].double()
                error = (hidden[row, number].double() - expected).norm() / expected.norm()
                assert error < TOLERANCE[dtype]


def test_reference_and_fused_kernels_agree() -> None:
    stems, lengths = torch.arange(20).view(2, 10), torch.tensor([10, 6])
    branches = torch.arange(24).view(2, 3, 4)
    results = []
    for kernels in (EAGER, FUSED):
        model = scrambled(VARIANTS["run6"], kernels=kernels)
        tables = position_tables(model, 24)
        with torch.no_grad():
            results.append(continue_stems(model, read_stems(model, stems, lengths, tables), branches, tables))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_longer_positions_start_with_the_models_own_and_are_put_back() -> None:
    model = scrambled(VARIANTS["run6"])
    own = model.cos
    with positions_beyond(model, 100):
        assert model.cos.shape[1] == 100
        assert torch.equal(model.cos[:, :24], own)
    assert model.cos is own
