"""The tokenizer: byte-pair merges trained by rustbpe, applied by tiktoken, identified by their SHA-256."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
import tiktoken

from bench.data.storage import write_atomic
from bench.errors import DataError

# Pattern, names and order are nanochat's (nanochat/tokenizer.py at 92d63d4), so that its models and ours
# compare: GPT-4's split pattern with numbers in groups of one or two; special tokens follow the merges.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = (
    "<|bos|>",
    "<|user_start|>", "<|user_end|>",
    "<|assistant_start|>", "<|assistant_end|>",
    "<|python_start|>", "<|python_end|>",
    "<|output_start|>", "<|output_end|>",
)  # fmt: skip
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)


class TokenizerFile(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What the file holds; `merges` are the tokens' bytes in base64, in rank order."""

    format: Literal["speedrun-bench-bpe-1"]
    pattern: str
    merges: tuple[str, ...]
    special_tokens: tuple[str, ...]


class Tokenizer:
    """Text to token ids and back; equal files give equal ids everywhere.

    Attributes:
        vocab_size: merges and special tokens together.
        bos_id: the id of `<|bos|>`, which starts every document.
        sha256: of the canonical file; the tokenizer's identity.
        byte_lengths: int32 [vocab_size], UTF-8 bytes of each token, 0 for special tokens.
    """

    def __init__(
        self,
        merges: Sequence[bytes],
        pattern: str = SPLIT_PATTERN,
        special_tokens: Sequence[str] = SPECIAL_TOKENS,
    ) -> None:
        assert len(set(merges)) == len(merges) >= 256
        specials = {name: len(merges) + index for index, name in enumerate(special_tokens)}
        self._file = canonical_bytes(merges, pattern, special_tokens)
        self._encoding = tiktoken.Encoding(
            "speedrun-bench",
            pat_str=pattern,
            special_tokens=specials,
            mergeable_ranks={token: rank for rank, token in enumerate(merges)},
        )
        self.vocab_size = len(merges) + len(specials)
        self.bos_id = specials["<|bos|>"]
        self.sha256 = hashlib.sha256(self._file).hexdigest()
        lengths = [len(token) for token in merges] + [0] * len(specials)
        self.byte_lengths: npt.NDArray[np.int32] = np.array(lengths, dtype=np.int32)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learns merges from `texts`; DataError where `vocab_size` cannot be reached."""
        import rustbpe  # only training needs it

        if vocab_size < MIN_VOCAB_SIZE:
            message = f"vocabulary of {vocab_size}: below 256 bytes and {len(SPECIAL_TOKENS)} special tokens"
            raise DataError(message, f"choose at least {MIN_VOCAB_SIZE}")
        trainer = rustbpe.Tokenizer()
        trainer.train_from_iterator(iter(texts), vocab_size - len(SPECIAL_TOKENS), pattern=SPLIT_PATTERN)
        ranked = sorted(trainer.get_mergeable_ranks(), key=lambda item: int(item[1]))
        merges = list(dict.fromkeys(bytes(token) for token, _ in ranked))
        reached = len(merges) + len(SPECIAL_TOKENS)
        if reached < vocab_size:
            raise DataError(
                f"the text is too small for a vocabulary of {vocab_size}: it gives {reached}",
                "choose a smaller vocabulary or more text",
            )
        return cls(merges)

    @classmethod
    def load(cls, path: Path, sha256: str | None = None) -> Tokenizer:
        """Reads a saved tokenizer; DataError where it is absent, malformed or not `sha256`."""
        hint = "delete the file to train it again, or fetch the one the track names"
        try:
            data = path.read_bytes()
            file = msgspec.json.decode(data, type=TokenizerFile)
            merges = [base64.b64decode(token, validate=True) for token in file.merges]
        except (OSError, msgspec.MsgspecError, ValueError) as error:
            raise DataError(f"cannot read the tokenizer {path}: {error}", hint) from error
        found = hashlib.sha256(data).hexdigest()
        if sha256 is not None and found != sha256:
            raise DataError(f"tokenizer {path} is {found[:16]}..., not {sha256[:16]}...", hint)
        whole = {bytes([value]) for value in range(256)} <= set(merges) and len(set(merges)) == len(merges)
        if not whole or "<|bos|>" not in file.special_tokens:
            raise DataError(f"tokenizer {path} lacks single bytes or <|bos|>, or repeats a token", hint)
        tokenizer = cls(merges, file.pattern, file.special_tokens)
        if tokenizer.sha256 != found:
            raise DataError(f"tokenizer {path} is not in canonical form", hint)
        return tokenizer

    def save(self, path: Path) -> None:
        """Writes the canonical file."""
        write_atomic(path, self._file)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without `<|bos|>`; names of special tokens in the text are plain text."""
        # Not encode_ordinary: where the pattern's regex overflows its stack, that panics (tiktoken 0.14).
        with _encodable(len(text)):
            return self._encoding.encode(text, disallowed_special=())

    def encode_batch(self, texts: Iterable[str]) -> list[npt.NDArray[np.uint32]]:
        """Each text as uint32 [tokens + 1], starting with `<|bos|>`."""
        bos = np.array([self.bos_id], dtype=np.uint32)
        encode = self._encoding.encode_to_numpy
        encoded = []
        for text in texts:
            with _encodable(len(text)):
                encoded.append(np.concatenate((bos, encode(text, disallowed_special=()))))
        return encoded

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 by themselves become U+FFFD."""
        return self._encoding.decode(list(ids))


@contextmanager
def _encodable(num_chars: int) -> Iterator[None]:
    """Makes tiktoken's refusal a DataError; a run of 1,000,000 spaces overflows its regex's stack (0.14)."""
    try:
        yield
    except ValueError as error:
        message = f"tiktoken cannot encode a text of {num_chars:,} characters: {error}"
        raise DataError(message, "take the document, or its very long run of spaces, out") from error


def canonical_bytes(merges: Sequence[bytes], pattern: str, special_tokens: Sequence[str]) -> bytes:
    """The one spelling of a tokenizer file: sorted keys, no spaces."""
    file = TokenizerFile(
        format="speedrun-bench-bpe-1",
        pattern=pattern,
        merges=tuple(base64.b64encode(token).decode() for token in merges),
        special_tokens=tuple(special_tokens),
    )
    return msgspec.json.encode(file, order="sorted")
