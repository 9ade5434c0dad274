"""MuonClip: after a step, query and key matrices whose logits may grow too large are shrunk.

Two rules. "weight_rms" (karpathy/nanochat pull 733): a matrix whose RMS singular value, ||W||_F over the root
of its shorter side, is above sqrt(tau) is scaled back to it. "logit" (Kimi K2, arXiv 2507.20534, A): where a
head's largest observed logit S is above tau, its product of queries and keys is scaled by tau / S. With QK
norm the first only rescales what the norm undoes, and the second never acts while tau is at least
qk_scale^2 sqrt(head_dim).

Shapes: H query heads, G key heads, K head dim, D width.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from model.attention import Attention
from model.gpt import GPT, Block


class QKClip:
    """The rule of one run, and how often it acted.

    Args:
        rule: "weight_rms" or "logit"; the second needs a model that observes its logits.
        tau: the largest logit allowed.

    Attributes:
        counts: matrices or heads that were scaled, and that were looked at, over all steps so far: int64 [2].
    """

    def __init__(self, model: GPT, rule: str, tau: float, group: dist.ProcessGroup | None = None) -> None:
        assert rule in ("weight_rms", "logit"), rule
        self.rule, self.tau, self.group = rule, tau, group
        self.layers = [block.attn for block in model.blocks if isinstance(block, Block)]
        self.counts = torch.zeros(2, dtype=torch.int64, device=model.wte.device)

    @torch.no_grad()
    def __call__(self) -> None:
        """Shrink what is too large; to be called between two steps."""
        if self.rule == "weight_rms":
            self._by_weights([m.weight for layer in self.layers for m in (layer.c_q, layer.c_k)])
        else:
            for layer in self.layers:
                self._by_logits(layer)

    def _by_weights(self, weights: list[Tensor]) -> None:
        norms = torch.stack(torch._foreach_norm([weight.data for weight in weights]))
        sides = torch.tensor([min(weight.shape) for weight in weights], device=norms.device)
        rms = norms / sides.sqrt()
        self._count(rms > self.tau**0.5)
        scales = (self.tau**0.5 / rms).clamp_max(1.0)
        torch._foreach_mul_([weight.data for weight in weights], list(scales.unbind()))

    def _by_logits(self, layer: Attention) -> None:
        config, seen_H = layer.config, layer.seen_logits
        if self.group is not None:
            dist.all_reduce(seen_H, dist.ReduceOp.MAX, group=self.group)
        self._count(seen_H > self.tau)
        scale_GH = (self.tau / seen_H.clamp_min(self.tau)).view(config.num_kv_heads, -1)
        # A key head serves several query heads: it takes the root of the least scale, they what is missing.
        of_keys_G1 = scale_GH.amin(1, keepdim=True).sqrt()
        of_queries_H = (scale_GH / of_keys_G1).flatten()
        for weight, scale in ((layer.c_q.weight, of_queries_H), (layer.c_k.weight, of_keys_G1.flatten())):
            weight.data.view(scale.shape[0], config.head_dim, -1).mul_(scale[:, None, None])
        seen_H.fill_(float("-inf"))

    def forget(self) -> None:
        """Drop what was observed since the last step."""
        for layer in self.layers:
            if layer.config.observes_logits:
                layer.seen_logits.fill_(float("-inf"))

    def _count(self, clipped: Tensor) -> None:
        self.counts[0] += clipped.sum()
        self.counts[1] += clipped.numel()
