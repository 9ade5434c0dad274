"""Passes of an op that go through torch.compile, each compiled as few times as its shapes allow."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


@cache
def compiled_pass(
    function: Callable[..., Any], *, dynamic: bool = True, contract: str = "off"
) -> Callable[..., Any]:
    """The function compiled whole.

    Args:
        dynamic: one compilation for tensors of any size; numbers that change are best tensors too.
        contract: "fast" where a product and its sum are to be rounded once, as eager `lerp` and `add_` do.
    """
    options: dict[str, Any] = {"cpp.enable_floating_point_contract_flag": contract}
    return torch.compile(function, dynamic=dynamic, fullgraph=True, options=options)
