"""Training on one side of the pairs, and on rows without translations: steps, loss, processes, resume."""

import json
import signal
from pathlib import Path
from types import SimpleNamespace

import datasets
import forked
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import SAMPLES, STOPPED, checkpoint_steps, folders, metrics, tiny_encoder, train

import build_student
from benchmarks.kill_and_resume import acting_in
from build_pairs import build_parser as pairs_parser
from build_pairs import main as build_pairs
from distill.command import UserError
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.pairs.pairs_folder import GROUPED, load_pairs
from distill.scoring.data import Data
from distill.students.audit import check_tokenizer
from distill.training.steps import SIDES, RankSteps, Steps, epoch_order
from distill.training.tokens import UNTRANSLATED, TokenizedPairs
from distill.training.watching import Tally, evaluate

ROWS = {
    "I love plants.": {"de": "Ich liebe Pflanzen.", "it": "Amo le piante."},
    "Good news.": {},
    "A dog.": {"it": "Un cane."},
}


def dataset_of(rows: dict[str, dict[str, str]]) -> datasets.Dataset:
    listed = [[{"language": tag, "sentence": s} for tag, s in targets.items()] for targets in rows.values()]
    features = datasets.Features.from_arrow_schema(GROUPED)
    return datasets.Dataset.from_dict({"source": list(rows), "targets": listed}, features)


def tokenized(dataset, folder: Path) -> TokenizedPairs:
    return TokenizedPairs(dataset, str(len(dataset)), tiny_encoder(), folder, Accelerator(cpu=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """200 rows of the samples in two languages, and 60 English sentences more."""
    folder = tmp_path_factory.mktemp("untranslated")
    lines = (SAMPLES / "talks.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "talks.jsonl").write_text("\n".join(lines[:200]) + "\n", encoding="utf-8")
    rows = [json.loads(line)["translations"] for line in lines[200:260]]
    english = [row["translation"][row["language"].index("en")] for row in rows]
    (folder / "news.txt").write_text("\n".join(english) + "\n", encoding="utf-8")
    corpora = f"--corpus {folder}/talks.jsonl en={folder}/news.txt --target_languages it de --keep_untranslated"
    call = f"{corpora} --dev_fraction 0.1 --output_dir {folder}/pairs"
    build_pairs(pairs_parser().parse_args(call.split()))
    return f"{folder}/pairs"


def given(folder: str, teacher: str, student: str, *more: str) -> list[str]:
    models = ("--teacher_model_name_or_path", teacher, "--student_model_name_or_path", student)
    return ["--pairs_dir", folder, *models, "--learning_rate", "1e-3", "--logging_steps", "1", *more]


# ---------------------------------------------------------------- steps


def test_a_row_without_translations_is_a_pair_whose_target_has_no_tokens(tmp_path):
    pairs = tokenized(dataset_of(ROWS), tmp_path)
    assert pairs.languages == ["de", "it", UNTRANSLATED]
    assert pairs.row_of_pair.tolist() == [0, 0, 1, 2] and pairs.language_of_pair.tolist() == [0, 1, 2, 1]
    assert pairs.source_of_row(np.arange(3)).tolist() == [0, 3, 5]
    assert pairs.target_of_pair(np.arange(4)).tolist() == [1, 2, 4, 6]
    assert pairs.translated(np.arange(4)).tolist() == [0, 1, 3]
    texts = ["I love plants.", "Ich liebe Pflanzen.", "Amo le piante.", "Good news.", None, "A dog.", "Un cane."]
    expected = [[] if text is None else tiny_encoder().token_ids([text])[0] for text in texts]
    assert [pairs[sentence].tolist() for sentence in range(len(pairs.offsets) - 1)] == expected


def test_token_ids_of_several_chunks(tmp_path):
    rows = {f"number {i}": {"it": f"numero {i}"} if i % 3 else {} for i in range(4500)}
    pairs = tokenized(dataset_of(rows), tmp_path)
    every, encoder = np.arange(4500), tiny_encoder()
    assert pairs.row_of_pair.tolist() == every.tolist() and pairs.first_pair.tolist() == list(range(4501))
    sides = {side: encoder.token_ids([f"{side} {i}" for i in every]) for side in ("number", "numero")}
    for row in every:
        assert np.array_equal(pairs[2 * row], sides["number"][row])
        assert np.array_equal(pairs[2 * row + 1], sides["numero"][row] if row % 3 else [])


SENTENCES = {  # of a step of all pairs: the sentence's number, its row, weight and language
    "source": {(0, 0, 2, 0), (3, 1, 1, 0), (5, 2, 1, 0)},
    "target": {(1, 0, 1, 1), (2, 0, 1, 2), (6, 2, 1, 2)},
}


@pytest.mark.parametrize("sides", [SIDES, ["source"], ["target"]])
def test_a_step_holds_the_sentences_of_the_sides_asked_for(tmp_path, sides):
    pairs = tokenized(dataset_of(ROWS), tmp_path)
    steps = Steps(pairs, 4, 2, 1.0, seed=0, sides=sides)
    expected = set.union(*(SENTENCES[side] for side in sides))
    assert set(zip(*(column.tolist() for column in steps[0]), strict=True)) == expected
    assert len(steps[0].sentences) == len(expected), "each once"
    assert steps.left_out == ("source" not in sides) and steps.pairs_before(1) == 4 - steps.left_out
    one = SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu"))
    step = RankSteps(steps, np.zeros((3, 4), np.float32), tiny_encoder(), True, 64, one)[0]
    assert step.weight == step.weights.sum() == sum(weight for _, _, weight, _ in expected)


def test_rows_without_translations_are_a_language_of_their_own(tmp_path):
    """40 pairs of `it`, 10 rows without: their square roots are 2 to 1. Left out, all that is taken is `it`."""
    rows = {f"number {i}": {} if i % 5 == 0 else {"it": f"numero {i}"} for i in range(50)}
    pairs = tokenized(dataset_of(rows), tmp_path)

    def taken(temperature: float, **more) -> list[int]:
        room = np.empty((4, 51), np.int32)
        order = epoch_order(pairs, room, 2, temperature, 0, 0, **more)
        return np.bincount(pairs.language_of_pair[order], minlength=2).tolist()

    assert taken(1) == [40, 10] and taken(2) == [33, 17]
    assert taken(1, untranslated=False) == taken(2, untranslated=False) == [40, 0]
    steps = Steps(pairs, 16, 2, 2.0, seed=0, sides=["target"])
    assert (steps.per_epoch, steps.left_out, steps.pairs_before(4)) == (3, 10, 40 + 16)
    assert [len(steps[i].sentences) for i in range(3)] == [16, 16, 8]


def test_training_on_targets_alone_needs_some(tmp_path):
    pairs = tokenized(dataset_of({"Good news.": {}, "Bad news.": {}}), tmp_path)
    with pytest.raises(UserError, match="--train_on target: no row to train on has translations"):
        Steps(pairs, 4, 2, 1.0, seed=0, sides=["target"])
    assert Steps(pairs, 4, 2, 1.0, seed=0)[0].sentences.tolist() == [0, 2]


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("sides", [["source", "target"], ["source"], ["target"]])
@pytest.mark.parametrize("max_tokens", ["100", "4096"])
def test_loss_and_gradients_by_hand(folder, teacher, student, tmp_path, monkeypatch, capsys, sides, max_tokens):
    """One step of all pairs: the mean squared error over all sentences of the sides, a source once for each pair."""
    gradients = []

    def keep(self, parameters, _):
        gradients.extend(None if p.grad is None else p.grad.clone() for p in parameters)
        return torch.tensor(0.0)

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", keep)
    more = ("--train_on", *sides, "--batch_size", "1000", "--max_tokens_per_batch", max_tokens)
    assert train(*given(folder, teacher, student, *more, "--max_train_steps", "1"), *folders(tmp_path)) == 0

    teach, learn = (SentenceEncoder.from_pretrained(model) for model in (teacher, student))
    teach.before_normalize = True
    rows = list(load_pairs(folder)["train"])
    texts = {"source": [row["source"] for row in rows for _ in row["targets"] or [None]]}
    labelled = {"source": texts["source"]}
    labelled["target"] = [row["source"] for row in rows for _ in row["targets"]]
    texts["target"] = [target["sentence"] for row in rows for target in row["targets"]]
    vectors = torch.cat([learn(**learn.inputs(learn.token_ids(texts[side]))) for side in sides])
    labels = torch.cat([torch.from_numpy(teach.encode(labelled[side])) for side in sides])
    expected = (vectors - labels).square().mean()
    expected.backward()

    [line] = [line for line in metrics(tmp_path) if "loss" in line]
    assert line["loss"] == pytest.approx(expected.item(), rel=1e-5)
    shown = {"source": ["source"], "target": ["de", "it"]}
    assert list(line["loss_by_language"]) == [name for side in sides for name in shown[side]]
    peers = [p.grad for p in learn.parameters() if p.grad is not None]
    found = [gradient for gradient in gradients if gradient is not None]
    difference = torch.stack([(one - other).norm() for one, other in zip(found, peers, strict=True)]).norm()
    assert difference / torch.stack([p.norm() for p in peers]).norm() < 1e-5
    alone = sum(not row["targets"] for row in rows)
    assert alone >= 50
    left_out = f"--train_on target: {alone} rows without translations are left out"
    assert (left_out in capsys.readouterr().out) == (sides == ["target"])


# ---------------------------------------------------------------- processes, resume


@pytest.mark.parametrize("sides", [["source", "target"], ["target"]])
def test_two_processes_take_the_same_steps_as_one(folder, teacher, student, tmp_path, sides):
    losses, tables = [], []
    more = ("--train_on", *sides, "--max_train_steps", "8", "--translations_per_source", "1")
    for processes in (1, 2):
        own = tmp_path / str(processes)
        options = (*given(folder, teacher, student, *more), *folders(own))
        codes, _, errors = forked.run(tmp_path / f"said{processes}", "train_distill.py", *options, processes=processes)
        assert codes == [0] * processes, errors
        losses.append([line["loss"] for line in metrics(own) if "loss" in line])
        tables.append([path.read_bytes() for path in sorted(own.glob("cache/tokens-*/*.bin"))])
    assert tables[0] == tables[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_a_run_that_is_stopped_goes_on_with_the_same_side_only(folder, teacher, student, tmp_path, monkeypatch, capsys):
    options = given(folder, teacher, student, "--max_train_steps", "12", "--train_on")
    assert train(*options, "target", "source", *folders(tmp_path / "whole")) == 0
    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(Tally, "add", acting_in(7, Tally.add, lambda: signal.raise_signal(signal.SIGUSR1)))
        assert train(*options, "target", "source", *folders(cut)) == STOPPED
    assert checkpoint_steps(cut) == [7]
    latest = ("--resume_from_checkpoint", "latest")
    assert train(*options, "target", *folders(cut), *latest) == 2
    assert "was trained with --train_on source target, not target: " in capsys.readouterr().err
    assert train(*options, "source", "target", *folders(cut), *latest) == 0
    assert metrics(cut) == metrics(tmp_path / "whole")
    name = "run/student/model.safetensors"
    assert (cut / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# ---------------------------------------------------------------- who else reads them


def test_the_tokenizer_is_shown_for_the_languages_alone(tmp_path):
    encoder, dataset = tiny_encoder(), dataset_of(ROWS)
    table = check_tokenizer(encoder.tokenizer, dataset, tokenized(dataset, tmp_path), allow_unknown=True)
    assert [line.split()[0] for line in table.splitlines()[2:]] == ["source", "de", "it"]


def test_a_row_of_dev_without_translations_is_left_out():
    """Of two folders with and without such rows the scores are equal."""
    rows = ROWS | {"A cat.": {"it": "Un gatto."}}
    encoder, scores = tiny_encoder(), []
    for some in (rows, {source: targets for source, targets in rows.items() if targets}):
        labels = encoder.encode(list(some))
        scores.append(evaluate(encoder, dataset_of(some), labels, Data([], [], [], False, []), Accelerator(cpu=True)))
    assert scores[0] == scores[1]


def test_a_graft_takes_them(folder, teacher, tmp_path):
    call = f"graft --encoder_model_name_or_path {teacher} --pairs_dir {folder} --output_dir {tmp_path}/s"
    build_student.main(build_student.build_parser().parse_args(call.split()))
    assert (tmp_path / "s/model.safetensors").is_file()
