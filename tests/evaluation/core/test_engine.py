"""The engine answers as the plain evaluation does, whatever the batches, ranks and compiler."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from bench.evaluation.core.answers import Answers, choose
from bench.evaluation.core.bundle import Bundle, open_bundle
from bench.evaluation.core.engine import Engine, Ranks
from bench.evaluation.core.prompts import Encoded
from bench.evaluation.core.units import batches_of, rounded, units_of
from model.prefix_cache import positions_beyond
from tests.evaluation.core.plain import answer_plainly
from tests.evaluation.core.tiny_bundle import byte_tokenizer, config, encoded, model, write_bundle
from tests.model.configs import CPU, scrambled

LABELS = ("pick", "letters", "who", "squad")
POSITIONS = 480
BUDGETS = (1, 700, 1 << 16)


def engine(**options: Any) -> Engine:
    """Of the small model."""
    return Engine(model(), CPU, POSITIONS, **options)


def assert_same(ours: Answers, theirs: Answers, tolerance: float = 2e-5) -> None:
    assert ours.predictions == theirs.predictions
    assert ours.correct == theirs.correct
    np.testing.assert_allclose(ours.margins, theirs.margins, atol=tolerance)


def with_the_likeliest_answer(item: Encoded) -> Encoded:
    """The item with an answer of two tokens that the model gives itself."""
    row = item.rows[0][: item.spans[0][0]]
    for _ in range(2):
        with torch.no_grad(), positions_beyond(model(), POSITIONS):
            hidden = model()(torch.from_numpy(row.astype(np.int64))[None])
        row = np.append(row, model().logits(hidden)[0, -1].argmax().numpy().astype(np.uint32))
    return Encoded((row,), ((len(row) - 2, len(row)),), -1)


@pytest.mark.parametrize("label", LABELS)
def test_equal_to_the_plain_evaluation_at_every_batch_size(bundle: Bundle, label: str) -> None:
    items = encoded(bundle, label)
    if label == "squad":
        items = [with_the_likeliest_answer(item) if index % 2 else item for index, item in enumerate(items)]
    plain = answer_plainly(model(), items, CPU)
    assert len(set(plain.correct)) == 2
    for budget in BUDGETS:
        assert_same(engine(token_budget=budget).answer(items), plain)


@pytest.mark.parametrize("label", LABELS)
def test_sharing_the_work_changes_no_bit(bundle: Bundle, label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    items = encoded(bundle, label)
    alone = engine(token_budget=300).answer(items)
    for size in (2, 3, 50):
        total = np.zeros(())

        def gathered(self: Engine, table: Any) -> Any:
            nonlocal total
            total = total + table
            return total

        monkeypatch.setattr(Engine, "_summed", gathered)
        shared = [engine(token_budget=300, ranks=Ranks(rank, size)).answer(items) for rank in range(size)]
        assert shared[-1] == alone


def run_rank(rank: int, size: int, folder: str) -> None:
    """One of several processes: its answers, as JSON."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    bundle = open_bundle(Path(folder))
    answers = [engine(token_budget=300, ranks=Ranks(rank, size)).answer(encoded(bundle, x)) for x in LABELS]
    (Path(folder) / f"{rank}.json").write_bytes(msgspec.json.encode(answers))
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_get_the_whole_result(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=run_rank, args=(rank, 2, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    alone = [engine(token_budget=300).answer(encoded(open_bundle(tmp_path), label)) for label in LABELS]
    for rank in range(2):
        assert (tmp_path / f"{rank}.json").read_bytes() == msgspec.json.encode(alone)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own, on its first import
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's own
def test_compiled_answers_are_the_eager_ones(bundle: Bundle) -> None:
    subject = scrambled(config(depth=1, window_sizes=(48,), value_embedding_layers=(0,), backout_layer=0))
    items = encoded(bundle, "pick")
    eager = Engine(subject, CPU, POSITIONS, token_budget=1 << 16)
    compiled = Engine(subject, CPU, POSITIONS, token_budget=1 << 16, compiled=True)
    assert_same(compiled.answer(items), eager.answer(items))


def test_cropped_rows_and_rows_without_anything_in_common() -> None:
    rng = np.random.default_rng(0)
    vocab = byte_tokenizer().vocab_size
    rows = tuple(rng.integers(0, vocab, size, dtype=np.uint32) for size in (400, 30, 2))
    items = [
        Encoded(rows, ((390, 400), (5, 30), (1, 2)), 1),
        Encoded(rows[:1], ((1, 400),), -1),  # nothing but the answer
        Encoded(rows[1:], ((29, 30), (1, 2)), 0),
    ]
    for budget in BUDGETS:
        assert_same(engine(token_budget=budget).answer(items), answer_plainly(model(), items, CPU))


def test_equal_choices_tie_and_the_first_wins(bundle: Bundle) -> None:
    items = encoded(bundle, "pick")
    doubled = [item._replace(rows=item.rows[:1] * 3, spans=item.spans[:1] * 3, gold=2) for item in items]
    doubled = [item for item in doubled if item.spans[0][0] < item.spans[0][1]]
    answers = engine().answer(doubled)
    assert set(answers.predictions) == {0}
    assert set(answers.margins) == {0.0}
    assert not any(answers.correct)


@pytest.mark.parametrize(
    ("losses", "gold", "expected"),
    [
        ([2.0, 1.0, 3.0], 1, (1, 1.0)),
        ([2.0, 1.0, 3.0], 0, (1, -1.0)),
        ([1.0, 1.0], 1, (0, 0.0)),
        ([float("nan"), 1.0], 1, (0, 0.0)),  # nanochat's min keeps a first NaN
        ([1.0, float("nan"), 0.5], 2, (2, 0.5)),
        ([1.0, float("nan")], 1, (0, 0.0)),
    ],
)
def test_the_choice(losses: list[float], gold: int, expected: tuple[int, float]) -> None:
    assert choose(losses, gold) == expected


TOKENS = st.lists(st.integers(0, 3), min_size=2, max_size=9)


@given(st.lists(TOKENS, min_size=1, max_size=4), st.data())
def test_units_hold_every_scored_token_once_and_nothing_is_fed_in_vain(
    rows: list[list[int]], data: st.DataObject
) -> None:
    arrays = tuple(np.array(row, dtype=np.uint32) for row in rows)
    spans = tuple((data.draw(st.integers(1, len(row))), len(row)) for row in rows)
    item = Encoded(arrays, spans, 0)
    seen = {}
    for unit in units_of(0, item):
        for scored in unit.scored:
            start, end = spans[scored.row]
            fed = np.concatenate((unit.stem, unit.branches[scored.branch]))
            assert np.array_equal(fed, arrays[scored.row][: end - 1])
            assert len(unit.stem) + scored.first == start - 1
            seen[scored.row] = scored.targets
    for row, (start, end) in enumerate(spans):
        first = rows.index(rows[row])
        if start == end or first != row:
            assert row not in seen or start < end
        elif spans[first] == spans[row]:
            assert np.array_equal(seen[row], arrays[row][start:end])


@given(
    st.lists(st.tuples(st.integers(0, 90), st.integers(1, 9)), min_size=1, max_size=30), st.integers(1, 900)
)
def test_batches_hold_each_unit_once_within_the_budget(shapes: list[tuple[int, int]], budget: int) -> None:
    items = [
        Encoded((np.arange(stem + branch + 1, dtype=np.uint32),), ((stem + 1, stem + branch + 1),), -1)
        for stem, branch in shapes
    ]
    units = [unit for index, item in enumerate(items) for unit in units_of(index, item)]
    batches = batches_of(units, budget)
    assert sorted(unit.item for batch in batches for unit in batch.units) == list(range(len(items)))
    for batch in batches:
        assert len(batch.units) == 1 or batch.num_tokens <= budget
        assert all(len(unit.stem) <= batch.stem_tokens for unit in batch.units)
        assert all(len(branch) <= batch.branch_tokens for unit in batch.units for branch in unit.branches)


def test_lengths_are_rounded_up_by_little() -> None:
    for length in range(1, 5000):
        assert length <= rounded(length) <= max(length + 7, length * 17 / 16 + 1)
