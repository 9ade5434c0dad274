"""Polar Express with symmetric products: half of the tiles of X X^T and of its square are computed, the rest
mirrored; a matrix and its transpose are equal bit for bit.

The algebra is `kernels.polar_express`'s: a step is C = X X^T + delta I, B = C C + epsilon I, X <- B X. The
first two are one kernel, whose diagonal is shifted in float32 before it is rounded; the third is torch's
product. A wide stack is iterated as it is, a tall one as its transpose, by strides. MuonEq is part of the
normalisation: that needs the squares by line then, not by block (`muon_step.square_sums`).

Shapes: S stacked matrices of M x P, or as iterated N x L with N <= L; T tiles a side, K the product's depth.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, library

from kernels.counting import ran
from kernels.polar_express import EQUILIBRATE, require_polar, shifts
from kernels.reference import SMALLEST_NORM
from kernels.triton_ops.launch import Config, Specimen, architecture, launch
from kernels.triton_ops.muon_step import LINES_CONFIGS, MATRIX_CONFIG, by_line, lines_config, square_sums

DTYPES = (torch.float32, torch.bfloat16)

# One program computes 128 x 128 of the result, 64 float32 accumulators a thread. Three stages of two 128 x 64
# bf16 tiles are 96 KB, what an sm_89 still has room for. In float32 there are no matrix units, and smaller
# tiles keep the operands in registers.
_PRODUCT = {"BLOCK": 128, "BLOCK_K": 64}
_HALF = {arch: Config(_PRODUCT, num_warps=8, num_stages=3) for arch in (80, 89, 90, 100)}
_FLOAT = {arch: Config({"BLOCK": 64, "BLOCK_K": 32}, num_warps=8, num_stages=2) for arch in (80, 89, 90, 100)}
_FLOAT[0] = Config({"BLOCK": 16, "BLOCK_K": 32})
_SCALE = {arch: Config({"BLOCK": 4096}, num_warps=8) for arch in (80, 89, 90, 100)}
_SCALE[0] = Config({"BLOCK": 256})


@triton.jit
def _symmetric_product(x_ptr, c_ptr, shift, num_rows, depth, num_tiles, stride_xs, stride_xr, stride_xk,
                       stride_cs, stride_cr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """C = X X^T + shift I. Programs (pair of tiles, matrix); the pairs are (i, i + d mod T), d = 0..T/2."""
    first = tl.program_id(0) % num_tiles
    distance = tl.program_id(0) // num_tiles
    if (2 * distance == num_tiles) & (first >= distance):
        return  # an even T meets its most distant pairs twice
    second = (first + distance) % num_tiles
    rows = first * BLOCK + tl.arange(0, BLOCK)
    columns = second * BLOCK + tl.arange(0, BLOCK)
    ks = tl.arange(0, BLOCK_K)
    x_ptr += tl.program_id(1).to(tl.int64) * stride_xs
    left = x_ptr + rows.to(tl.int64)[:, None] * stride_xr + ks.to(tl.int64)[None, :] * stride_xk
    right = x_ptr + columns.to(tl.int64)[None, :] * stride_xr + ks.to(tl.int64)[:, None] * stride_xk
    in_rows, in_columns = rows < num_rows, columns < num_rows
    product = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(0, depth, BLOCK_K):
        in_k = start + ks < depth
        a = tl.load(left, mask=in_rows[:, None] & in_k[None, :], other=0.0)
        b = tl.load(right, mask=in_k[:, None] & in_columns[None, :], other=0.0)
        product = tl.dot(a, b, product, input_precision="ieee")
        left += BLOCK_K * stride_xk
        right += BLOCK_K * stride_xk
    on_diagonal = rows[:, None] == columns[None, :]
    product = tl.where(on_diagonal, product + shift, product)
    result = product.to(c_ptr.dtype.element_ty)
    # Of a tile on the diagonal the upper half is stored twice, so that no order of additions shows.
    c_ptr += tl.program_id(1).to(tl.int64) * stride_cs
    kept = in_rows[:, None] & in_columns[None, :] & ((distance > 0) | (rows[:, None] <= columns[None, :]))
    tl.store(c_ptr + rows.to(tl.int64)[:, None] * stride_cr + columns[None, :], result, mask=kept)
    mirrored = in_columns[:, None] & in_rows[None, :] & ((distance > 0) | (columns[:, None] > rows[None, :]))
    tl.store(
        c_ptr + columns.to(tl.int64)[:, None] * stride_cr + rows[None, :], tl.trans(result), mask=mirrored
    )


@triton.jit
def _partial_squares(g_ptr, partial_ptr, numel, columns, stride_s, stride_r, stride_c, num_blocks,
                     BLOCK: tl.constexpr):  # fmt: skip
    """Sum of squares of each block of each matrix, [S, num_blocks]. Programs (block, matrix)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    places = (at // columns).to(tl.int64) * stride_r + (at % columns).to(tl.int64) * stride_c
    g_ptr += tl.program_id(1).to(tl.int64) * stride_s
    g = tl.load(g_ptr + places, mask=at < numel, other=0.0).to(tl.float32)
    tl.store(partial_ptr + tl.program_id(1) * num_blocks + tl.program_id(0), tl.sum(g * g, 0))


@triton.jit
def _normalise(g_ptr, partial_ptr, x_ptr, scale, norm_scale, numel, columns, stride_s, stride_r, stride_c,
               num_blocks, PARTIALS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """X = scale G / (norm_scale |G| + 1e-6), contiguous. Programs (block, matrix)."""
    index = tl.arange(0, PARTIALS)
    partials_ptr = partial_ptr + tl.program_id(1) * num_blocks
    squares = tl.sum(tl.load(partials_ptr + index, mask=index < num_blocks, other=0.0), 0)
    factor = scale / (tl.sqrt(squares) * norm_scale + 1e-6)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    places = (at // columns).to(tl.int64) * stride_r + (at % columns).to(tl.int64) * stride_c
    g_ptr += tl.program_id(1).to(tl.int64) * stride_s
    x_ptr += tl.program_id(1).to(tl.int64) * numel
    g = tl.load(g_ptr + places, mask=at < numel, other=0.0).to(tl.float32)
    tl.store(x_ptr + at, (g * factor).to(x_ptr.dtype.element_ty), mask=at < numel)


@triton.jit
def _equilibrate(g_ptr, squares_ptr, x_ptr, scale, norm_scale, smallest, num_lines, length, g_matrix, g_line,
                 g_along, x_matrix, x_line, x_along, CHUNK: tl.constexpr, LINES: tl.constexpr,
                 ALONG: tl.constexpr):  # fmt: skip
    """X = scale E / (norm_scale |E| + 1e-6), E the lines of G brought to the root mean square of their norms,
    those below the smallest to less. Programs (block of lines, matrix)."""
    matrix = tl.program_id(1).to(tl.int64)
    squares_ptr += matrix * num_lines
    totals = tl.zeros([CHUNK], tl.float32)
    shares = tl.zeros([CHUNK], tl.float32)
    for start in range(0, num_lines, CHUNK):
        at = start + tl.arange(0, CHUNK)
        squares = tl.load(squares_ptr + at, mask=at < num_lines, other=0.0)
        share = tl.sqrt_rn(squares) / tl.maximum(tl.sqrt_rn(squares), smallest)
        totals += squares
        shares += share * share
    target = tl.sqrt_rn(tl.sum(totals, 0) / num_lines)
    factor = target * scale / (target * tl.sqrt_rn(tl.sum(shares, 0)) * norm_scale + 1e-6)
    lines = tl.program_id(0) * LINES + tl.arange(0, LINES)
    norms = tl.sqrt_rn(tl.load(squares_ptr + lines, mask=lines < num_lines, other=0.0))
    factors = factor / tl.maximum(norms, smallest)
    g_ptr += matrix * g_matrix + lines.to(tl.int64)[:, None] * g_line
    x_ptr += matrix * x_matrix + lines.to(tl.int64)[:, None] * x_line
    for start in range(0, length, ALONG):
        at = start + tl.arange(0, ALONG)
        inside = (lines < num_lines)[:, None] & (at < length)[None, :]
        places = at.to(tl.int64)[None, :]
        g = tl.load(g_ptr + places * g_along, mask=inside, other=0.0).to(tl.float32)
        tl.store(x_ptr + places * x_along, (g * factors[:, None]).to(x_ptr.dtype.element_ty), mask=inside)


def symmetric_product(X: Tensor, shift: float) -> Tensor:
    """X X^T + shift I of every matrix [S, N, L], contiguous and bit for bit symmetric."""
    num_matrices, num_rows, depth = X.shape
    table = _FLOAT if X.dtype == torch.float32 or not X.is_cuda else _HALF
    config = table[architecture(X.device)]
    tiles = triton.cdiv(num_rows, config.blocks["BLOCK"])
    C = torch.empty((num_matrices, num_rows, num_rows), dtype=X.dtype, device=X.device)
    arguments = (X, C, float(shift), num_rows, depth, tiles, *X.stride(), C.stride(0), C.stride(1))
    launch(_symmetric_product, (tiles * (tiles // 2 + 1), num_matrices), arguments, (1,), config)
    return C


def normalised(gradient_SMP: Tensor, scale: float, norm_scale: float) -> Tensor:
    """The matrices times `scale`, each divided by its Frobenius norm times `norm_scale`; contiguous."""
    num_matrices, rows, columns = gradient_SMP.shape
    config = _SCALE[architecture(gradient_SMP.device)]
    blocks = triton.cdiv(rows * columns, config.blocks["BLOCK"])
    partials = torch.empty((num_matrices, blocks), dtype=torch.float32, device=gradient_SMP.device)
    X = torch.empty(gradient_SMP.shape, dtype=gradient_SMP.dtype, device=gradient_SMP.device)
    matrix = (rows * columns, columns, *gradient_SMP.stride(), blocks)
    launch(_partial_squares, (blocks, num_matrices), (gradient_SMP, partials, *matrix), (1,), config)
    arguments = (gradient_SMP, partials, X, float(scale), float(norm_scale), *matrix)
    padded = triton.next_power_of_2(blocks)
    launch(_normalise, (blocks, num_matrices), arguments, (2,), config, PARTIALS=padded)
    return X


def equilibrated(gradient_SMP: Tensor, scale: float, norm_scale: float, dim: int) -> Tensor:
    """`normalised` after MuonEq of the lines along `dim`."""
    num_matrices, num_lines, length = len(gradient_SMP), gradient_SMP.shape[-3 - dim], gradient_SMP.shape[dim]
    config, device = lines_config(gradient_SMP.device, dim), gradient_SMP.device
    grid = (triton.cdiv(num_lines, config.blocks["LINES"]), num_matrices)
    squares = torch.empty((num_matrices, num_lines), dtype=torch.float32, device=device)
    X = torch.empty(gradient_SMP.shape, dtype=gradient_SMP.dtype, device=device)
    lines = (num_lines, length, *by_line(gradient_SMP, dim))
    launch(square_sums, grid, (gradient_SMP, squares, *lines), (1,), config)
    numbers = (float(scale), float(norm_scale), SMALLEST_NORM)
    arguments = (gradient_SMP, squares, X, *numbers, *lines, *by_line(X, dim))
    chunk = MATRIX_CONFIG[architecture(device)].blocks["LINES"]
    launch(_equilibrate, grid, arguments, (2,), config, CHUNK=chunk)
    return X


@library.custom_op("speedrun::polar_express", mutates_args=())
def _polar_express(gradient_SMP: Tensor, steps: int, norm_scale: float, equilibrate: str) -> Tensor:
    ran("polar_express", "triton")
    scale, each = shifts(steps)
    dim = EQUILIBRATE[equilibrate]
    if dim is None:
        X = normalised(gradient_SMP, scale, norm_scale)
    else:
        X = equilibrated(gradient_SMP, scale, norm_scale, dim)
    tall = X.shape[-2] > X.shape[-1]
    for i, (delta, epsilon) in enumerate(each):
        wide = X.mT if tall and i == 0 else X
        B = symmetric_product(symmetric_product(wide, delta), epsilon)
        X = wide.mT @ B if tall and i + 1 == len(each) else B @ wide
    return X


@_polar_express.register_fake
def _(gradient_SMP: Tensor, steps: int, norm_scale: float, equilibrate: str) -> Tensor:
    return torch.empty(gradient_SMP.shape, dtype=gradient_SMP.dtype, device=gradient_SMP.device)


def polar_express(
    gradient_SMP: Tensor, steps: int = 5, norm_scale: float = 1.01, equilibrate: str = "none"
) -> Tensor:
    """Approximate nearest semi-orthogonal matrices; reference: `reference.polar_express`. No gradient."""
    require_polar(gradient_SMP, steps, equilibrate, DTYPES)
    X: Tensor = _polar_express(gradient_SMP, steps, norm_scale, equilibrate)
    return X


def specimens(arch: int) -> list[Specimen]:
    """The kernels at 24 matrices of 768 x 768 and of 768 x 3072."""
    found: list[Specimen] = []
    for kind, table in (("*bf16", _HALF), ("*fp32", _FLOAT)):
        names = ("num_rows", "depth", "num_tiles", "stride_xs", "stride_xr", "stride_cs", "stride_cr")
        signature = {"x_ptr": kind, "c_ptr": kind, "shift": "fp32"} | dict.fromkeys(names, "i32")
        aligned = tuple(name for name in signature if name not in ("shift", "num_tiles"))
        constants: dict[str, Any] = {"stride_xk": 1}
        uses = kind == "*bf16"
        found.append(Specimen(_symmetric_product, signature, constants, table[arch], aligned, uses))
        tall = {name: kind for name, kind in signature.items() if name != "stride_xr"} | {"stride_xk": "i32"}
        along = (*(name for name in aligned if name != "stride_xr"), "stride_xk")
        found.append(Specimen(_symmetric_product, tall, {"stride_xr": 1}, table[arch], along, uses))
        ints = dict.fromkeys(("numel", "columns", "stride_s", "stride_r", "num_blocks"), "i32")
        sums = {"g_ptr": kind, "partial_ptr": "*fp32"} | ints
        aligned = tuple(sums)
        found.append(Specimen(_partial_squares, sums, {"stride_c": 1}, _SCALE[arch], aligned, False))
        scaled = sums | {"x_ptr": kind, "scale": "fp32", "norm_scale": "fp32"}
        constants = {"stride_c": 1, "PARTIALS": 1024}
        found.append(Specimen(_normalise, scaled, constants, _SCALE[arch], (*aligned, "x_ptr"), False))
    for dim, contiguous, other in ((-1, "along", "line"), (-2, "line", "along")):
        ints = dict.fromkeys(
            ("num_lines", "length", "g_matrix", f"g_{other}", "x_matrix", f"x_{other}"), "i32"
        )
        pointers = {"g_ptr": "*bf16", "squares_ptr": "*fp32", "x_ptr": "*bf16"}
        signature = pointers | dict.fromkeys(("scale", "norm_scale", "smallest"), "fp32") | ints
        constants = {f"g_{contiguous}": 1, f"x_{contiguous}": 1, "CHUNK": MATRIX_CONFIG[arch].blocks["LINES"]}
        config = LINES_CONFIGS[dim][arch]
        found.append(Specimen(_equilibrate, signature, constants, config, (*pointers, *ints), False))
    return found
