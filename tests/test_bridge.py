"""The other trainer: its loss against sentence-transformers and by hand, one forward or many, negatives, resume."""

import signal
from pathlib import Path
from types import SimpleNamespace

import datasets
import forked
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import STOPPED, checkpoint_steps, folders, metrics, saved, script, tiny_encoder
from safetensors.torch import load_file
from sentence_transformers.losses import MultipleNegativesRankingLoss
from torch.nn.functional import cosine_similarity

import train_bridge
from distill.command import UserError, run
from distill.mining.negatives import hard_negatives
from distill.pairs.pairs_folder import load_pairs
from distill.ranks import listening
from distill.training.cache import content_fingerprint
from distill.training.ranking import Ranking
from distill.training.steps import RankSteps, Steps
from distill.training.student import set_dropout
from distill.training.tokens import TokenizedPairs

LATEST = ("--resume_from_checkpoint", "latest")


@pytest.fixture(scope="module")
def given(pairs, student) -> list[str]:
    more = ("--learning_rate", "1e-3", "--logging_steps", "1", "--max_train_steps", "12", "--eval_steps", "6")
    return ["--pairs_dir", pairs, "--student_model_name_or_path", student, *more, "--checkpointing_steps", "5"]


def train(*options: str) -> int:
    """Run the trainer in this process; its exit code."""
    try:
        with listening():
            run(train_bridge.main, train_bridge.build_parser().parse_args(options))
    except SystemExit as end:
        return end.code
    return 0


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in metrics(folder) if "loss" in line]


def weights(folder: Path) -> dict:
    return load_file(folder / "run/student/model.safetensors")


# ---------------------------------------------------------------- the loss


def peer(vectors: list[torch.Tensor], scale: float) -> torch.Tensor:
    loss = MultipleNegativesRankingLoss(
        None, scale, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
    )
    return loss.compute_loss_from_embeddings(vectors, None)


@pytest.mark.parametrize("negatives", [0, 5])
def test_loss_and_gradients_are_those_of_sentence_transformers(negatives):
    torch.manual_seed(0)
    columns = [torch.randn(5, 8, requires_grad=True) for _ in range(2)]
    if negatives:
        columns.append(torch.randn(negatives, 8, requires_grad=True))
    rows = torch.cat([torch.arange(5), torch.arange(5), torch.arange(10, 10 + negatives)])
    of_pairs = torch.tensor([1] * 10 + [0] * negatives)
    languages = torch.tensor([0] * 5 + [1, 2, 1, 1, 2] + [1] * negatives)
    loss = Ranking(20.0, 0.0).errors(torch.cat(columns), rows, of_pairs, languages).sum() / 10
    found = torch.autograd.grad(loss, columns)
    expected = peer(columns, 20.0)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for mine, its in zip(found, torch.autograd.grad(expected, columns), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-6, rtol=1e-5)


def test_several_translations_of_a_source_and_a_margin_by_hand():
    """Row 3 has two translations, neither wrong for the other; a translation of row 7 is a hard negative of all."""
    torch.manual_seed(1)
    rows = torch.tensor([3, 7, 9, 3, 3, 7, 7])
    of_pairs, languages = torch.tensor([2, 1, 0, 1, 1, 1, 0]), torch.tensor([0, 0, 0, 1, 2, 1, 2])
    vectors, keep = torch.randn(7, 4), [0, 1, 3, 4, 5, 6]  # row 9 is in no pair of this step: it is not there
    found = Ranking(10.0, 0.3).errors(*(values[keep] for values in (vectors, rows, of_pairs, languages))).tolist()

    def error(query: int, own: int, wrong: list[int]) -> float:
        def similarity(other: int) -> float:
            return 10 * cosine_similarity(vectors[query], vectors[other], dim=0)

        right = similarity(own) - 3
        return (torch.stack([right, *map(similarity, wrong)]).logsumexp(0) - right).item()

    expected = [
        error(0, 3, [5, 6]) + error(0, 4, [5, 6]),
        error(1, 5, [3, 4]),
        *(error(3, 0, [1]), error(4, 0, [1]), error(5, 1, [0])),
        0.0,
    ]
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_step_of_one_row_has_nothing_to_choose_among():
    vectors = torch.randn(2, 4, requires_grad=True)
    ones = torch.ones(2, dtype=torch.long)
    errors = Ranking(20.0, 0.0).errors(vectors, 0 * ones, ones, torch.tensor([0, 1]))
    assert errors.tolist() == [0, 0]
    [gradient] = torch.autograd.grad(errors.sum(), [vectors])
    assert not gradient.any()


@pytest.fixture(scope="module")
def tokenized(pairs, tmp_path_factory) -> SimpleNamespace:
    accelerator, student, dataset = Accelerator(cpu=True), tiny_encoder(seed=2), load_pairs(pairs)["train"]
    content = content_fingerprint(dataset, accelerator)
    tokens = TokenizedPairs(dataset, content, student, tmp_path_factory.mktemp("cache"), accelerator)
    return SimpleNamespace(dataset=dataset, tokens=tokens, student=student)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("max_tokens", [64, 10_000])
def test_gradients_of_one_forward_or_many_are_those_of_all_vectors_at_once(tokenized, max_tokens, dropout):
    student, accelerator = tokenized.student, Accelerator(cpu=True)
    set_dropout(student, dropout)
    student.train()
    steps = Steps(tokenized.tokens, 16, 2, 1.0, seed=0)
    no_labels = np.empty((len(tokenized.dataset), 0), np.float32)
    step = RankSteps(steps, no_labels, student, True, max_tokens, accelerator)[0]
    assert (len(step.inputs) > 1) == (max_tokens == 64)
    ranking = Ranking(20.0, 0.1)
    torch.manual_seed(7)
    student.zero_grad()
    [errors] = train_bridge.backward(student, ranking, step, accelerator)
    found = [p.grad.clone() for p in student.parameters() if p.grad is not None]
    after = torch.rand(1)
    torch.manual_seed(7)
    student.zero_grad()
    vectors = torch.cat([student(**inputs) for inputs in step.inputs])
    vectors = vectors[step.places.argsort()]
    expected = ranking.errors(vectors, **step.of_all)
    (expected.sum() / 32).backward()
    assert torch.rand(1) == after, "as many random numbers are taken"
    torch.testing.assert_close(errors[0], expected.detach()[step.places], atol=1e-5, rtol=1e-5)
    for mine, its in zip(found, (p.grad for p in student.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-6, rtol=1e-4)
    student.eval()


# ---------------------------------------------------------------- hard negatives


def model_of(vectors: dict[str, list[float]]) -> SimpleNamespace:
    encoder = SimpleNamespace(encode=lambda sentences: np.array([vectors[s] for s in sentences], np.float32))
    encoder.on = lambda device: encoder
    return SimpleNamespace(name="by hand", encoder=encoder)


def test_hard_negatives_by_hand(tmp_path):
    """Nearest first, none of its own row, none that is nearly as near as its own translation."""
    at = {"a": 0.0, "A": 0.3, "b": 1.0, "B": 1.1, "c": 0.5, "C": 0.31, "D": 2.5, "d": 3.0}
    vectors = {s: [np.cos(angle), np.sin(angle)] for s, angle in at.items()}
    rows = [{"source": s, "targets": [{"language": "it", "sentence": s.upper()}]} for s in "abcd"]
    rows[1]["targets"] = [{"language": "de", "sentence": "B"}, {"language": "it", "sentence": "B"}]
    dataset = datasets.Dataset.from_list(rows)
    accelerator = Accelerator(cpu=True)
    tokens = TokenizedPairs(dataset, "content", tiny_encoder(), tmp_path, accelerator)
    found = hard_negatives(dataset, tokens, model_of(vectors), 2, 0.05, tmp_path, accelerator)
    # Of a the nearest is its own, then C, too near; then both B. Pairs are A, B, B, C, D by number.
    assert found[0].tolist() == [1, 2]
    assert found[1].tolist() == [3, 0]
    # c, 0.19 from its own: nearer than 0.32 is A too, so B and D are left
    assert found[2].tolist() == [1, 2]
    assert found[3].tolist() == [1, 2]
    strict = hard_negatives(dataset, tokens, model_of(vectors), 2, 1.0, tmp_path, accelerator)
    assert strict[0].tolist() == [4, -1], "only what points away"


def test_a_step_has_the_negatives_of_its_rows_once(tokenized):
    tokens = tokenized.tokens
    negatives = np.full((len(tokenized.dataset), 2), -1)
    negatives[:, 0] = 5
    steps = Steps(tokens, 16, 2, 1.0, seed=0, negatives=negatives)
    plain = Steps(tokens, 16, 2, 1.0, seed=0)
    for number in range(5):
        step, without = steps[number], plain[number]
        there = tokens.target_of_pair(np.array([5]))[0] in without.sentences
        assert len(step.sentences) == len(without.sentences) + (not there)
        assert np.array_equal(step.sentences[: len(without.sentences)], without.sentences)
        assert step.weights.sum() == without.weights.sum()
        assert there or step.rows[-1] == tokens.row_of_pair[5]


# ---------------------------------------------------------------- the script


def test_it_learns_to_find_translations(given, tmp_path):
    more = ("--num_train_epochs", "8", "--batch_size", "64", "--learning_rate", "3e-3")
    given = [*given[:4], *more, *folders(tmp_path), "--eval_steps", "20", "--hard_negatives", "2"]
    assert train(*given) == 0
    scores = [line["mean_accuracy"] for line in metrics(tmp_path) if "mean_accuracy" in line]
    assert max(scores) > scores[0] + 0.1, scores
    assert "negative_mse" not in str(metrics(tmp_path))


def test_two_processes_and_other_forwards_take_the_steps_of_one(given, tmp_path):
    more = (*given, "--margin", "0.1", "--hard_negatives", "2")
    assert train(*more, *folders(tmp_path / "one")) == 0
    assert train(*more, *folders(tmp_path / "small"), "--max_tokens_per_batch", "64") == 0
    two = (tmp_path / "said", "train_bridge.py", *more, *folders(tmp_path / "two"))
    codes, said, errors = forked.run(*two, processes=2)
    assert codes == [0, 0], errors
    assert "2 process(es)" in said
    for other in ("small", "two"):
        np.testing.assert_allclose(losses(tmp_path / other), losses(tmp_path / "one"), rtol=1e-4)
        assert losses(tmp_path / other)[0] == pytest.approx(losses(tmp_path / "one")[0], rel=1e-6)
        gradients = [metrics(tmp_path / name)[1]["gradient_norm"] for name in (other, "one")]
        assert gradients[0] == pytest.approx(gradients[1], rel=1e-5)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_stopped_goes_on_to_the_same_weights(given, tmp_path, faulty, processes):
    options = (*given, "--hard_negatives", "1", "--dropout", "0.1")
    whole = (tmp_path / "said", "train_bridge.py", *options, *folders(tmp_path / "whole"))
    assert forked.run(*whole, processes=processes)[0] == [0] * processes
    fault = ("0", str(int(signal.SIGUSR1)), "distill.training.watching.Tally.add", "8")
    cut = (tmp_path / "cut", faulty, *fault, *options, *folders(tmp_path))
    assert forked.run(*cut, processes=processes, TRAINER="train_bridge")[0] == [STOPPED] * processes
    assert checkpoint_steps(tmp_path) == [5, 8]
    again = (tmp_path / "again", "train_bridge.py", *options, *folders(tmp_path), *LATEST)
    codes, said, errors = forked.run(*again, processes=processes)
    assert codes == [0] * processes, errors
    assert "resumed from" in said
    one, other = weights(tmp_path), weights(tmp_path / "whole")
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert losses(tmp_path) == losses(tmp_path / "whole")


def test_the_real_script(given, tmp_path):
    done = script("train_bridge.py", *given, *folders(tmp_path), processes=2)
    assert done.returncode == 0, done.stderr
    assert "2 process(es) on cpu" in done.stdout and "dev mean_accuracy" in done.stdout
    assert (tmp_path / "run/curves.png").is_file()


@pytest.mark.parametrize(
    "options, error",
    [
        ("--relative_margin 0.1", "--relative_margin does nothing without --hard_negatives"),
        ("--negatives_model_name_or_path {student}", "--negatives_model_name_or_path does nothing without"),
        ("--decay_ratio 0.3", "--decay_ratio is for --lr_scheduler_type wsd"),
        ("--student_model_name_or_path nowhere/at/all", "nowhere/at/all"),
    ],
)
def test_mistakes(given, student, tmp_path, capsys, options, error):
    assert train(*given, *options.format(student=student).split(), *folders(tmp_path)) == 2
    assert error in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_run_goes_on_with_the_negatives_it_began_with(given, tmp_path, capsys):
    given = (*given, "--hard_negatives", "1", *folders(tmp_path))
    assert train(*given) == 0
    other = saved(tiny_encoder(seed=9), tmp_path / "other")
    assert train(*given, "--negatives_model_name_or_path", other, *LATEST) == 2
    assert "was trained on hard negatives that another model found: give the same" in capsys.readouterr().err


def test_rows_without_translations_are_refused(given, tmp_path):
    args = train_bridge.build_parser().parse_args([*given, *folders(tmp_path)])
    tokens = SimpleNamespace(languages=["it", "untranslated"])
    with pytest.raises(UserError, match="rows without translations"):
        train_bridge.find_steps(args, tokens, None, Accelerator(cpu=True))
