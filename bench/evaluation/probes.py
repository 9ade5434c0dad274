"""Probes of what was scored: is it a causal, normalised, frozen probability model?"""

from __future__ import annotations

import hashlib
import math

import msgspec
import torch
from torch import Tensor

from bench.errors import VerificationFailed
from kernels.sliding_window_attention import BLOCK
from model.gpt import GPT

# Positions whose losses are compared with the logits', and logits that are held at once.
PROBE_TOKENS = 64
PROBE_ROWS = 2
# A batch-invariant GEMM would give equality; a change that leaks a token moves logits by far more than this.
CAUSALITY_TOLERANCE = 1e-3
NORMALISATION_TOLERANCE = 1e-4


class Probes(msgspec.Struct, frozen=True, kw_only=True):
    """What the probes measured; each is below its tolerance or the evaluation failed."""

    causality_max_change: float
    normalisation_max_error: float
    loss_max_error: float
    weights_sha256: str


def weights_sha256(model: GPT) -> str:
    """Hash of all parameters, by name and bytes."""
    digest = hashlib.sha256()
    for name, param in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(param.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def probe(model: GPT, device: torch.device, seed: int) -> Probes:
    """Run all probes on random tokens.

    Raises:
        VerificationFailed: a later token changes an earlier logit, probabilities do not sum to 1, or the loss
            is not that of the model's own logits.
    """
    vocab, T = model.config.vocab_size, probed_tokens(model)
    generator = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(vocab, (PROBE_ROWS, T), generator=generator)
    drawn = int(torch.randint(1, T, (1,), generator=generator))
    hidden_BTD = model(tokens_BT.to(device))
    change, at, any_later_change = 0.0, drawn, False
    for flip in sorted({drawn, T - 1, *(place for place in (BLOCK - 1, BLOCK, BLOCK + 1) if place < T)}):
        changed_BT = tokens_BT.clone()
        changed_BT[:, flip:] = (changed_BT[:, flip:] + 1 + flip % (vocab - 1)) % vocab  # never by 0
        later_BTD = model(changed_BT.to(device))
        found = _largest_change(model, hidden_BTD[:, :flip], later_BTD[:, :flip])
        if not (found <= change or math.isnan(change)):
            change, at = found, flip
        few = slice(flip, flip + PROBE_TOKENS)
        any_later_change |= _largest_change(model, hidden_BTD[:, few], later_BTD[:, few]) != 0.0
    few = slice(min(PROBE_TOKENS, T))
    log_probabilities_BTV = model.logits(hidden_BTD[:, few]).cpu().double().log_softmax(-1)
    result = Probes(
        causality_max_change=change,
        normalisation_max_error=float(log_probabilities_BTV.exp().sum(-1).sub(1.0).abs().max()),
        loss_max_error=_loss_error(model, hidden_BTD[:, few], tokens_BT[:, few], log_probabilities_BTV),
        weights_sha256=weights_sha256(model),
    )
    _check(result, at, any_later_change)
    return result


def probed_tokens(model: GPT) -> int:
    """Tokens of a probe's row: over a short window and the blocks at both of its ends, where there is one."""
    length = model.config.sequence_length
    short = max((window for window in model.config.window_sizes if window < length), default=0)
    return min(length, short + 2 * BLOCK + 2)


def _largest_change(model: GPT, before_BTD: Tensor, after_BTD: Tensor) -> float:
    """The largest difference of any logit; those of equal hidden states are equal, and not computed."""
    differs_BT = (before_BTD != after_BTD).any(-1)
    before_ND, after_ND = before_BTD[differs_BT], after_BTD[differs_BT]
    largest = torch.zeros((), device=before_BTD.device)
    for start in range(0, len(before_ND), PROBE_TOKENS):
        few = slice(start, start + PROBE_TOKENS)
        changes = (model.logits(before_ND[few]) - model.logits(after_ND[few])).abs()
        largest = torch.maximum(largest, changes.max())  # NaN stays NaN
    return float(largest)


def _loss_error(model: GPT, hidden_BTD: Tensor, tokens_BT: Tensor, log_probabilities_BTV: Tensor) -> float:
    """Largest difference between the loss the run is scored by and -log p of the logits."""
    targets_BT = tokens_BT.roll(-1, dims=1)
    scored_N = model.kernels.linear_cross_entropy(
        hidden_BTD.flatten(0, 1),
        model.head_weight(),
        targets_BT.flatten().to(hidden_BTD.device),
        softcap=model.config.softcap,
        reduction="none",
    )
    expected_N = -log_probabilities_BTV.gather(-1, targets_BT[..., None]).flatten()
    return float((scored_N.cpu().double() - expected_N).abs().max())


def _check(probes: Probes, flip: int, any_later_change: bool) -> None:
    if not probes.causality_max_change <= CAUSALITY_TOLERANCE:
        raise VerificationFailed(
            f"not causal: tokens from {flip} on change earlier logits by {probes.causality_max_change:.3g}",
            "the score of a model that sees its target is void; look at attention masks and shifts",
        )
    if not any_later_change:
        raise VerificationFailed(
            "the logits do not depend on the tokens at all",
            "training killed the model: lower the learning rates",
        )
    if not probes.normalisation_max_error <= NORMALISATION_TOLERANCE:
        raise VerificationFailed(
            f"probabilities sum to 1 only within {probes.normalisation_max_error:.3g}",
            "logits are not finite",
        )
    if not probes.loss_max_error <= 1e-2:
        raise VerificationFailed(
            f"the loss differs from -log p of the logits by {probes.loss_max_error:.3g} nats",
            "the fused loss and the model disagree: run the kernel tests",
        )


def check_frozen(before: str, after: str) -> None:
    """Raise unless the weights' hash is the same on both sides of an evaluation."""
    if before != after:
        raise VerificationFailed("the weights changed during evaluation", "an evaluation must not train")
