"""The whole evaluation: scores, what it keeps, what it refuses, and the command."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.commands.core import core as core_command
from bench.data.tokenizer import Tokenizer
from bench.errors import BenchError, DataError, RecipeError, VerificationFailed
from bench.evaluation.core import evaluate
from bench.evaluation.core.bundle import Bundle
from bench.evaluation.core.engine import Engine
from bench.evaluation.core.evaluate import CoreOptions, CoreResult, Progress, evaluate_core
from bench.evaluation.core.items import encoded_items
from bench.evaluation.core.loading import load_checkpoint
from bench.evaluation.core.tasks import read_tasks
from bench.host.device import open_device
from bench.training import checkpoint
from bench.training.loop import Trainer
from model.gpt import GPT
from tests.evaluation.core.plain import answer_plainly
from tests.evaluation.core.tiny_bundle import NUM_ITEMS, byte_tokenizer, config, encoded, model, write_bundle
from tests.model.configs import CPU, scrambled

LABELS = ["pick", "letters", "who", "squad"]


def run(bundle: Bundle, data: Path | None = None, subject: GPT | None = None, **options: Any) -> CoreResult:
    """The small model on the tiny bundle."""
    kept = {} if data is None else {"tokens": data / "tokens", "answers": data / "answers"}
    return evaluate_core(subject or model(), byte_tokenizer(), bundle, CPU, CoreOptions(**options), **kept)


def test_scores_are_those_of_the_plain_answers(bundle: Bundle) -> None:
    score = run(bundle).score
    assert [task.label for task in score.tasks] == LABELS
    for task in score.tasks:
        plain = answer_plainly(model(), encoded(bundle, task.label), CPU)
        assert (task.num_items, task.num_correct) == (NUM_ITEMS, sum(plain.correct))
        assert task.margin == pytest.approx(sum(plain.margins) / NUM_ITEMS, abs=1e-5)
    assert score.metric_id == f"core-v1-bundle{bundle.manifest.sha256[:8]}"
    assert not score.limited
    assert score.num_items == 4 * NUM_ITEMS


def test_a_limit_marks_the_score(bundle: Bundle) -> None:
    score = run(bundle, max_per_task=6, squad="dclm").score
    assert score.limited
    assert score.metric_id.startswith("core-v1-squad-dclm-first6-")
    assert {task.num_items for task in score.tasks} == {6}
    assert run(bundle, max_per_task=NUM_ITEMS).score.limited


def test_squad_by_dclms_rule_keeps_to_the_trained_length(bundle: Bundle) -> None:
    ours, theirs = run(bundle).score.tasks, run(bundle, squad="dclm").score.tasks
    assert [task.cropped_rows for task in ours] == [0, 0, 0, 0]
    assert theirs[3].cropped_rows == NUM_ITEMS
    assert [task.margin for task in theirs[:3]] == [task.margin for task in ours[:3]]


def test_a_killed_evaluation_resumes_by_task(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, calls = Engine.answer, 0

    def killed(self: Engine, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return answer(self, *arguments)

    monkeypatch.setattr(Engine, "answer", killed)
    with pytest.raises(KeyboardInterrupt):
        run(bundle, tmp_path)
    resumed = run(bundle, tmp_path)
    assert calls == 3 + 2
    assert [t.margin for t in resumed.score.tasks] == [t.margin for t in run(bundle).score.tasks]


def test_kept_answers_are_of_one_subject_and_whole(bundle: Bundle, tmp_path: Path) -> None:
    first = run(bundle, tmp_path).score
    assert run(bundle, tmp_path).score == first  # seconds included: nothing ran again
    assert run(bundle, tmp_path, baselines="v2").score.tasks[0].seconds == first.tasks[0].seconds
    answers = tmp_path / "answers"
    assert len(list(answers.iterdir())) == 1
    run(bundle, tmp_path, max_per_task=6)
    run(bundle, tmp_path, scrambled(config(qk_scale=1.1)))
    assert len(list(answers.iterdir())) == 2  # the same weights of another shape are the next line's subject
    for path in answers.rglob("pick.json"):
        path.write_bytes(path.read_bytes()[:-9])
    again = run(bundle, tmp_path).score
    assert again.tasks[0].margin == first.tasks[0].margin
    assert again.tasks[0].seconds != first.tasks[0].seconds


def test_tokens_are_made_once(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = read_tasks(bundle)[0]
    made = encoded_items(bundle, task, byte_tokenizer(), cache=tmp_path, workers=3)
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode_batch", None)
        kept = encoded_items(bundle, task, byte_tokenizer(), cache=tmp_path)
    assert [item.spans for item in kept] == [item.spans for item in made]
    assert [item.gold for item in kept] == [item.gold for item in made]
    for ours, theirs in zip(kept, made, strict=True):
        assert [row.tolist() for row in ours.rows] == [row.tolist() for row in theirs.rows]
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert len(encoded_items(bundle, task, byte_tokenizer(), cache=tmp_path)) == NUM_ITEMS


def test_progress_tells_of_every_task_and_ends_at_the_whole(bundle: Bundle) -> None:
    heard: list[Progress] = []
    evaluate_core(
        model(), byte_tokenizer(), bundle, CPU, CoreOptions(token_budget=300), progress=heard.append
    )
    assert [each.label for each in heard if each.score is not None] == LABELS
    assert all(0.0 < each.share <= 1.0 and each.left_s >= 0.0 for each in heard)
    assert len(heard) > 3 * len(LABELS)


def test_an_evaluation_that_trains_is_caught(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, answer = scrambled(config()), Engine.answer

    def training(self: Engine, *arguments: Any) -> Any:
        with torch.no_grad():
            self.model.lm_head[0, 0] += 1.0
        return answer(self, *arguments)

    monkeypatch.setattr(Engine, "answer", training)
    with pytest.raises(VerificationFailed, match="weights changed"):
        run(bundle, subject=subject)


def test_a_model_that_peeks_at_the_target_gets_no_score(bundle: Bundle) -> None:
    subject = scrambled(config())
    honest = subject.kernels.attention

    def peeking(q: Any, k: Any, v: Any, window: int) -> Any:
        return honest(q, k, v + 0.1 * v.roll(-1, dims=1), window)

    subject.kernels = subject.kernels._replace(attention=peeking)
    for block in subject.blocks:
        block.attn.kernels = subject.kernels
    with pytest.raises(VerificationFailed, match="not causal"):
        run(bundle, subject=subject)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"subject": "other vocabulary"}, DataError, "the tokenizer 265"),
        ({"max_per_task": 0}, RecipeError, "max_per_task of 0"),
        ({"max_per_task": 3}, RecipeError, "letters: 3 items cannot give 3 examples"),
    ],
)
def test_what_cannot_be_scored(
    bundle: Bundle, changes: dict[str, Any], error: type[BenchError], message: str
) -> None:
    if "subject" in changes:
        changes = {"subject": scrambled(config(vocab_size=264))}
    with pytest.raises(error, match=message):
        run(bundle, **changes)


def write_checkpoint(folder: Path) -> Path:
    """A checkpoint of the small model, described."""
    subject = model()
    state = checkpoint.RunState(
        step=7, plan_sha256="p", seed=0, events_bytes=0, events_tip="", seconds={}, num_resumes=0
    )
    untrained: Any = SimpleNamespace(param_groups=[], state={})  # an optimizer that never stepped
    trainer = Trainer(subject, subject, untrained)
    byte_tokenizer().save(folder / "made" / "tokenizer.json")
    saved = checkpoint.save(folder, trainer, state, folder / "made" / "tokenizer.json")
    assert saved is not None
    return saved.folder


def test_a_checkpoint_is_the_model_it_was(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path)
    for place in (path, tmp_path):
        loaded = load_checkpoint(place, open_device("cpu"))
        assert loaded.step == 7
        assert loaded.tokenizer.sha256 == byte_tokenizer().sha256
        for (name, ours), (_, theirs) in zip(
            loaded.model.named_parameters(), model().named_parameters(), strict=True
        ):
            assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("name", ["model.json", "tokenizer.json", "state.json", "tensors.safetensors"])
def test_a_checkpoint_that_lacks_or_falsifies_a_file(tmp_path: Path, name: str) -> None:
    path = write_checkpoint(tmp_path) / name
    data = path.read_bytes()
    for wrong in (None, data[:-3], data[:-3] + b"xyz"):
        path.unlink(missing_ok=True)
        if wrong is not None:
            path.write_bytes(wrong)
        with pytest.raises(DataError):
            load_checkpoint(path.parent, open_device("cpu"))


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.host.device.configure", lambda *arguments, **options: {})
    options = {
        "root": tmp_path, "environment": {}, "data": tmp_path / "data", "device": "cpu", "json": False,
        "checkpoint": write_checkpoint(tmp_path / "run"), "bundle": write_bundle(tmp_path / "bundle"),
        "max_per_task": 6, "baselines": "v1", "squad": "nanochat", "lm_eval_table": False,
    }  # fmt: skip
    core_command(argparse.Namespace(**options))
    output = capsys.readouterr()
    assert "limited" in output.out
    assert "letters" in output.err
    core_command(argparse.Namespace(**options | {"lm_eval_table": True}))
    assert capsys.readouterr().out.startswith("|")
    core_command(argparse.Namespace(**options | {"json": True}))
    document = json.loads(capsys.readouterr().out)
    assert document["score"]["limited"] is True
    assert len(document["score"]["tasks"]) == 4
    assert set(document) == {"score", "probes", "path_probes"}


def test_positions_reach_as_far_as_nanochats() -> None:
    assert evaluate.POSITIONS_RATIO == 10
