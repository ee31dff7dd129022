"""The other trainer: its loss against sentence-transformers and by hand, one forward or many, negatives, resume."""

import json
import re
import shutil
import signal
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import datasets
import forked
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import SAMPLES, STOPPED, checkpoint_steps, folders, metrics, script, tiny_encoder
from safetensors.torch import load_file
from sentence_transformers.losses import MultipleNegativesRankingLoss
from torch.nn.functional import cosine_similarity

import build_pairs
import eval_sts
import train_bridge
from distill.command import run
from distill.mining.negatives import hard_negatives
from distill.pairs.pairs_folder import load_pairs
from distill.ranks import listening
from distill.training import ranking
from distill.training.cache import content_fingerprint
from distill.training.english import read_english
from distill.training.ranking import Ranking, choices
from distill.training.steps import RankSteps, Step, Steps, Turns
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


@pytest.fixture(scope="module")
def negatives(given, tmp_path_factory) -> tuple[str, ...]:
    """Options for hard negatives, of a model that knows some translations."""
    folder = tmp_path_factory.mktemp("skilled")
    more = ("--num_train_epochs", "8", "--learning_rate", "3e-3", "--eval_steps", "20", *folders(folder))
    assert train(*given[:4], *more) == 0
    return ("--hard_negatives", "2", "--negatives_model_name_or_path", str(folder / "run/student"))


@pytest.fixture(scope="module")
def english(tmp_path_factory) -> str:
    """English pairs: a sentence and its words in the other order, with the sentence after it for a negative."""
    lines = (SAMPLES / "talks.jsonl").read_text(encoding="utf-8").splitlines()[:61]
    rows = [json.loads(line)["translations"] for line in lines]
    sentences = [dict(zip(row["language"], row["translation"], strict=True))["en"] for row in rows]
    path = tmp_path_factory.mktemp("english") / "pairs.jsonl"
    pairs = pairwise(sentences)
    lines = [{"anchor": one, "positive": " ".join(one.split()[::-1]), "negative": other} for one, other in pairs]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in metrics(folder) if "loss" in line]


def weights(folder: Path) -> dict:
    return load_file(folder / "run/student/model.safetensors")


# ---------------------------------------------------------------- the loss


def reading_as(texts: list[int]) -> SimpleNamespace:
    """Pairs whose sentences are told apart by these numbers."""
    return SimpleNamespace(digests=lambda sentences: np.array(texts, np.uint64)[sentences])


ALL_DIFFERENT = reading_as(range(100))


def step_of(rows: list[int], of_pairs: list[int], languages: list[int]) -> Step:
    return Step(np.arange(len(rows)), np.array(rows), np.array(of_pairs), np.array(languages))


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
    rows, languages = [*range(5), *range(5), *range(10, 10 + negatives)], [0] * 5 + [1, 2, 1, 1, 2] + [1] * negatives
    step = step_of(rows, [1] * 10 + [0] * negatives, languages)
    loss = Ranking(20.0, 0.0).errors(torch.cat(columns), **choices(step, ALL_DIFFERENT)).sum() / 10
    found = torch.autograd.grad(loss, columns)
    expected = peer(columns, 20.0)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for mine, its in zip(found, torch.autograd.grad(expected, columns), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-6, rtol=1e-5)


def by_hand(vectors: torch.Tensor, query: int, own: int, wrong: list[int], scale: float, margin: float) -> float:
    """The cross-entropy of a sentence."""

    def similarity(other: int) -> torch.Tensor:
        return scale * cosine_similarity(vectors[query], vectors[other], dim=0)

    right = similarity(own) - scale * margin
    return (torch.stack([right, *map(similarity, wrong)]).logsumexp(0) - right).item()


def test_several_translations_of_a_source_and_a_margin_by_hand():
    """Row 3 has two translations, neither wrong for the other; one more of row 7 is a hard negative of row 3."""
    torch.manual_seed(1)
    step, vectors = step_of([3, 7, 3, 3, 7, 7], [2, 1, 1, 1, 1, 0], [0, 0, 1, 2, 1, 2]), torch.randn(6, 4)
    found = Ranking(10.0, 0.3).errors(vectors, **choices(step, ALL_DIFFERENT)).tolist()
    expected = [
        by_hand(vectors, 0, 2, [4, 5], 10, 0.3) + by_hand(vectors, 0, 3, [4, 5], 10, 0.3),
        by_hand(vectors, 1, 4, [2, 3], 10, 0.3),
        *(by_hand(vectors, query, own, [wrong], 10, 0.3) for query, own, wrong in ((2, 0, 1), (3, 0, 1), (4, 1, 0))),
        0.0,
    ]
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_text_that_is_a_sources_own_translation_is_not_wrong_for_it_in_another_row():
    """Targets 3 and 4 are one text, of rows 0 and 1; row 2 has another, and the text of both is wrong for it."""
    torch.manual_seed(2)
    step, vectors = step_of([0, 1, 2, 0, 1, 2], [1] * 6, [0, 0, 0, 1, 1, 1]), torch.randn(6, 4)
    found = Ranking(20.0, 0.0).errors(vectors, **choices(step, reading_as([0, 1, 2, 9, 9, 8]))).tolist()
    wrong = {0: (3, [5]), 1: (4, [5]), 2: (5, [3, 4]), 3: (0, [2]), 4: (1, [2]), 5: (2, [0, 1])}
    expected = [by_hand(vectors, query, own, others, 20, 0) for query, (own, others) in wrong.items()]
    assert found == pytest.approx(expected, abs=1e-5)


def test_cosines_in_blocks_give_the_loss_and_the_gradients_of_all_at_once(monkeypatch):
    torch.manual_seed(3)
    step = step_of([*range(5), *range(5), 8], [1] * 10 + [0], [0] * 5 + [1, 2, 1, 1, 2, 1])
    found = []
    for block in (256, 2):
        monkeypatch.setattr(ranking, "BLOCK", block)
        vectors = torch.randn(11, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        errors = Ranking(20.0, 0.1).errors(vectors, **choices(step, ALL_DIFFERENT))
        found.append((errors, *torch.autograd.grad(errors.sum(), [vectors])))
    for whole, in_blocks in zip(*found, strict=True):
        torch.testing.assert_close(in_blocks, whole, atol=1e-6, rtol=1e-5)


def test_of_sources_that_read_the_same_neither_has_the_others_translation_for_a_wrong_one():
    torch.manual_seed(4)
    step, vectors = step_of([0, 1, 2, 0, 1, 2], [1] * 6, [0, 0, 0, 1, 1, 1]), torch.randn(6, 4)
    found = Ranking(20.0, 0.0).errors(vectors, **choices(step, reading_as([9, 9, 0, 1, 2, 3]))).tolist()
    wrong = {0: (3, [5]), 1: (4, [5]), 2: (5, [3, 4]), 3: (0, [2]), 4: (1, [2]), 5: (2, [0, 1])}
    expected = [by_hand(vectors, query, own, others, 20, 0) for query, (own, others) in wrong.items()]
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_step_of_one_row_has_nothing_to_choose_among():
    vectors, step = torch.randn(2, 4, requires_grad=True), step_of([0, 0], [1, 1], [0, 1])
    errors = Ranking(20.0, 0.0).errors(vectors, **choices(step, ALL_DIFFERENT))
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
    of_all = partial(choices, pairs=tokenized.tokens)
    step = RankSteps(steps, None, student, True, max_tokens, accelerator, of_all)[0]
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
    return SimpleNamespace(
        name="by hand", vectors=lambda sentences: np.array([vectors[s] for s in sentences], np.float32)
    )


def found_for(rows: list[dict], at: dict[str, float], folder: Path, k: int, margin: float) -> list[list[str]]:
    """The negatives of each row as texts; each sentence's vector points at an angle."""
    vectors = {sentence: [np.cos(angle), np.sin(angle)] for sentence, angle in at.items()}
    dataset, accelerator = datasets.Dataset.from_list(rows), Accelerator(cpu=True)
    tokens = TokenizedPairs(dataset, "content", tiny_encoder(), folder, accelerator)
    found, _ = hard_negatives(dataset, "content", tokens, model_of(vectors), k, margin, folder, accelerator)
    texts = [target["sentence"] for row in rows for target in row["targets"]]
    return [[texts[pair] for pair in pairs if pair >= 0] for pairs in found]


def row(source: str, *targets: str) -> dict:
    tags = ("de", "it", "ar")
    return {"source": source, "targets": [{"language": t, "sentence": s} for t, s in zip(tags, targets, strict=False)]}


ANGLES = {"a": 0.0, "A": 0.3, "b": 1.0, "B": 1.1, "c": 0.5, "C": 0.31, "d": 3.0, "D": 2.5}


def test_hard_negatives_by_hand(tmp_path):
    """Nearest first, none of its own row, none that is nearly as near as its own translation."""
    found = found_for([row("a", "A"), row("b", "B"), row("c", "C"), row("d", "D")], ANGLES, tmp_path, 2, 0.05)
    # Of a the nearest beside its own is C, by 0.01: it may be right
    assert found[0] == ["B", "D"]
    assert found[1] == ["C", "A"]
    # Of c, 0.19 from its own, A is nearly as near
    assert found[2] == ["B", "D"]
    assert found[3] == ["B", "C"]
    strict = found_for([row("a", "A"), row("b", "B"), row("d", "D")], ANGLES, tmp_path / "strict", 2, 1.0)
    assert strict[0] == ["D"], "only what points away"


def test_of_equal_texts_one_is_a_negative_and_none_that_is_a_sources_own(tmp_path):
    rows = [row("a", "A", "Q"), row("b", "B", "Q"), row("c", "B"), row("d", "D", "B")]
    found = found_for(rows, ANGLES | {"Q": 0.9}, tmp_path, 3, 0.05)
    assert found[0] == ["B", "D"], "Q is its own too, B stands three times"


def test_rows_with_many_translations_have_negatives_all_the_same(tmp_path):
    texts = [[f"{name}{one}{other}" for one in "cdefgh" for other in "ijklm"] for name in "ab"]
    targets = [[{"language": "it", "sentence": text} for text in of_row] for of_row in texts]
    rows = [{"source": "a", "targets": targets[0]}, {"source": "b", "targets": targets[1]}]
    at = ANGLES | dict.fromkeys(texts[0], 0.1) | dict.fromkeys(texts[1], 1.1)
    assert [len(found) for found in found_for(rows, at, tmp_path, 2, 0.05)] == [2, 2]


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


def test_no_step_has_one_row_alone(tokenized):
    """Pairs that are left over, and are fewer than a step needs, stand in the step before."""
    tokens = tokenized.tokens
    size = next(size for size in range(8, 99) if len(tokens.row_of_pair) % size)
    left_over = len(tokens.row_of_pair) % size
    steps = Steps(tokens, size, 2, 1.0, seed=0, fewest=left_over + 1)
    assert steps.per_epoch == len(tokens.row_of_pair) // size
    counts = [int((steps[number].languages > 0).sum()) for number in range(2 * steps.per_epoch)]
    assert counts == 2 * ([size] * (steps.per_epoch - 1) + [size + left_over])
    assert [steps.pairs_before(number) for number in range(len(counts))] == np.cumsum([0, *counts[:-1]]).tolist()
    assert all(len(np.unique(steps[number].rows)) > 1 for number in range(len(counts)))


# ---------------------------------------------------------------- the English task


def test_english_lines_by_hand(tmp_path, capsys):
    """Quotes in a table of tabs are text; a negative of two anchors is one row; what lacks a sentence is counted."""
    lines = [("a", "b", "c"), ("a", "d", None), ("e", " ", "c"), (None, "g", "h"), ("f", "g", "c"), ("f", "i", "a")]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps(dict(zip(("anchor", "positive", "negative"), line, strict=True))) + "\n" for line in lines)
    )
    (tmp_path / "b.tsv").write_text('anchor\tpositive\n"x\ty\n')
    found = read_english([f"{tmp_path}/*"], tiny_encoder(), tmp_path / "cache", Accelerator(cpu=True))
    rows = [(row["source"], *(target.values() for target in row["targets"])) for row in found.dataset]
    said = "5 English pairs, 3 with a negative; 2 lines that lack an anchor or a positive are left out"
    assert said in capsys.readouterr().out
    assert [(source, *target) for source, target in rows] == [
        *(("a", "positive", "b"), ("a", "positive", "d"), ("f", "positive", "g"), ("f", "positive", "i")),
        *(('"x', "positive", "y"), ("c", "negative", "c"), ("a", "negative", "a")),
    ]
    assert found.negatives.ravel().tolist() == [5, -1, 5, 6, -1, -1, -1]


def test_two_tasks_take_turns(tokenized, english, tmp_path):
    """A step in four is English, and its loss that of sentence-transformers with a negative for each anchor."""
    accelerator = Accelerator(cpu=True)
    found = read_english([english], tokenized.student, tmp_path, accelerator)
    translations = Steps(tokenized.tokens, 16, 2, 1.0, seed=0)
    own = Steps(found.pairs, 8, 1, 1.0, seed=0, negatives=found.negatives, fewest=2)
    turns = Turns(translations, own, 0.25)
    assert turns.per_epoch == translations.per_epoch / 0.75
    assert [turns.task(step) for step in range(9)] == [
        *((translations, 0), (translations, 1), (translations, 2), (own, 0)),
        *((translations, 3), (translations, 4), (translations, 5), (own, 1), (translations, 6)),
    ]
    assert turns.pairs_before(9) == 7 * 16 + 2 * 8
    step, rows, languages = turns[3], len(tokenized.dataset), len(tokenized.tokens.languages) + 1
    assert step.weights.tolist() == [1] * 16 + [0] * 8
    # Behind those of the translations: anchors, positives, negatives
    assert (step.languages - languages).tolist() == [0] * 8 + [2] * 8 + [1] * 8
    texts = [found.dataset[int(row) - rows]["source"] for row in step.rows]
    lines = {line["anchor"]: line for line in map(json.loads, Path(english).read_text(encoding="utf-8").splitlines())}
    anchors = texts[8:16]
    assert sorted(texts[:8]) == sorted(anchors)
    assert set(texts[16:]) == {lines[anchor]["negative"] for anchor in anchors}
    positives = tokenized.student.token_ids([lines[anchor]["positive"] for anchor in anchors])
    assert found.pairs.token_ids(step.sentences[8:16])[0].tolist() == np.concatenate(positives).tolist()
    vectors = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
    loss = Ranking(20.0, 0.0).errors(vectors, **choices(step, turns.pairs_of(3))).sum() / 16
    columns = [vectors[[texts[:8].index(anchor) for anchor in anchors]], vectors[8:16], vectors[16:]]
    assert loss.item() == pytest.approx(peer(columns, 20.0).item(), abs=1e-6)


# ---------------------------------------------------------------- the script


def test_it_learns_to_find_translations(negatives):
    folder = Path(negatives[-1]).parent.parent
    scores = [line["mean_accuracy"] for line in metrics(folder) if "mean_accuracy" in line]
    assert max(scores) > scores[0] + 0.1, scores
    assert "negative_mse" not in str(metrics(folder)), "there are no labels"


def test_two_processes_and_other_forwards_take_the_steps_of_one(given, negatives, english, tmp_path):
    more = (*given, "--margin", "0.1", *negatives, "--english_pairs", english, "--english_share", "0.3")
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
def test_a_run_that_is_stopped_goes_on_to_the_same_weights(given, negatives, english, tmp_path, faulty, processes):
    refreshed = ("--student_model_name_or_path", negatives[-1], "--hard_negatives", "2", "--refresh_negatives", "3")
    options = (*given, *refreshed, "--dropout", "0.1", "--english_pairs", english)
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
    found = re.findall(r"([\d,]+) of [\d,]+ sources have hard negatives", said)
    assert len(found) == 3 and all(int(count) > 0 for count in found), "those of the start, of step 6, and of step 9"
    assert len(list((tmp_path / "cache").glob("negatives-*"))) == 4
    assert len(list((tmp_path / "cache").glob("vectors-*"))) == 2, "those of models that passed are gone"
    one, other = weights(tmp_path), weights(tmp_path / "whole")
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert losses(tmp_path) == losses(tmp_path / "whole")
    by_language = [line["loss_by_language"].keys() for line in metrics(tmp_path) if "loss" in line]
    assert by_language[1::2] == [{"anchor", "positive"}] * 6 and all("source" in found for found in by_language[::2])


def test_the_real_script(given, tmp_path):
    done = script("train_bridge.py", *given, *folders(tmp_path), processes=2)
    assert done.returncode == 0, done.stderr
    assert "2 process(es) on cpu" in done.stdout and "dev mean_accuracy" in done.stdout
    assert (tmp_path / "run/curves.png").is_file()


@pytest.mark.parametrize(
    "options, error",
    [
        ("--batch_size 2", "--batch_size must be above --translations_per_source"),
        ("--torch_compile --dropout 0.1", "a sentence is encoded twice, and would drop out differently"),
        ("--negatives_prompt x --hard_negatives 1", "--negatives_prompt is for --negatives_model_name_or_path"),
        ("--relative_margin 0.1", "--relative_margin does nothing without --hard_negatives"),
        ("--refresh_negatives 5", "--refresh_negatives does nothing without --hard_negatives"),
        ("--negatives_model_name_or_path {student}", "--negatives_model_name_or_path does nothing without"),
        ("--english_share 0.3", "--english_share does nothing without --english_pairs"),
        ("--english_pairs samples/sts-en.csv", "name two anchor and positive, a third negative"),
        ("--decay_ratio 0.3", "--decay_ratio is for --lr_scheduler_type wsd"),
        ("--student_model_name_or_path nowhere/at/all", "nowhere/at/all"),
    ],
)
def test_mistakes(given, student, tmp_path, capsys, options, error):
    assert train(*given, *options.format(student=student).split(), *folders(tmp_path)) == 2
    assert error in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_run_goes_on_with_the_negatives_it_began_with(given, negatives, tmp_path, capsys):
    given = (*given, *negatives, *folders(tmp_path))
    assert train(*given) == 0
    assert train(*given, "--negatives_prompt", "a ", *LATEST) == 2
    assert "was trained on other hard negatives: give the same" in capsys.readouterr().err


def test_a_run_does_not_go_on_without_the_negatives_that_it_found(given, negatives, tmp_path, capsys):
    more = ("--student_model_name_or_path", negatives[-1], "--hard_negatives", "2", "--refresh_negatives", "2")
    options = (*given, *more, "--max_train_steps", "3", "--lr_scheduler_type", "constant", *folders(tmp_path))
    assert train(*options) == 0
    assert train(*options, "--cache_dir", str(tmp_path / "other"), *LATEST) == 2
    assert "is gone, which the run has found while it trained: name the --cache_dir" in capsys.readouterr().err


def test_options_and_english_pairs_are_compared_before_hard_negatives_are_computed(given, english, tmp_path, capsys):
    given = (*given, *folders(tmp_path), "--max_train_steps", "2", "--english_pairs")
    assert train(*given, english) == 0
    assert train(*given, english, "--hard_negatives", "3", *LATEST) == 2
    assert "was trained with --hard_negatives 0, not 3: give the same" in capsys.readouterr().err
    assert train(*given, english, english, *LATEST) == 2
    assert "was trained on other English pairs: give the same" in capsys.readouterr().err
    assert not list((tmp_path / "cache").glob("vectors-*"))


def test_rows_without_translations_are_refused_before_anything_is_computed(given, tmp_path, capsys):
    call = ["--corpus", str(SAMPLES / "talks.jsonl"), "--target_languages", "it", "--keep_untranslated"]
    build_pairs.main(build_pairs.build_parser().parse_args([*call, "--output_dir", str(tmp_path / "pairs")]))
    options = (
        *given,
        *folders(tmp_path),
        "--pairs_dir",
        str(tmp_path / "pairs"),
        "--hard_negatives",
        "1",
    )
    assert train(*options) == 2
    assert "no rows without translations (--keep_untranslated)" in capsys.readouterr().err
    assert not list((tmp_path / "cache").glob("vectors-*"))


def test_what_was_computed_can_be_replaced_with_the_pairs(given, negatives, pairs, tmp_path):
    shutil.copytree(pairs, tmp_path / "pairs", ignore=shutil.ignore_patterns("cache"))
    options = [*given, "--pairs_dir", str(tmp_path / "pairs"), *negatives, "--max_train_steps", "1"]
    assert train(*options, "--output_dir", str(tmp_path / "run")) == 0
    assert list((tmp_path / "pairs/cache").glob("negatives-*"))
    call = ["--corpus", str(SAMPLES / "talks.jsonl"), "--target_languages", "it"]
    build_pairs.main(build_pairs.build_parser().parse_args([*call, "--output_dir", str(tmp_path / "pairs")]))
    assert not (tmp_path / "pairs/cache").exists()


def test_the_same_command_gives_the_same_weights_whatever_the_cache_holds(given, negatives, tmp_path):
    options = (*given, *negatives, "--dropout", "0.3", "--max_train_steps", "3")
    for _ in range(2):
        assert train(*options, *folders(tmp_path)) == 0
        (tmp_path / "run").rename(tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
    one, other = (load_file(path / "student/model.safetensors") for path in tmp_path.glob("run-*"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_an_export_says_how_a_student_was_trained(given, tmp_path):
    assert train(*given, *folders(tmp_path)) == 0
    call = ["--model_name_or_path", str(tmp_path / "run/student"), "--sts", str(SAMPLES / "sts-{en,it}.csv")]
    call += ["--output_dir", str(tmp_path / "scores"), "--export_dir", str(tmp_path / "export")]
    eval_sts.main(eval_sts.build_parser().parse_args(call))
    card = (tmp_path / "export/README.md").read_text(encoding="utf-8")
    assert "trained to find translations" in card and "Teacher" not in card and "train_bridge.py" in card


def test_only_the_sentence_whose_vector_is_no_number_is_named(tokenized):
    student, accelerator = tokenized.student, Accelerator(cpu=True)
    steps = Steps(tokenized.tokens, 16, 2, 1.0, seed=0)
    step = RankSteps(steps, None, student, True, 10_000, accelerator, partial(choices, pairs=tokenized.tokens))[0]
    faulty = torch.zeros(step.size, 1)
    faulty[3] = torch.nan

    def model(**inputs):
        return student(**inputs) + faulty

    [errors] = train_bridge.backward(model, Ranking(20.0, 0.0), step, accelerator)
    assert (~errors[0].isfinite()).nonzero().flatten().tolist() == [3]
