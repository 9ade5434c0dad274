"""A checkpoint as a model and its tokenizer: what `bench core` needs beside the tensors.

A checkpoint folder holds `tensors.safetensors` and `state.json`, from which a run is resumed, and for this
`model.json`, a `ModelFile`, and `tokenizer.json`, the tokenizer's canonical file (bench.training.checkpoint).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from bench.data.storage import sha256_file
from bench.data.tokenizer import Tokenizer
from bench.errors import DataError
from bench.host.device import Device
from bench.training.checkpoint import MODEL_FILE, TOKENIZER_FILE, ModelFile, RunState, checkpoints
from kernels.choices import choose
from kernels.dispatch import bind
from model.gpt import GPT
from model.initial import build

T = TypeVar("T")
_HINT = "name a checkpoint folder that holds model.json and tokenizer.json beside its tensors"


class Loaded(NamedTuple):
    """A model ready to be evaluated."""

    model: GPT
    tokenizer: Tokenizer
    step: int


def load_checkpoint(path: Path, device: Device) -> Loaded:
    """The model and tokenizer of a checkpoint folder, or of a run folder's newest one.

    Raises:
        DataError: a file is missing, malformed or of another content than its hash says.
        PlanRefused: this device does not compute in the model's dtype.
    """
    folder = path if (path / "state.json").is_file() else next(iter(reversed(checkpoints(path))), path)
    state = _read(folder / "state.json", RunState)
    described = _read(folder / MODEL_FILE, ModelFile)
    tokenizer = Tokenizer.load(folder / TOKENIZER_FILE, described.tokenizer_sha256)
    tensors = folder / "tensors.safetensors"
    if not tensors.is_file() or sha256_file(tensors) != state.tensors_sha256:
        raise DataError(f"{tensors} is missing or not what state.json says", "take an older checkpoint")
    dtype = device.compute_dtype(described.compute_dtype)
    kernels = bind(choose(device.kind, dtype=described.compute_dtype), compiled=False)
    model = build(described.model, dtype, kernels, device.torch_device, seed=0)
    _fill(model, tensors)
    return Loaded(model, tokenizer, state.step)


def _read(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(f"cannot read {path}: {error}", _HINT) from error


@torch.no_grad()
def _fill(model: GPT, path: Path) -> None:
    """The model's own tensors, one at a time: a checkpoint's optimizer states are never loaded."""
    try:
        with safe_open(path, framework="pt") as file:
            for name, param in model.named_parameters():
                tensor = file.get_tensor(f"model.{name}")
                if tensor.shape != param.shape:
                    raise DataError(
                        f"{path}: model.{name} is {tuple(tensor.shape)}", f"not {tuple(param.shape)}"
                    )
                param.copy_(tensor)
    except SafetensorError as error:
        raise DataError(f"{path}: {error}", "it is of another model") from error
