"""What Apple's MPS backend computes wrongly or hides, by torch version: reasons to refuse a plan.

Torch-free, so that a plan is refused before torch is loaded. Each limit names its thread in
github.com/pytorch/pytorch; nothing here was run on a Mac by us.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# First versions in which ... half-precision causal SDPA without gradients keeps its mask (#195910), and the
# allocator keeps its peak (#186748);
HALF_PRECISION_SINCE = PEAK_MEMORY_SINCE = (2, 13)
# ... a matmul over more than 32768 inner elements is right on M1 and M2 (#193487, mended by #183535).
LONG_INNER_DIMENSION_SINCE = (2, 14)
_MAX_INNER_DIMENSION = 32768
# A non-contiguous bmm with more output elements is wrong in every version (#197636, open).
_MAX_SCORES = 2**32
# The graph path of half-precision attention builds the mask of each chunk of 3068 queries from row 0; the
# Metal kernels that avoid it exist for these head dimensions (read in torch's source, 2.13 and 2.14).
_MAX_QUERIES_OF_GRAPH_PATH = 3068
_HEAD_DIMS_OF_METAL_PATH = (32, 64, 72, 80, 96, 128, 256)
_HALF = ("bfloat16", "float16")


def version_pair(version: str) -> tuple[int, int]:
    """(2, 13) of "2.13.0+cpu"; also of a macOS version such as "15.5" or "26"."""
    found = re.match(r"(\d+)(?:\.(\d+))?", version)
    assert found, f"not a version: {version!r}"
    return int(found[1]), int(found[2] or 0)


def half_precision_refusal(torch_version: str) -> str | None:
    """Why half precision must not be used on MPS under this torch, or None."""
    if version_pair(torch_version) >= HALF_PRECISION_SINCE:
        return None
    return (
        f"half precision on MPS needs torch >= 2.13, here {torch_version}: causal attention without "
        "gradients sees up to 3 future tokens, so the scored loss would be wrong (pytorch #195910)"
    )


def mps_refusals(
    *,
    torch_version: str,
    macos_version: str,
    environment: Mapping[str, str],
    world_size: int,
    micro_batch_tokens: int,
    sequence_length: int,
    vocab: int,
    width: int,
    heads: int,
    head_dim: int,
    dtype: str,
) -> list[str]:
    """Why this plan must not run on MPS, one line each; empty where it may.

    Args:
        micro_batch_tokens: tokens of one forward pass, B*T: inner dimension of the head's weight gradient.
        vocab: padded vocabulary: inner dimension of the head's input gradient.
    """
    return [
        *_refused_settings(macos_version, environment, world_size),
        *_refused_products(torch_version, micro_batch_tokens, vocab, width),
        *_refused_scores(micro_batch_tokens * heads * sequence_length),
        *_refused_half_precision(torch_version, environment, sequence_length, head_dim, dtype),
    ]


def _refused_settings(macos_version: str, environment: Mapping[str, str], world_size: int) -> list[str]:
    refusals = []
    if version_pair(macos_version) < (14, 0):  # minimum of the wheels from 2.12.1 on
        refusals.append(f"MPS runs need macOS >= 14, here {macos_version}")
    if _is_set(environment, "PYTORCH_ENABLE_MPS_FALLBACK"):
        refusals.append("PYTORCH_ENABLE_MPS_FALLBACK is set: it moves operators to the CPU unseen; unset it")
    if world_size > 1:
        refusals.append(f"MPS has one device and one process, world size {world_size} was asked for")
    return refusals


def _refused_products(torch_version: str, micro_batch_tokens: int, vocab: int, width: int) -> list[str]:
    refusals = []
    if version_pair(torch_version) < LONG_INNER_DIMENSION_SINCE:
        refusals += [
            f"{what} = {size} > {_MAX_INNER_DIMENSION}: matrix products over so many elements are wrong on "
            f"MPS before torch 2.14, here {torch_version} (pytorch #193487)"
            for what, size in (("micro-batch tokens", micro_batch_tokens), ("vocabulary", vocab))
            if size > _MAX_INNER_DIMENSION
        ]
        if vocab * width >= 2**31:
            refusals.append(f"embedding of {vocab} x {width}: 2^31 elements fail on MPS (pytorch #188756)")
    return refusals


def _refused_scores(num_scores: int) -> list[str]:
    """`num_scores` is B*H*T*T: training stores them all, MPS has no fused backward pass (#179294)."""
    if num_scores < _MAX_SCORES:
        return []
    return [
        f"attention of {num_scores} >= 2^32 scores is wrong on MPS (pytorch #197636): lower device_sequences"
    ]


def _refused_half_precision(
    torch_version: str, environment: Mapping[str, str], sequence_length: int, head_dim: int, dtype: str
) -> list[str]:
    if dtype not in _HALF:
        return []
    reason = half_precision_refusal(torch_version)
    refusals = [] if reason is None else [reason]
    takes_graph_path = head_dim not in _HEAD_DIMS_OF_METAL_PATH or _is_set(
        environment, "PYTORCH_MPS_DISABLE_PREFILL_ATTENTION"
    )
    if takes_graph_path and sequence_length > _MAX_QUERIES_OF_GRAPH_PATH:
        refusals.append(
            f"half-precision attention over {sequence_length} > {_MAX_QUERIES_OF_GRAPH_PATH} tokens with "
            f"head dimension {head_dim} takes MPS's graph path, whose mask is too strict there: use one of "
            f"{_HEAD_DIMS_OF_METAL_PATH} with PYTORCH_MPS_DISABLE_PREFILL_ATTENTION unset, or float32"
        )
    return refusals


def _is_set(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "0") not in ("", "0")
