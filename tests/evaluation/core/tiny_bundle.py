"""A made-up bundle of all three task types, and models that answer it."""

from __future__ import annotations

import hashlib
import json
import random
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import torch

from bench.data.tokenizer import Tokenizer
from bench.evaluation.core.bundle import Bundle, BundleFile, BundleManifest, open_bundle
from bench.evaluation.core.items import encoded_items
from bench.evaluation.core.prompts import Encoded
from bench.evaluation.core.tasks import read_tasks
from model.config import ModelConfig, padded_vocab, window_sizes
from model.gpt import GPT
from tests.model.configs import scrambled, small_config

NUM_ITEMS = 14
YAML = r"""icl_tasks:
-
  label: pick
  dataset_uri: choices/pick.jsonl
  num_fewshot: [2]
  icl_task_type: multiple_choice
  continuation_delimiter: "\nAnswer: "
-
  label: letters
  dataset_uri: choices/letters.jsonl
  num_fewshot: [3]
  icl_task_type: multiple_choice
-
  label: who
  dataset_uri: schema/who.jsonl
  num_fewshot: [0]
  icl_task_type: schema
-
  label: squad
  dataset_uri: language/next.jsonl
  num_fewshot: [2]
  icl_task_type: language_modeling
  has_categories: true
"""
CSV = (
    "Eval Task,Task Category,Random baseline,Description\n"
    'pick,x,25,"one, two"\nletters,x,9.1,y\nwho,x,50,y\nsquad,x,0,y\n'
)
_WORDS = ["river", "stone", "über", "naïve", "東京", "owl", "said", "blue", "seven", "don't", "lamp", "42"]


def texts(chooser: random.Random, least: int, most: int) -> str:
    """Some words."""
    return " ".join(chooser.choice(_WORDS) for _ in range(chooser.randint(least, most)))


def files() -> dict[str, bytes]:
    """The bundle's files by path."""
    chooser = random.Random(7)
    rows: dict[str, list[dict[str, Any]]] = {"pick": [], "letters": [], "who": [], "next": []}
    for index in range(NUM_ITEMS):
        choices = [texts(chooser, 1, 5) for _ in range(4)]
        if index == 3:
            choices[2] = choices[1]  # a tie
        if index == 5:
            choices = ["owl", "owl said", "lamp"]  # the first starts the second
        rows["pick"].append(
            {"query": texts(chooser, 3, 9), "choices": choices, "gold": chooser.randrange(len(choices))}
        )
        rows["letters"].append(
            {
                "query": f"{texts(chooser, 2, 6)}\nAnswer:",
                "choices": list("ABCD"),
                "gold": chooser.randrange(4),
            }
        )
        shared = texts(chooser, 2, 4)
        options = [f"{shared} the {word}" for word in chooser.sample(_WORDS, 2)]
        rows["who"].append(
            {"context_options": options, "continuation": texts(chooser, 1, 4), "gold": chooser.randrange(2)}
        )
        # Trailing space in the context: rendering trims it.
        rows["next"].append({"context": f"{texts(chooser, 3, 8)} ", "continuation": chooser.choice("aeiou")})
    lines = {name: "".join(json.dumps(row) + "\n" for row in table) for name, table in rows.items()}
    return {
        "core.yaml": YAML.encode(),
        "eval_meta_data.csv": CSV.encode(),
        "eval_data/choices/pick.jsonl": lines["pick"].encode(),
        "eval_data/choices/letters.jsonl": lines["letters"].encode(),
        "eval_data/schema/who.jsonl": lines["who"].encode(),
        "eval_data/language/next.jsonl": lines["next"].encode(),
    }


def manifest_of(content: dict[str, bytes], url: str = "") -> BundleManifest:
    """The manifest that these files should have."""
    entries = tuple(
        BundleFile(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for path, data in content.items()
    )
    return BundleManifest(name="tiny", url=url, source="made up", zip_folder="eval_bundle", files=entries)


def write_bundle(folder: Path, **changed: bytes) -> Path:
    """The tiny bundle with its manifest; `changed` files, by name without suffix, are changed in both."""
    content = {path: changed.get(Path(path).stem, data) for path, data in files().items()}
    for path, data in content.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest_of(content)))
    return folder


def write_zip(path: Path, content: dict[str, bytes], root: str = "eval_bundle") -> Path:
    """The files as nanochat's zip has them."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(f"{root}/{name}", data)
    return path


@cache
def byte_tokenizer() -> Tokenizer:
    """Every byte a token."""
    return Tokenizer([bytes([value]) for value in range(256)])


def config(**changes: Any) -> ModelConfig:
    """A small model of the byte tokenizer's vocabulary, every lever on; prompts are longer than its rows."""
    vocab, length = byte_tokenizer().vocab_size, 48
    shape: dict[str, Any] = {
        "vocab_size": vocab,
        "vocab_padded": padded_vocab(vocab),
        "sequence_length": length,
        "window_sizes": window_sizes("SSSL", 4, length, 16),
    }
    return small_config(**shape | changes)


@cache
def model(dtype: torch.dtype = torch.float32) -> GPT:
    """A model in which every parameter matters."""
    return scrambled(config(), dtype)


def encoded(bundle: Bundle, label: str, **options: Any) -> list[Encoded]:
    """A task's items as tokens."""
    task = next(task for task in read_tasks(bundle) if task.label == label)
    return encoded_items(bundle, task, byte_tokenizer(), **options)


def opened(folder: Path) -> Bundle:
    """The tiny bundle, written and opened."""
    return open_bundle(write_bundle(folder))
