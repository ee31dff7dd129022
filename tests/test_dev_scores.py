"""Dev scores of few pairs: what they do not tell is left out and said."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import tiny_encoder

from distill.command import UserError
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.scoring.data import Data
from distill.training.checkpoints import Progress
from distill.training.watching import evaluate, evaluation_report, plot_curves


def dev_scores(*rows: tuple[str, dict[str, str]], student: SentenceEncoder | None = None) -> dict:
    """Those of a tiny student, or another, on rows of a source and its translations by language."""
    targets = [[{"language": tag, "sentence": text} for tag, text in row.items()] for _, row in rows]
    dev = {"source": [source for source, _ in rows], "targets": targets}
    student, data = student or tiny_encoder(), Data([], [], [], False, [])
    return evaluate(student, dev, np.zeros((len(rows), 32)), data, Accelerator(cpu=True))


def test_a_language_of_one_pair_has_no_accuracy():
    scores = dev_scores(("A dog.", {"it": "Un cane.", "de": "Ein Hund."}), ("A cat.", {"it": "Un gatto."}))
    assert scores["mean_accuracy"] == scores["bitext"]["it"]["mean_accuracy"]
    assert list(scores["bitext"]["de"]) == ["negative_mse"]
    said = "left out of the accuracy, since one pair is no retrieval: de"
    assert said in evaluation_report(Progress(), "mean_accuracy", scores)
    assert said not in evaluation_report(Progress(step=5), "mean_accuracy", scores)


def test_a_dev_split_without_retrieval_is_refused():
    with pytest.raises(UserError, match="no two pairs of a language, to find"):
        dev_scores(("A dog.", {"it": "Un cane.", "de": "Ein Hund."}))


def test_a_student_that_an_update_has_broken_is_no_best_one():
    student = tiny_encoder()
    torch.nn.init.constant_(student.transformer.embeddings.word_embeddings.weight, 1e30)
    with pytest.raises(UserError, match="vectors that are no finite numbers: lower --learning_rate"):
        dev_scores(("A dog.", {"it": "Un cane."}), ("A cat.", {"it": "Un gatto."}), student=student)


def test_one_source_sentence_has_no_mean_similarity(tmp_path):
    scores = dev_scores(("A dog.", {"it": "Un cane."}), ("A dog.", {"it": "Il cane."}))
    json.dumps(scores, allow_nan=False)
    assert scores["mean_similarity"] is None
    assert "collapsed" not in evaluation_report(Progress(step=5), "mean_accuracy", scores)
    plot_curves([{"step": 0} | scores], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").is_file()


def test_a_run_that_was_better_before_training_is_told_so():
    progress, scores, reports = Progress(), {"mean_similarity": 0.1, "bitext": {}}, []
    for step, score in ((0, 0.8), (10, 0.7), (20, 0.75), (30, 0.81), (40, 0.79)):
        progress.step = step
        progress.judge(score)
        reports.append(evaluation_report(progress, "mean_accuracy", scores | {"mean_accuracy": score}))
    said = "no evaluation so far is as good as the one before training, 0.8000"
    assert [said in report for report in reports] == [False, True, True, False, False]
