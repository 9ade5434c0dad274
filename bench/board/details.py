"""What a row of the page opens to: time, loss, recipe, provenance, and the command that runs it again."""

from __future__ import annotations

import shlex
from typing import Any

import msgspec

from bench.board.delta import base_of, changes
from bench.board.ranking import chance_less
from bench.board.row_plots import ledger_bar, ledger_parts, loss_lines, mean_ledger
from bench.board.rows import Row, is_ranked, sign_of
from bench.board.standings import Section, Table
from bench.drawing.words import text

SURE = 0.999  # beyond it the tails of a t say little
SHORT = 12  # characters of a hash that people compare; the feed has them whole


def details(section: Section, table: Table, place: int) -> str:
    """The opened row."""
    row = table.rows[place]
    left = [_title(row), _against_next(section, table, place), _ledger(row), _loss(row), _warnings(row)]
    right = [_changes(section, table, row), _again(row), _provenance(row)]
    return f"<div>{''.join(left)}</div><div>{''.join(right)}</div>"


def _title(row: Row) -> str:
    return f"<p>{text(row.title)}</p>" if row.title else ""


def _against_next(section: Section, table: Table, place: int) -> str:
    """How sure the step to the next row is, from the two rows alone."""
    rows = table.rows[place : place + 2]
    known = [is_ranked(row) and (section.prior or row.sample.degrees) for row in rows]
    if len(rows) < 2 or not all(known):
        return ""
    row, following = rows
    chance = chance_less(row.sample, following.sample, section.prior)
    better = chance if sign_of(section.track) > 0 else 1.0 - chance
    shown = f"= {better:.1%}" if better < SURE else f"&gt; {SURE:.1%}"
    return f"<p>P(better than {text(following.recipe)}) {shown}, these two rows alone</p>"


def _ledger(row: Row) -> str:
    ledger = mean_ledger(row.records)
    drawn = ledger_bar(ledger)
    if not drawn:
        return ""
    keys = "".join(
        f'<li class="{kind}">{text(name)} {seconds:,.1f} s</li>'
        for kind, name, seconds in ledger_parts(ledger)
    )
    return f'<h4>Where the seconds went, mean over seeds</h4>{drawn}<ul class="key">{keys}</ul>'


def _loss(row: Row) -> str:
    drawn = loss_lines([(record.identity.seed_index, record.curves) for record in row.records])
    return f"<h4>Training loss, a line a seed</h4>{drawn}" if drawn else ""


def _warnings(row: Row) -> str:
    """Who doubts or replayed the row, and what the harness remarks on its own numbers."""
    claims = [row.claim.says] if row.claim else []
    heads = (
        ("What it claims", claims),
        ("What is known of its records", row.known),
        ("What the harness remarks", row.warnings),
    )
    return "".join(
        f"<h4>{head}</h4><ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>"
        for head, lines in heads
        if lines
    )


def _changes(section: Section, table: Table, row: Row) -> str:
    """What sets the recipe apart, and the resolved recipe: fields that are not the defaults."""
    base = base_of(row, table, section)
    parts = [_table_of_changes(f"Against {base.recipe}", changes(row, base, section.track))] if base else []
    parts.append(
        _table_of_changes("Resolved recipe, against the defaults", changes(row, None, section.track))
    )
    fields = row.records[0].identity.track_fields
    if fields:
        parts.append(f"<p>The track sets {text(', '.join(fields))}.</p>")
    return "".join(parts)


def _table_of_changes(title: str, found: list[tuple[str, Any, Any]]) -> str:
    if not found:
        return f"<h4>{text(title)}</h4><p>no field differs</p>"
    lines = "".join(
        f"<tr><td>{text(field)}<td>{text(_shown(before))}<td>{text(_shown(after))}</tr>"
        for field, before, after in found
    )
    count = f"{len(found)} fields" if len(found) > 1 else "1 field"
    return f"<details><summary>{text(title)}: {count}</summary><table>{lines}</table></details>"


def _shown(value: Any) -> str:
    return "unset" if value is None else msgspec.json.encode(value).decode()


def _again(row: Row) -> str:
    """The commands that run each seed again, at the commit of the first."""
    identity = row.records[0].identity
    lines = [f"git checkout {shlex.quote(identity.git_commit)}"]
    submission = shlex.quote(f"SUB=submissions/{identity.recipe}.toml")
    lines += [f"make bench {submission} {shlex.quote(f'TRACK={identity.track}')} SEED={n}" for n in row.seeds]
    shown = "\n".join(text(line) for line in lines)
    return f"<h4>Run it again</h4><pre>{shown}</pre>"


def _provenance(row: Row) -> str:
    first = row.records[0]
    common = {
        "recipe": row.recipe_sha256,
        "plan": first.identity.plan_sha256,
        "track": first.identity.track_sha256,
        "text": row.corpus_sha256,
        "tokenizer": first.data.tokenizer_sha256,
        "image": first.identity.image_digest,
    }
    told = ", ".join(f"{name} <code>{text(sha[:SHORT])}</code>" for name, sha in common.items() if sha)
    lines = "".join(_run(row, place) for place in range(len(row.records)))
    heads = "<tr><th>seed<th>score<th>time (s)<th>record<th>events<th>weights<th>commit<th>date (UTC)</tr>"
    return f"<h4>Provenance</h4><p>{told}</p><div class=box><table>{heads}{lines}</table></div>"


def _run(row: Row, place: int) -> str:
    record = row.records[place]
    identity = record.identity
    commit = identity.git_commit[:SHORT] + (" + changes" if identity.git_dirty_sha256 else "")
    hashes = (row.hashes[place], record.events_sha256_tip, record.scores.weights_sha256)
    cells = [
        f"{identity.seed_index}",
        f"{record.scores.value:.5f}",
        f"{record.timing.official_s:,.2f}",
        *(f"<code>{text(sha[:SHORT])}</code>" for sha in hashes),
        f"<code>{text(commit)}</code>",
        text(record.created[:16].replace("T", " ")),
    ]
    return f"<tr><td>{'<td>'.join(cells)}</tr>"
