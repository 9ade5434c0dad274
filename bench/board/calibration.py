"""A track's calibration: how far its figures move from seed to seed. Imports no torch.

`leaderboard/calibrations/<track>.json` is computed from runs of one recipe, the reference, over many seeds,
and names them: the board computes it again and refuses one that its records do not give.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.errors import DataError, VerificationFailed
from bench.experiments.statistics import Prior
from bench.records.schema import Record, encode
from bench.spec.track import NamedTrack

SCHEMA = 1
LEAST_RUNS = 5  # with fewer, the deviation itself is uncertain by more than a third
HINT = "`bench leaderboard --calibrate TRACK/RECIPE` writes it from the records"


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The standard deviations over seeds of a track's metric and of the natural log of official seconds."""

    schema: int
    track: str
    track_sha256: str
    recipe: str
    recipe_sha256: str
    metric_id: str
    corpus_sha256: str
    num_runs: int
    sigma_metric: float
    sigma_log_s: float
    records: list[str]  # sha256 of each record file, by seed index

    def metric(self) -> Prior:
        """The prior of the track's metric."""
        return Prior(self.sigma_metric, self.num_runs - 1)

    def log_s(self) -> Prior:
        """The prior of the log of official time."""
        return Prior(self.sigma_log_s, self.num_runs - 1)


def calibration_of(records: Sequence[Record]) -> Calibration:
    """The calibration that finished runs of one recipe on one track over one text give.

    Raises:
        VerificationFailed: they are too few, mixed, without a score, or repeat a seed.
    """
    runs = sorted(records, key=lambda record: record.identity.seed_index)
    scores = [record.scores.value for record in runs if record.scores.value is not None]
    kinds = {
        (one.identity.track, one.identity.track_sha256, one.identity.recipe_sha256, one.data.corpus_sha256)
        for one in runs
    }
    seeds = {record.identity.seed_index for record in runs}
    if len(runs) < LEAST_RUNS:
        raise VerificationFailed(
            f"{len(runs)} runs do not calibrate a track", f"run {LEAST_RUNS} seeds or more"
        )
    if (
        len(kinds) > 1
        or len(seeds) < len(runs)
        or len(scores) < len(runs)
        or any(record.timing.official_s <= 0 for record in runs)
    ):
        raise VerificationFailed(
            "a calibration needs scored runs of one method over one text, each of its own seed",
            "run the reference recipe over seeds 0 to 9",
        )
    first = runs[0]
    return Calibration(
        schema=SCHEMA,
        track=first.identity.track,
        track_sha256=first.identity.track_sha256,
        recipe=first.identity.recipe,
        recipe_sha256=first.identity.recipe_sha256,
        metric_id=first.scores.metric_id,
        corpus_sha256=first.data.corpus_sha256,
        num_runs=len(runs),
        sigma_metric=statistics.stdev(scores),
        sigma_log_s=statistics.stdev(math.log(record.timing.official_s) for record in runs),
        records=[hashlib.sha256(encode(record)).hexdigest() for record in runs],
    )


def encode_calibration(calibration: Calibration) -> bytes:
    """Canonical bytes: fields in order, two spaces, one newline at the end."""
    return msgspec.json.format(msgspec.json.encode(calibration), indent=2) + b"\n"


def load_calibrations(
    folder: Path, tracks: Sequence[NamedTrack], records: dict[str, Record]
) -> dict[str, Calibration]:
    """Every track's calibration, computed again from the records it names; the folder may be absent.

    Args:
        records: by the sha256 of their files.
    """
    shas = {named.name: named.sha256 for named in tracks}
    found = {}
    for path in sorted(folder.glob("*.json")):
        calibration = _load(path)
        if path.stem != calibration.track or calibration.track_sha256 != shas.get(calibration.track):
            raise VerificationFailed(f"{path}: calibrates another track, or another version of it", HINT)
        missing = [name for name in calibration.records if name not in records]
        if missing:
            raise VerificationFailed(f"{path}: no record {missing[0]}", HINT)
        again = calibration_of([records[name] for name in calibration.records])
        if not _agree(again, calibration):
            raise VerificationFailed(f"{path}: is not what the records it names give", HINT)
        found[calibration.track] = calibration
    return found


def _agree(a: Calibration, b: Calibration) -> bool:
    """Equal, the deviations to nine digits: a logarithm's last bit differs by C library."""
    close = all(
        math.isclose(x, y, rel_tol=1e-9)
        for x, y in ((a.sigma_metric, b.sigma_metric), (a.sigma_log_s, b.sigma_log_s))
    )
    return close and msgspec.structs.replace(a, sigma_metric=0.0, sigma_log_s=0.0) == msgspec.structs.replace(
        b, sigma_metric=0.0, sigma_log_s=0.0
    )


def _load(path: Path) -> Calibration:
    try:
        calibration = msgspec.json.decode(path.read_bytes(), type=Calibration)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", HINT) from error
    except (ValueError, RecursionError) as error:
        raise VerificationFailed(f"{path}: {error}", HINT) from error
    if calibration.schema != SCHEMA:
        raise VerificationFailed(f"{path}: schema {calibration.schema}, this is {SCHEMA}", HINT)
    return calibration
