"""The systems-only claims of a track's recipes, judged for its rows. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.records.equivalence import Equivalence, equivalence
from bench.records.rules_context import age
from bench.records.schema import Record
from bench.spec.track import Track

RowKey = tuple[str, str, str]  # text, recipe, recipe's hash


def claims_of(track: Track, groups: Mapping[RowKey, Sequence[Record]]) -> dict[RowKey, Equivalence]:
    """The claim of each row that makes one, by what the rows over its text measured."""
    fields: dict[str, dict[RowKey, list[Record]]] = {}
    for key, group in sorted(groups.items()):
        series = sorted(group, key=lambda record: (record.identity.seed_index, *age(record)))
        fields.setdefault(key[0], {})[key] = series
    judged = {
        key: equivalence(series, list(field.values()), track)
        for field in fields.values()
        for key, series in field.items()
    }
    return {key: claim for key, claim in judged.items() if claim is not None}


def is_unproven(claim: Equivalence | None) -> bool:
    """Whether a row says more than it shows, and so has no rank."""
    return claim is not None and claim.verdict not in ("equivalent", "not judged")
