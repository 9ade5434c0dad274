"""Checkpoints: safetensors and JSON, nothing unpickled; whole or absent."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.data.storage import sha256_file, sync_folder, write_synced, writing
from bench.errors import DataError
from bench.host.circumstances import Circumstances
from bench.training.loop import Trainer
from model.config import ModelConfig
from model.gpt import GPT

KEEP = 2
# Ledger categories that a checkpoint carries over to the process that resumes.
CARRIED = ("train", "data_wait", "eval", "compile", "warmup", "checkpoint")
MODEL_FILE, TENSORS_FILE, TOKENIZER_FILE = "model.json", "tensors.safetensors", "tokenizer.json"


class RunState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a run stands between two steps; everything a resumed process cannot derive again."""

    step: int
    plan_sha256: str
    seed: int
    events_bytes: int
    events_tip: str
    seconds: dict[str, float]
    num_resumes: int
    dispatches: dict[str, int] = {}
    tensors_sha256: str = ""
    text_sha256: str = ""  # of the prepared tokens
    circumstances: Circumstances | None = None


class ModelFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the tensors do not say of their model."""

    model: ModelConfig
    compute_dtype: Literal["float32", "bfloat16", "float16"]
    tokenizer_sha256: str


class Saved(NamedTuple):
    """Where a checkpoint is, and the hash of its tensors' file."""

    folder: Path
    tensors_sha256: str


def save(
    folder: Path,
    trainer: Trainer,
    state: RunState,
    tokenizer: Path | None = None,
    keep: int | None = KEEP,
    *,
    writes: bool = True,
) -> Saved | None:
    """Write `step-N` into `folder` atomically and drop all but the newest `keep`, or none.

    Returns None on a rank that does not write.

    Args:
        writes: whether this rank does; the others only give their share of the optimizer's state.
        tokenizer: its file; with it the checkpoint can be evaluated by itself.

    Raises:
        DataError: no room or no permission; what was there before stays whole.
    """
    target, building = folder / f"step-{state.step:08d}", folder / ".building"
    tensors = _tensors(trainer)
    if not writes:
        return None
    with writing(building, sum(tensor.nbytes for tensor in tensors.values())):
        shutil.rmtree(building, ignore_errors=True)  # of a process that was killed
        try:
            tensors_sha256 = _build(building, tensors, state)
            if tokenizer is not None:
                _describe(building, trainer.model, tokenizer.read_bytes())
            shutil.rmtree(target, ignore_errors=True)
            os.replace(building, target)
        finally:
            shutil.rmtree(building, ignore_errors=True)  # a failed one may fill the disk
        sync_folder(folder)
    for old in checkpoints(folder)[:-keep] if keep else []:
        shutil.rmtree(old, ignore_errors=True)
    return Saved(target, tensors_sha256)


def _build(building: Path, tensors: dict[str, Tensor], state: RunState) -> str:
    """Write tensors and state; returns the hash of the tensors' file."""
    building.mkdir(parents=True)
    path = building / TENSORS_FILE
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # how safetensors reports any fault of the file system
        raise OSError(errno.ENOSPC, f"writing tensors: {error}") from error
    with path.open("rb") as file:
        os.fsync(file.fileno())  # a power cut must not leave a whole state.json beside half of the tensors
    whole = msgspec.structs.replace(state, tensors_sha256=sha256_file(path))
    write_synced(building / "state.json", msgspec.json.encode(whole))
    sync_folder(building)
    return whole.tensors_sha256


def _describe(building: Path, model: GPT, tokenizer: bytes) -> None:
    described = {
        "model": model.config,
        "compute_dtype": str(model.compute_dtype).removeprefix("torch."),
        "tokenizer_sha256": hashlib.sha256(tokenizer).hexdigest(),
    }
    write_synced(building / MODEL_FILE, msgspec.json.encode(described))
    write_synced(building / TOKENIZER_FILE, tokenizer)
    sync_folder(building)


def clear(folder: Path) -> None:
    """Remove every checkpoint: a run that starts at step 0 must not be resumed from another's.

    Raises:
        DataError: no permission.
    """
    with writing(folder, 0):
        for old in checkpoints(folder):
            shutil.rmtree(old)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first; one being built is not among them."""
    return sorted(folder.glob("step-*"))


def newest_whole(
    folder: Path, plan_sha256: str, seed: int, text_sha256: str = ""
) -> tuple[RunState, dict[str, Tensor]] | None:
    """The newest checkpoint that is complete, or None.

    Raises:
        DataError: it is of another plan, seed or text.
    """
    for path in reversed(checkpoints(folder)):
        state = whole_state(path)
        if state is None:
            continue
        if (state.plan_sha256, state.seed) != (plan_sha256, seed):
            raise DataError(
                f"{path} is of another plan or seed", "remove the folder, or run without --resume"
            )
        if state.text_sha256 != text_sha256:
            raise DataError(
                f"{path} was trained on another text, or tokens of another tokenizer",
                "bring the data folder back as it was, or run without --resume",
            )
        return state, load_file(path / TENSORS_FILE)
    return None


def whole_state(path: Path) -> RunState | None:
    """The state of one checkpoint; None where a file is missing, cut or altered."""
    try:
        state = msgspec.json.decode((path / "state.json").read_bytes(), type=RunState)
        is_whole = sha256_file(path / TENSORS_FILE) == state.tensors_sha256
    except (OSError, msgspec.DecodeError):
        return None
    return state if is_whole else None


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    """Every tensor of the run by a stable name: parameters, optimizer states by group, counts.

    They are those of a lone rank, so that a run may go on with another number of them.
    """
    optimizer = trainer.optimizer
    tensors = {f"model.{name}": param.detach() for name, param in trainer.model.named_parameters()}
    if trainer.clip is not None:
        tensors["clip.counts"] = trainer.clip.counts
    if trainer.scaler is not None:
        tensors |= {"scaler.scale": trainer.scaler.scale, "scaler.counts": trainer.scaler.counts}
    for group in optimizer.param_groups:
        for i, param in enumerate(group["params"]):
            for key, value in optimizer.whole_state(group, param).items():
                tensors[f"optimizer.{group['name']}.{i}.{key}"] = value
        if "step" in group:
            tensors[f"optimizer.{group['name']}.step"] = torch.tensor(group["step"])
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def restore(tensors: Mapping[str, Tensor], trainer: Trainer) -> None:
    """Put a checkpoint's tensors back, bit for bit.

    Raises:
        DataError: a tensor is missing or of another shape.
    """
    rest, optimizer = dict(tensors), trainer.optimizer
    if trainer.clip is not None:
        trainer.clip.counts.copy_(_take(rest, "clip.counts", (2,)))
    if trainer.scaler is not None:
        trainer.scaler.scale.copy_(_take(rest, "scaler.scale", ()))
        trainer.scaler.counts.copy_(_take(rest, "scaler.counts", (3,)))
    for name, param in trainer.model.named_parameters():
        param.data.copy_(_take(rest, f"model.{name}", tuple(param.shape)))
    for group in optimizer.param_groups:
        if "step" in group:
            group["step"] = int(_take(rest, f"optimizer.{group['name']}.step", ()))
        for i, param in enumerate(group["params"]):
            prefix = f"optimizer.{group['name']}.{i}."
            names = [name for name in rest if name.startswith(prefix)]
            # Copied: what was loaded may be a map of the file, which the next checkpoints remove.
            optimizer.load_state(group, param, {name.removeprefix(prefix): rest.pop(name) for name in names})
    if rest:
        raise DataError(
            f"checkpoint holds {len(rest)} unknown tensors, e.g. {min(rest)}", "it is of another model"
        )


def _take(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = tensors.pop(name, None)
    if tensor is None or tuple(tensor.shape) != shape:
        raise DataError(f"checkpoint tensor {name} is missing or not {shape}", "it is of another model")
    return tensor
