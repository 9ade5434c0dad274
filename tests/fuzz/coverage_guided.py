"""`make fuzz`: atheris over the readers of recipes, records and event logs, guided by coverage.

Stops at the first input that ends in anything but a BenchError, takes a second or touches another file.
libFuzzer writes that input to a file `crash-*` where it was started. The corpus starts from the checkout.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["bench", "tomli"]):
    from tests.fuzz.readers import ROOT, read_recipe, read_record

from bench.records.schema import encode
from tests.records.sample import sample

LONGEST_INPUT_BYTES = 32 * 1024


def main() -> None:
    """Fuzz one reader for so many seconds; the process ends in libFuzzer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("reader", choices=("recipes", "records", "logs"))
    parser.add_argument("--seconds", type=int, required=True)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    record, log = sample()
    honest = encode(record)
    readers = {
        "recipes": lambda data: read_recipe(data, folder),
        "records": lambda data: read_record(data, log, folder),
        "logs": lambda data: read_record(honest, data, folder),
    }
    seeds = {
        "recipes": [path.read_bytes() for path in sorted((ROOT / "submissions").glob("*.toml"))],
        "records": [honest],
        "logs": [log],
    }
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(seeds[options.reader]):
        (corpus / str(number)).write_bytes(content)
    limits = [f"-max_total_time={options.seconds}", f"-max_len={LONGEST_INPUT_BYTES}", "-timeout=10"]
    atheris.Setup(
        [sys.argv[0], *limits, "-seed=1", "-print_final_stats=1", str(corpus)], readers[options.reader]
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
