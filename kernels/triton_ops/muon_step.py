"""The Muon step around the polar step: one kernel before it, one to three after it.

A line is what norms are taken of: a row or a column of a matrix, told to the kernels by two strides (from
line to line, along a line), so one kernel serves both. Sums over a line are made by one program, sums over
the lines of a matrix by a second kernel from the lines' sums: no atomics, one order of additions.

Before: `_momentum` updates the momentum and writes the Nesterov direction. After: `square_sums` of the
update's neurons; `_factors`, a program a matrix, turns them into the second moment and all of Muon+ and
NorMuon, a factor a neuron and one a matrix; `_apply` decays and updates. Parameters and moments are read and
written once, the update is read twice.

Shapes: S stacked matrices of M x P with L lines of A elements each.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, library

from kernels.counting import ran
from kernels.muon_step import require_direction, require_update
from kernels.reference import SMALLEST_NORM, SMALLEST_SECOND_MOMENT, neuron_dim
from kernels.triton_ops.launch import Config, Specimen, architecture, launch

DTYPES = (torch.float32, torch.bfloat16)

# Tiles of 2,048 elements, 16 a thread, wide along the rows of the matrix: whole cache lines are read
# whichever way the norms are taken. Rows as lines, then columns as lines.
_ROWS = {arch: Config({"LINES": 8, "ALONG": 256}) for arch in (80, 89, 90, 100)}
_COLUMNS = {arch: Config({"LINES": 64, "ALONG": 32}) for arch in (80, 89, 90, 100)}
_ROWS[0] = _COLUMNS[0] = Config({"LINES": 32, "ALONG": 64})
LINES_CONFIGS = {-1: _ROWS, -2: _COLUMNS}  # by the dimension along which norms are taken
MATRIX_CONFIG = {arch: Config({"LINES": 1024}) for arch in (80, 89, 90, 100)}
MATRIX_CONFIG[0] = Config({"LINES": 8})


@triton.jit
def _momentum(g_ptr, m_ptr, d_ptr, momentum, rest, num_lines, length, g_matrix, g_line, g_along, m_matrix,
              m_line, m_along, d_matrix, d_line, d_along, LINES: tl.constexpr,
              ALONG: tl.constexpr):  # fmt: skip
    """m <- m + rest (g - m), d = m - (m - g) rest. Programs (block of lines, matrix)."""
    lines = tl.program_id(0) * LINES + tl.arange(0, LINES)
    index = lines.to(tl.int64)[:, None]
    matrix = tl.program_id(1).to(tl.int64)
    g_ptr += matrix * g_matrix + index * g_line
    m_ptr += matrix * m_matrix + index * m_line
    d_ptr += matrix * d_matrix + index * d_line
    for start in range(0, length, ALONG):
        at = start + tl.arange(0, ALONG)
        inside = (lines < num_lines)[:, None] & (at < length)[None, :]
        places = at.to(tl.int64)[None, :]
        g = tl.load(g_ptr + places * g_along, mask=inside, other=0.0).to(tl.float32)
        m = tl.load(m_ptr + places * m_along, mask=inside, other=0.0).to(tl.float32)
        # torch's lerp: from the nearer end, so that equal ends give themselves.
        m = tl.where(rest < 0.5, m + rest * (g - m), g - (g - m) * momentum)
        d = tl.where(momentum < 0.5, g + momentum * (m - g), m - (m - g) * rest)
        tl.store(m_ptr + places * m_along, m.to(m_ptr.dtype.element_ty), mask=inside)
        tl.store(d_ptr + places * d_along, d.to(d_ptr.dtype.element_ty), mask=inside)


@triton.jit
def square_sums(u_ptr, squares_ptr, num_lines, length, u_matrix, u_line, u_along, LINES: tl.constexpr,
                ALONG: tl.constexpr):  # fmt: skip
    """Sum of squares of each line, [S, L]. Programs (block of lines, matrix)."""
    lines = tl.program_id(0) * LINES + tl.arange(0, LINES)
    matrix = tl.program_id(1).to(tl.int64)
    u_ptr += matrix * u_matrix + lines.to(tl.int64)[:, None] * u_line
    squares = tl.zeros([LINES], tl.float32)
    for start in range(0, length, ALONG):
        at = start + tl.arange(0, ALONG)
        inside = (lines < num_lines)[:, None] & (at < length)[None, :]
        u = tl.load(u_ptr + at.to(tl.int64)[None, :] * u_along, mask=inside, other=0.0).to(tl.float32)
        squares += tl.sum(u * u, 1)
    tl.store(squares_ptr + matrix * num_lines + lines, squares, mask=lines < num_lines)


@triton.jit
def _factors(squares_ptr, second_ptr, matrix_ptr, target, rest, smallest_norm, smallest, num_lines, length,
             second_matrix, second_line, RENORMALISE: tl.constexpr, SECOND: tl.constexpr,
             LINES: tl.constexpr):  # fmt: skip
    """The squares become each neuron's factor, [S, L]; a factor a matrix, [S]. Programs (matrix)."""
    matrix = tl.program_id(0).to(tl.int64)
    squares_ptr += matrix * num_lines
    second_ptr += matrix * second_matrix
    totals = tl.zeros([LINES], tl.float32)
    for start in range(0, num_lines, LINES):
        at = start + tl.arange(0, LINES)
        totals += tl.load(squares_ptr + at, mask=at < num_lines, other=0.0)
    norm = tl.sqrt_rn(tl.sum(totals, 0))
    factor = norm * 0.0 + 1.0
    if RENORMALISE:
        factor = target / tl.maximum(norm, smallest_norm)
    scaled = tl.zeros([LINES], tl.float32)
    for start in range(0, num_lines, LINES):
        at = start + tl.arange(0, LINES)
        inverse = tl.zeros([LINES], tl.float32) + 1.0
        if SECOND:
            squares = tl.load(squares_ptr + at, mask=at < num_lines, other=0.0) * factor * factor
            seconds = second_ptr + at.to(tl.int64) * second_line
            second = tl.load(seconds, mask=at < num_lines, other=0.0)
            mean = squares / length
            second = tl.where(
                rest < 0.5, second + rest * (mean - second), mean - (mean - second) * (1.0 - rest)
            )
            tl.store(seconds, second, mask=at < num_lines)
            inverse = 1.0 / tl.sqrt_rn(tl.maximum(second, smallest))
            scaled += squares * inverse * inverse
        tl.store(squares_ptr + at, inverse, mask=at < num_lines)
    if SECOND:
        factor = factor * (norm * factor / tl.maximum(tl.sqrt_rn(tl.sum(scaled, 0)), smallest))
    tl.store(matrix_ptr + matrix, factor)


@triton.jit
def _apply(p_ptr, u_ptr, factors_ptr, matrix_ptr, lr, decay, num_lines, length, p_matrix, p_line, p_along,
           u_matrix, u_line, u_along, FACTORS: tl.constexpr, LINES: tl.constexpr,
           ALONG: tl.constexpr):  # fmt: skip
    """u <- factors u; p <- p - lr u - decay p where u and p agree. Programs (block of lines, matrix)."""
    lines = tl.program_id(0) * LINES + tl.arange(0, LINES)
    matrix = tl.program_id(1).to(tl.int64)
    p_ptr += matrix * p_matrix + lines.to(tl.int64)[:, None] * p_line
    u_ptr += matrix * u_matrix + lines.to(tl.int64)[:, None] * u_line
    factors = tl.zeros([LINES], tl.float32) + 1.0
    if FACTORS:
        factors = tl.load(factors_ptr + matrix * num_lines + lines, mask=lines < num_lines, other=0.0)
        factors = factors * tl.load(matrix_ptr + matrix)
    for start in range(0, length, ALONG):
        at = start + tl.arange(0, ALONG)
        inside = (lines < num_lines)[:, None] & (at < length)[None, :]
        places = at.to(tl.int64)[None, :]
        p = tl.load(p_ptr + places * p_along, mask=inside, other=0.0)
        u = tl.load(u_ptr + places * u_along, mask=inside, other=0.0).to(tl.float32) * factors[:, None]
        decayed = tl.where(u * p >= 0.0, decay * p, 0.0)
        tl.store(p_ptr + places * p_along, p - (lr * u + decayed), mask=inside)


def by_line(stack: Tensor, dim: int) -> tuple[int, int, int]:
    """The strides from matrix to matrix, from line to line, and along a line; norms are taken along `dim`."""
    return stack.stride(0), stack.stride(-3 - dim), stack.stride(dim)


def lines_config(device: torch.device, dim: int) -> Config:
    """How a kernel over lines is launched, norms taken along `dim`."""
    return LINES_CONFIGS[dim][architecture(device)]


@library.custom_op("speedrun::muon_direction_", mutates_args=("momentum_SMP",))
def _muon_direction_(grads_SMP: Tensor, momentum_SMP: Tensor, momentum: float, dtype: torch.dtype) -> Tensor:
    ran("muon_direction", "triton")
    num_matrices, num_lines, length = grads_SMP.shape
    direction_SMP = torch.empty(grads_SMP.shape, dtype=dtype, device=grads_SMP.device)
    config = lines_config(grads_SMP.device, -1)
    grid = (triton.cdiv(num_lines, config.blocks["LINES"]), num_matrices)
    tensors = (grads_SMP, momentum_SMP, direction_SMP)
    strides = [stride for x in tensors for stride in x.stride()]
    arguments = (*tensors, float(momentum), 1.0 - momentum, num_lines, length, *strides)
    launch(_momentum, grid, arguments, (1, 2), config)
    return direction_SMP


@_muon_direction_.register_fake
def _(grads_SMP: Tensor, momentum_SMP: Tensor, momentum: float, dtype: torch.dtype) -> Tensor:
    return torch.empty(grads_SMP.shape, dtype=dtype, device=grads_SMP.device)


def muon_direction_(
    grads_SMP: Tensor, momentum_SMP: Tensor, momentum: float, dtype: torch.dtype | None = None
) -> Tensor:
    """Nesterov momentum; `momentum_SMP` is updated. Reference: `reference.muon_direction_`."""
    require_direction(grads_SMP, momentum_SMP, DTYPES)
    direction_SMP: Tensor = _muon_direction_(grads_SMP, momentum_SMP, momentum, dtype or grads_SMP.dtype)
    return direction_SMP


@library.custom_op("speedrun::muon_update_", mutates_args=("params_SMP", "second_moment"))
def _muon_update_(
    params_SMP: Tensor,
    update_SMP: Tensor,
    second_moment: Tensor | None,
    lr: float,
    weight_decay: float,
    beta2: float,
    renormalise: bool,
) -> None:
    ran("muon_update", "triton")
    dim, device = neuron_dim(params_SMP), params_SMP.device
    num_matrices, num_lines, length = len(params_SMP), params_SMP.shape[-3 - dim], params_SMP.shape[dim]
    config = lines_config(device, dim)
    grid = (triton.cdiv(num_lines, config.blocks["LINES"]), num_matrices)
    factors = torch.empty((num_matrices, num_lines), dtype=torch.float32, device=device)
    matrices = torch.empty(num_matrices, dtype=torch.float32, device=device)
    scaled = renormalise or second_moment is not None
    if scaled:
        lines = (num_lines, length)
        launch(square_sums, grid, (update_SMP, factors, *lines, *by_line(update_SMP, dim)), (1,), config)
        second = factors if second_moment is None else second_moment
        from_line = (0, 0) if second_moment is None else by_line(second_moment, dim)[:2]
        target = min(params_SMP.shape[-2:]) ** 0.5
        numbers = (target, 1.0 - beta2, SMALLEST_NORM, SMALLEST_SECOND_MOMENT, *lines, *from_line)
        one_each = MATRIX_CONFIG[architecture(device)]
        constants = {"RENORMALISE": renormalise, "SECOND": second_moment is not None}
        tensors = (factors, second, matrices)
        launch(_factors, (num_matrices,), (*tensors, *numbers), (0, 1, 2), one_each, **constants)
    strides = (*by_line(params_SMP, dim), *by_line(update_SMP, dim))
    rates = (float(lr), float(lr * weight_decay), num_lines, length)
    arguments = (params_SMP, update_SMP, factors, matrices, *rates, *strides)
    launch(_apply, grid, arguments, (0,), config, FACTORS=scaled)


@_muon_update_.register_fake
def _(
    params_SMP: Tensor,
    update_SMP: Tensor,
    second_moment: Tensor | None,
    lr: float,
    weight_decay: float,
    beta2: float,
    renormalise: bool,
) -> None:
    return None


def muon_update_(
    params_SMP: Tensor,
    update_SMP: Tensor,
    second_moment: Tensor | None,
    *,
    lr: float,
    weight_decay: float,
    beta2: float,
    renormalise: bool = False,
) -> None:
    """Muon+, NorMuon, cautious decay and the update, in place. Reference: `reference.muon_update_`.

    Parameters and second moment are float32, the update float32 or bf16.
    """
    require_update(params_SMP, update_SMP, second_moment, (torch.float32,), DTYPES)
    _muon_update_(params_SMP, update_SMP, second_moment, lr, weight_decay, beta2, renormalise)


def specimens(arch: int) -> list[Specimen]:
    """Every kernel at 24 matrices of 768 x 3072 or its transpose: float32, direction and update in bf16."""
    found = []
    lines = {"num_lines": "i32", "length": "i32"}
    for config, contiguous in ((_ROWS[arch], "along"), (_COLUMNS[arch], "line")):
        other = "line" if contiguous == "along" else "along"

        def add(kernel, start, stacks, constants, config=config, contiguous=contiguous, other=other):
            strides = {f"{x}_{way}": "i32" for x in stacks for way in ("matrix", other)}
            signature = start | lines | strides
            aligned = tuple(name for name, kind in signature.items() if kind != "fp32")
            ones = {f"{x}_{contiguous}": 1 for x in stacks}
            found.append(Specimen(kernel, signature, constants | ones, config, aligned, False))

        start = {"g_ptr": "*fp32", "m_ptr": "*fp32", "d_ptr": "*bf16", "momentum": "fp32", "rest": "fp32"}
        add(_momentum, start, "gmd", {})
        add(square_sums, {"u_ptr": "*bf16", "squares_ptr": "*fp32"}, "u", {})
        start = {"p_ptr": "*fp32", "u_ptr": "*bf16", "factors_ptr": "*fp32", "matrix_ptr": "*fp32"}
        add(_apply, start | {"lr": "fp32", "decay": "fp32"}, "pu", {"FACTORS": True})
    numbers = dict.fromkeys(("target", "rest", "smallest_norm", "smallest"), "fp32")
    pointers = dict.fromkeys(("squares_ptr", "second_ptr", "matrix_ptr"), "*fp32")
    signature = pointers | numbers | lines | {"second_matrix": "i32"}
    constants = {"RENORMALISE": True, "SECOND": True, "second_line": 1}
    aligned = (*pointers, *lines, "second_matrix")
    found.append(Specimen(_factors, signature, constants, MATRIX_CONFIG[arch], aligned, False))
    return found
