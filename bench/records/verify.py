"""Checks stored records against everything they claim, from their files alone. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.errors import VerificationFailed
from bench.records.rules import Finding, findings
from bench.records.store import StoredRecord
from bench.spec.track import NamedTrack


def verify(stored: StoredRecord, track: NamedTrack | None) -> list[str]:
    """Every reason why this record, looked at alone, must not be believed; empty when it holds.

    Args:
        track: the track as it is now, or None when it is gone.
    """
    tracks = {stored.record.identity.track: track} if track is not None else {}
    return [finding.reason for finding in findings([stored], tracks)[0] if finding.refuses]


def require_valid(stored: StoredRecord, track: NamedTrack | None) -> None:
    """Raise VerificationFailed with the first problem of this record, looked at alone."""
    _require(stored, verify(stored, track))


def require_all_valid(
    stored: Sequence[StoredRecord], tracks: Mapping[str, NamedTrack]
) -> list[list[Finding]]:
    """Raise VerificationFailed at the first record that is refused; returns the remarks on each."""
    found = findings(stored, tracks)
    for one, its in zip(stored, found, strict=True):
        _require(one, [finding.reason for finding in its if finding.refuses])
    return found


def _require(stored: StoredRecord, problems: list[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise VerificationFailed(
            f"{stored.path}: {problems[0]}{more}", "records are never edited; run it again"
        )
