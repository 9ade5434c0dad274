"""Commands about records: verify, submit, leaderboard, export."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bench.commands.shared import emit, workspace
from bench.errors import RecipeError, VerificationFailed

if TYPE_CHECKING:
    from bench.records.rules import Finding
    from bench.spec.workspace import Workspace


def verify(options: argparse.Namespace) -> int:
    """`bench verify`."""
    from bench.records.store import record_paths

    space = workspace(options)
    found = findings_of(space, options.records or record_paths(space.records))
    refused = any(one.refuses for its in found.values() for one in its)
    if options.json:
        emit({str(path): its for path, its in found.items()})
    elif options.markdown:
        print(_markdown(found, space.root))
    else:
        print(_plain(found))
    return VerificationFailed.exit_code if refused else 0


def findings_of(space: Workspace, paths: list[Path]) -> dict[Path, list[Finding]]:
    """What the rules have against these records, seen beside all others of the checkout.

    A file that is no record breaks the rule `schema`; where it lies beside those asked for, it is left out.
    """
    from bench.records.rules import Finding, findings
    from bench.records.store import read, record_paths
    from bench.spec.track import load_tracks

    asked = list(dict.fromkeys(path.absolute() for path in paths))
    broken, stored = {}, []
    for path in dict.fromkeys([*asked, *(path.absolute() for path in record_paths(space.records))]):
        try:
            stored.append(read(path))
        except VerificationFailed as error:
            reason = error.message.removeprefix(f"{path}: ")
            broken[path] = [Finding(rule="schema", refuses=True, reason=reason)]
    tracks = {named.name: named for named in load_tracks(space.tracks)}
    found = dict(zip((one.path for one in stored), findings(stored, tracks), strict=True))
    return {path: broken.get(path.absolute()) or found[path.absolute()] for path in dict.fromkeys(paths)}


def submit(options: argparse.Namespace) -> None:
    """`bench submit`."""
    from bench.board.build import check_board
    from bench.records.bundle import bundle, commit
    from bench.records.store import read
    from bench.spec.claim import require_claim
    from bench.spec.submission import load

    space = workspace(options)
    submission = load(options.recipe, space.submissions)
    require_claim(submission, space.submissions)
    made = bundle(space, submission, options.recipe)
    paths = [space.root / name for name in made.records]
    found = findings_of(space, paths)
    for path, its in found.items():
        for one in (one for one in its if one.refuses):
            told = f"{path.relative_to(space.root)} breaks {one.rule}: {one.reason}"
            raise VerificationFailed(told, "records are never edited; run it again")
        if read(path).record.identity.recipe_sha256 != submission.sha256:
            told = f"{path.relative_to(space.root)} is of another version of {submission.name}"
            raise VerificationFailed(
                told, "restore the recipe that ran, or give the new one a name of its own"
            )
    check_board(space)
    remarks = [f"# {one.rule}: {one.reason}" for its in found.values() for one in its]
    if options.commit:
        commit(space, made)
        print(f"committed {len(made.files)} files on branch {made.branch}; push it to your fork")
    else:
        print("\n".join([*remarks, *made.lines(), f"git push YOUR-FORK {made.branch}"]))


def _plain(found: dict[Path, list[Finding]]) -> str:
    lines = []
    for path, its in found.items():
        lines.append(f"{path}: {'refused' if any(one.refuses for one in its) else 'ok'}")
        lines += [f"  {'breaks' if one.refuses else 'remark'} {one.rule}: {one.reason}" for one in its]
    num_refused = sum(any(one.refuses for one in its) for its in found.values())
    return "\n".join([*lines, f"{len(found)} records, {num_refused} with problems"])


def _markdown(found: dict[Path, list[Finding]], root: Path) -> str:
    """For a pull request: one table, and nothing in it that a record could make into markup."""
    from bench.board.markdown import escape, table

    rows = []
    for path, its in found.items():
        absolute = path.absolute()
        name = escape(str(absolute.relative_to(root)) if absolute.is_relative_to(root) else str(path))
        for one in its:
            rows.append([name, "refused" if one.refuses else "remark", f"`{one.rule}`", escape(one.reason)])
        rows += [[name, "ok", "", ""]] if not its else []
    num_refused = sum(any(one.refuses for one in its) for its in found.values())
    columns = [("record", "left"), ("verdict", "left"), ("rule", "left"), ("reason", "left")]
    told = f"{len(found)} records, {num_refused} refused. RULES.md says what each rule asks."
    return f"{table(columns, rows)}\n\n{told}"


def leaderboard(options: argparse.Namespace) -> None:
    """`bench leaderboard`."""
    from bench.board.build import check_board, write_board, write_calibration

    space = workspace(options)
    if options.check and options.calibrate:
        raise RecipeError("--check and --calibrate exclude each other", "calibrate first, then check")
    if options.check:
        names = ", ".join(str(path.relative_to(options.root)) for path in check_board(space))
        print(f"{names}: what the records say")
        return
    if options.calibrate:
        print(f"wrote {write_calibration(space, options.calibrate).relative_to(options.root)}")
    for path in write_board(space):
        print(f"wrote {path.relative_to(options.root)}")


def export(options: argparse.Namespace) -> None:
    """`bench export`."""
    from bench.board.build import verified_records
    from bench.board.export import csv_of

    tracks, records = verified_records(workspace(options))
    print(csv_of(tracks, records), end="")
