"""Probes of the evaluation's own path: is what is scored the model's causal, normalised prediction?

The engine does not call the model's forward pass. So it is held to it here, on random tokens, before each
evaluation: a model whose forward pass says something else than its parts, and a lever that the cache does not
know, both fail instead of scoring. Equality is within rounding, causality within `CAUSALITY_TOLERANCE`.
"""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.errors import VerificationFailed
from bench.evaluation.core.engine import Engine
from bench.evaluation.core.prompts import Tokens
from bench.evaluation.core.units import Batch, Scored, Unit
from bench.evaluation.probes import CAUSALITY_TOLERANCE, NORMALISATION_TOLERANCE

# Share of the hidden states' norm by which two orders of rounding differ: on scrambled models of 4 layers
# 4e-7 in float32 and 0.015 in bf16 were seen; a share of 0.05 of another token's state gives 0.05.
FORWARD_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 0.04, torch.float16: 0.01}
_STEM_TOKENS, _BRANCH_TOKENS, _NUM_BRANCHES, _NUM_UNITS = 40, 16, 2, 2


class PathProbes(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured; each is below its tolerance or the evaluation failed."""

    forward_max_error: float
    causality_max_change: float
    normalisation_max_error: float


@torch.no_grad()
def probe_path(engine: Engine, seed: int) -> PathProbes:
    """Run all probes on random tokens.

    Raises:
        VerificationFailed: the engine's hidden states are not the forward pass's, a later token changes an
            earlier score, or the scores are not those of a normalised distribution.
    """
    batch = _random_batch(engine, seed)
    hidden_BNCD = engine.hidden(batch)
    result = PathProbes(
        forward_max_error=_forward_error(engine, batch, hidden_BNCD),
        causality_max_change=_later_change(engine, batch, hidden_BNCD, seed),
        normalisation_max_error=_normalisation_error(engine, hidden_BNCD),
    )
    _check(result, engine.model.compute_dtype)
    return result


def _random_batch(engine: Engine, seed: int) -> Batch:
    """Units of two stem lengths, all within the model's own positions."""
    room = engine.model.config.sequence_length
    branch = max(min(_BRANCH_TOKENS, room // 3), 2)
    stem = max(min(_STEM_TOKENS, room - branch), 2)
    generator = torch.Generator().manual_seed(seed)
    units = []
    for index in range(_NUM_UNITS):
        start = stem - index
        shape = (start + _NUM_BRANCHES * branch,)
        drawn = torch.randint(engine.model.config.vocab_size, shape, generator=generator)
        tokens = drawn.numpy().astype(np.uint32)
        branches = tuple(tokens[start + n * branch : start + (n + 1) * branch] for n in range(_NUM_BRANCHES))
        units.append(Unit(index, tokens[:start], branches, (Scored(0, 0, 0, branches[0]),)))
    return Batch(tuple(units), stem, _NUM_BRANCHES, branch)


def _forward_error(engine: Engine, batch: Batch, hidden_BNCD: Tensor) -> float:
    """Largest relative difference of a branch's hidden states from the forward pass over its whole row."""
    worst = 0.0
    for unit, hidden_NCD in zip(batch.units, hidden_BNCD, strict=True):
        for branch, hidden_CD in zip(unit.branches, hidden_NCD, strict=True):
            row = torch.from_numpy(_row(unit, branch)).to(engine.device)[None]
            expected_CD = engine.model(row)[0, len(unit.stem) :].float()
            error = (hidden_CD[: len(branch)].float() - expected_CD).norm() / expected_CD.norm()
            worst = max(worst, float(error)) if error == error else float("inf")
    return worst


def _row(unit: Unit, branch: Tokens) -> npt.NDArray[np.int64]:
    return np.concatenate((unit.stem, branch)).astype(np.int64)


def _later_change(engine: Engine, batch: Batch, hidden_BNCD: Tensor, seed: int) -> float:
    """Largest change of an earlier token's logits when the branches' tokens from some place on are others."""
    vocab, C = engine.model.config.vocab_size, batch.branch_tokens
    flip = int(torch.randint(1, C, (1,), generator=torch.Generator().manual_seed(seed + 1)))
    changed = []
    for unit in batch.units:
        branches = [branch.copy() for branch in unit.branches]
        for branch in branches:
            branch[flip:] = (branch[flip:] + 1 + flip) % vocab
        changed.append(unit._replace(branches=tuple(branches)))
    other_BNCD = engine.hidden(batch._replace(units=tuple(changed)))
    before, after = (engine.model.logits(hidden[:, :, :flip]).float() for hidden in (hidden_BNCD, other_BNCD))
    return float((before - after).abs().max())


def _normalisation_error(engine: Engine, hidden_BNCD: Tensor) -> float:
    """How far the probabilities that the engine's head gives to all tokens are from a sum of 1."""
    hidden_D, vocab = hidden_BNCD[0, 0, 0], engine.model.config.vocab_size
    targets_V = torch.arange(vocab, device=engine.device)
    losses_V = engine.head(hidden_D.expand(vocab, -1), targets_V, with_rivals=False)[0]
    return abs(float((-losses_V.cpu().double()).exp().sum()) - 1.0)


def _check(probes: PathProbes, dtype: torch.dtype) -> None:
    if not probes.forward_max_error <= FORWARD_TOLERANCE[dtype]:
        raise VerificationFailed(
            f"CORE's path and the model's forward pass differ by {probes.forward_max_error:.3g} of the norm",
            "the forward pass does what model/prefix_cache.py does not: teach it there, or mend the model",
        )
    if not probes.causality_max_change <= CAUSALITY_TOLERANCE:
        raise VerificationFailed(
            f"not causal: a later token changes earlier logits by {probes.causality_max_change:.3g}",
            "the score of a model that sees its target is void; look at attention masks and shifts",
        )
    if not probes.normalisation_max_error <= NORMALISATION_TOLERANCE:
        raise VerificationFailed(
            f"probabilities sum to 1 only within {probes.normalisation_max_error:.3g}",
            "logits are not finite, or depend on more than the hidden state",
        )
