"""What is known of records beside themselves: replays, disputes, calibrations. Imports no torch.

`leaderboard/replays/<record's sha256>.json` says whether a re-run of a record came out as it did;
`leaderboard/disputes/*.toml` names a record that somebody doubts. Either folder may be absent.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from bench.board.calibration import Calibration
from bench.errors import RecipeError
from bench.records.replayed import Day, Hash, Replay
from bench.spec.fields import Line, Table
from bench.spec.toml import decode, read_toml

State = Literal["provisional", "verified", "replayed", "disputed", "retired"]
HINT = "bench/board/states.py says what each field is"


class Dispute(Table, frozen=True, kw_only=True):
    """One leaderboard/disputes/NAME.toml: somebody's reason to doubt a record, with records that show it."""

    record: Hash
    opened: Day
    by: Line
    says: Line
    evidence: tuple[Hash, ...] = ()
    state: Literal["open", "settled"]


class Known(NamedTuple):
    """Everything that a row's state and intervals depend on beside its records."""

    calibrations: dict[str, Calibration] = {}  # by track; never written to  # noqa: RUF012
    replays: dict[str, Replay] = {}  # by record hash  # noqa: RUF012
    disputes: tuple[Dispute, ...] = ()


NOTHING_KNOWN = Known()


def state_of(hashes: Iterable[str], is_complete: bool, is_current: bool, known: Known) -> State:
    """The state of the row that these records make.

    A row of an older version of its track is retired. A doubt outweighs completeness, and so does a replay
    that failed. A complete row is verified, for the board takes no other record, and replayed once one of
    its replays passed.

    Args:
        is_complete: every seed is there and reaches the track's target.
        is_current: the records are of the track as it is.
    """
    mine = set(hashes)
    if not is_current:
        return "retired"
    replays = [replay.passed for record, replay in known.replays.items() if record in mine]
    is_doubted = any(one.state == "open" and one.record in mine for one in known.disputes)
    if is_doubted or False in replays:
        return "disputed"
    if not is_complete:
        return "provisional"
    return "replayed" if replays else "verified"


def known_of(hashes: Iterable[str], known: Known) -> list[str]:
    """A line for each dispute of these records, and for each replay."""
    mine = set(hashes)
    return [
        *(
            f"{one.record[:8]} disputed on {one.opened} by {one.by} ({one.state}): {one.says}"
            for one in known.disputes
            if one.record in mine
        ),
        *(
            f"{record[:8]} replayed on {one.replayed} by {one.by}, "
            f"{'passed' if one.passed else 'FAILED'}: {one.says}"
            for record, one in sorted(known.replays.items())
            if one.record in mine
        ),
    ]


def load_disputes(folder: Path) -> tuple[Dispute, ...]:
    """Every dispute, in the order of the files' names.

    Raises:
        RecipeError: every problem of the first file that is not one.
    """
    return tuple(_load_dispute(path) for path in sorted(folder.glob("*.toml")))


def _load_dispute(path: Path) -> Dispute:
    data = read_toml(path)
    try:
        return decode(data, Dispute, str(path))
    except RecipeError as error:
        raise RecipeError(error.message, HINT, problems=error.problems) from None
