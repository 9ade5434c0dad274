"""`bench data`: pin a manifest, fetch its shards, prepare tokens ahead of a run."""

from __future__ import annotations

from pathlib import Path

from bench.data.fetch import fetch
from bench.data.manifest import load_manifest, load_source, pin, pinned_path
from bench.data.text import prepared_text

DEFAULT_VALIDATION_BYTES = 50_000_000  # as bench.spec.recipe.Eval
TOKENIZER_CHARS = 2_000_000_000  # as bench.spec.recipe.Data


def pin_dataset(name: str, endpoint: str, token: str | None) -> None:
    """Ask the hub once for revision, sizes and hashes, and write the manifest."""
    path = pinned_path(name)
    manifest = pin(load_source(name), endpoint=endpoint, token=token, path=path)
    print(f"pinned {len(manifest.files)} files of {manifest.repository} at {manifest.revision[:12]}: {path}")


def fetch_dataset(name: str, num_shards: int, data_folder: Path, endpoint: str, token: str | None) -> None:
    """Fetch the first shards and the validation shard, verified."""
    manifest = load_manifest(pinned_path(load_source(name).name))
    entries = manifest.first_shards(num_shards)
    paths = fetch(manifest, entries, data_folder / "shards" / name, endpoint=endpoint, token=token)
    print(f"{len(paths)} files of {name} are whole in {data_folder / 'shards' / name}")


def prepare_dataset(name: str, num_shards: int, vocab_size: int, data_folder: Path, workers: int) -> None:
    """Train the tokenizer and write the tokens a run will read."""
    _, prepared = prepared_text(
        name,
        vocab_size,
        data_folder,
        validation_bytes=DEFAULT_VALIDATION_BYTES,
        tokenizer_chars=TOKENIZER_CHARS,
        shards=num_shards,
        workers=workers,
        on_part=lambda done, total: print(f"shard {done} of {total}"),
    )
    facts = prepared.facts
    print(
        f"{name}: {facts.train.num_tokens:,} training tokens in {facts.train.num_documents:,} documents, "
        f"{facts.validation.num_tokens:,} for validation; shingle overlap {facts.shingle_overlap:.2%}"
    )
