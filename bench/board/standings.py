"""The board as values: sections, tables and ranks, from which text, page and feed are written."""

from __future__ import annotations

from typing import NamedTuple

from bench.board.calibration import Calibration
from bench.board.ranking import Ranks, ranks_of
from bench.board.rows import Row, is_ranked, only_diverged, prior_of, rows_of, sign_of
from bench.board.states import NOTHING_KNOWN, Known
from bench.experiments.statistics import Prior
from bench.records.schema import Record
from bench.spec.track import NamedTrack

UNRANKED = "–"


class Table(NamedTuple):
    """Rows over one text, which may be compared: ranked ones first, with their ranks."""

    corpus_sha256: str
    rows: list[Row]
    ranks: list[Ranks | None]

    def rank(self, place: int) -> str:
        """The rank of a row as it is shown."""
        return str(self.ranks[place] or UNRANKED)


class Section(NamedTuple):
    """One track's part of the board."""

    track: NamedTrack
    tables: list[Table]
    lost: dict[str, int]  # recipes none of whose runs finished: number of runs
    calibration: Calibration | None
    prior: Prior | None  # of what the track ranks by


def standings(tracks: list[NamedTrack], records: list[Record], known: Known = NOTHING_KNOWN) -> list[Section]:
    """A section a track, largest first; all comparisons of the board are one family of tests."""
    ordered = sorted(tracks, key=lambda named: (-named.track.size, named.name))
    found = [(track, text, rows) for track in ordered for text, rows in _texts(track, records, known).items()]
    ranked = ranks_of(
        [[row.sample for row in rows if is_ranked(row)] for _, _, rows in found],
        [prior_of(track, known) for track, _, _ in found],
        [sign_of(track) for track, _, _ in found],
    )
    tables = [
        (track.name, Table(text, rows, [*ranks, *[None] * (len(rows) - len(ranks))]))
        for (track, text, rows), ranks in zip(found, ranked, strict=True)
    ]
    return [
        Section(
            track=track,
            tables=[table for name, table in tables if name == track.name],
            lost=only_diverged(track, records),
            calibration=known.calibrations.get(track.name),
            prior=prior_of(track, known),
        )
        for track in ordered
    ]


def _texts(track: NamedTrack, records: list[Record], known: Known) -> dict[str, list[Row]]:
    rows = rows_of(track, records, known)
    return {
        text: [row for row in rows if row.corpus_sha256 == text]
        for text in sorted({row.corpus_sha256 for row in rows})
    }
