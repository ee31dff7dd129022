"""The terms of the loss, by hand and against plain code; and the loss in a run."""

import argparse
import math

import forked
import numpy as np
import pytest
import torch
from conftest import folders, metrics, train
from safetensors.torch import load_file
from torch import testing

from distill.command import UserError
from distill.training.losses import TO_BANK, TO_LABELS, Loss, settle_loss, variance

LABEL = torch.tensor([[3.0, 0.0]])
VECTOR = torch.tensor([[1.0, 1.0]])
BANK = torch.tensor([[5.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])  # cosines to the label 1, 0, -1; to the vector r, r, -r
R = math.sqrt(0.5)


def softmax(*logits: float) -> list[float]:
    total = sum(math.exp(logit) for logit in logits)
    return [math.exp(logit) / total for logit in logits]


def test_errors_to_the_label_by_hand():
    assert TO_LABELS["mse"](VECTOR, LABEL).tolist() == [(4 + 1) / 2]
    assert TO_LABELS["l2"](VECTOR, LABEL).tolist() == pytest.approx([math.sqrt(5)])
    assert TO_LABELS["cosine"](VECTOR, LABEL).tolist() == pytest.approx([1 - R])


def test_errors_to_the_bank_by_hand():
    """At temperature 1/2. The bank's first label is the sentence's own: no mistake to find it, by `contrastive`."""
    of = {name: term(VECTOR, LABEL, BANK, 0.5).item() for name, term in TO_BANK.items()}
    assert of["contrastive"] == pytest.approx(-math.log(softmax(2 * R, 2 * R, -2 * R)[0]))
    p, q = softmax(2, 2, 0, -2), softmax(2 * R, 2 * R, 2 * R, -2 * R)
    assert of["distribution"] == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    assert of["similarity"] == pytest.approx(4 * ((1 - R) ** 2 + R**2 + (1 - R) ** 2) / 3)
    assert of["spread"] == pytest.approx((R / 3) ** 2), "the mean square is that of random directions, 1/2"


def test_what_is_alike_is_measured_by_the_teacher():
    """Cosines of the label with the bank, their mean 0.895: none of them is nine tenths of the way from there to 1."""
    near = [[c, math.sqrt(1 - c**2)] for c in (0.8, 0.9, 0.9, 0.98)]
    found = TO_BANK["contrastive"](LABEL, LABEL, torch.tensor(near), 1.0).item()
    assert found == pytest.approx(-math.log(softmax(1, 0.8, 0.9, 0.9, 0.98)[0]))


def test_labels_of_zeros_ask_for_what_can_be_given():
    zeros = torch.zeros(1, 2)
    assert TO_BANK["distribution"](zeros, zeros, BANK, 0.05).item() == 0


@pytest.mark.parametrize("labels", [np.ones((5, 4)), np.ones((1, 4)), np.zeros((3, 2)), 1 + 1e-9 * np.eye(4)])
def test_labels_that_are_all_the_same_are_refused(labels):
    with pytest.raises(UserError, match="all source sentences have the same label: check the teacher"):
        Loss({"mse": 1.0, "cosine": 1.0}, None, labels)


def test_the_order_of_the_terms_is_one():
    args = argparse.Namespace(loss=[("distribution", 0.3), ("mse", 1.0)], bank_size=None, loss_temperature=0.1)
    settle_loss(args)
    assert list(args.loss.items()) == [("mse", 1.0), ("distribution", 0.3)]
    assert (args.bank_size, args.loss_temperature) == (1024, 0.1)


@pytest.mark.parametrize("name", ["mse", "cosine", "distribution", "similarity"])
def test_a_student_that_gives_the_label_makes_no_error(name):
    labels, bank = (torch.randn(n, 8, generator=torch.Generator().manual_seed(n)) for n in (5, 40))
    vectors = labels.clone().requires_grad_()
    loss = Loss({name: 1.0}, 0.05, labels.numpy())
    errors = loss.errors(vectors, labels, bank)
    errors.sum().backward()
    assert errors.abs().max() < 1e-5 and vectors.grad.abs().max() < 1e-4


def test_a_sum_of_terms_in_units_of_the_labels_variance():
    labels = np.array([[0, 0], [2, 0], [0, 6], [2, 6]], dtype=np.float16)
    assert variance(labels) == (1 + 9) / 2
    both = Loss({"mse": 0.5, "cosine": 2.0}, None, labels)
    errors = both.errors(VECTOR, LABEL, torch.zeros(0, 2))
    assert errors.shape == (2, 1)
    assert both.total(errors).tolist() == pytest.approx([0.5 * 2.5 / 5 + 2 * (1 - R)])
    distance = Loss({"l2": 1.0, "cosine": 1.0}, None, labels).factors
    assert distance["l2"] == pytest.approx(1 / math.sqrt(10)), "the root of the mean squared distance to the mean"
    alone = Loss({"mse": 1.0}, None, labels)
    assert alone.total(alone.errors(VECTOR, LABEL, torch.zeros(0, 2))).tolist() == [2.5], "the article's"


# ---------------------------------------------------------------- in a run

ALL = "--loss mse l2 spread cosine contrastive:0.3 distribution:0.3 similarity:0.01 --bank_size 50"


@pytest.fixture(scope="module")
def given(pairs, teacher, student) -> list[str]:
    models = ("--teacher_model_name_or_path", teacher, "--student_model_name_or_path", student)
    steps = ("--max_train_steps", "4", "--logging_steps", "1", "--learning_rate", "1e-3")
    return ["--pairs_dir", pairs, *models, *steps]


def test_forwards_and_processes_change_nothing(given, tmp_path):
    """A forward of a sentence at a time, and two processes, give what one forward gives, by every term."""
    lines = {}
    for name, tokens, processes in (("whole", "10000", 1), ("cut", "1", 1), ("two", "10000", 2)):
        options = (*given, *ALL.split(), "--max_tokens_per_batch", tokens, *folders(tmp_path / name))
        codes, _, errors = forked.run(tmp_path / f"{name}-said", "train_distill.py", *options, processes=processes)
        assert codes == [0] * processes, errors
        lines[name] = [line for line in metrics(tmp_path / name) if "loss" in line]
    weights = {name: load_file(tmp_path / name / "run/student/model.safetensors") for name in lines}
    for name in ("cut", "two"):
        for line, expected in zip(lines[name], lines["whole"], strict=True):
            assert line["loss_by_term"] == pytest.approx(expected["loss_by_term"], rel=1e-5)
            assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        for parameter, found in weights[name].items():
            testing.assert_close(found, weights["whole"][parameter], atol=2e-4, rtol=1e-3)
    by_term = lines["whole"][0]["loss_by_term"]
    assert list(by_term) == ["mse", "l2", "cosine", "contrastive", "distribution", "similarity", "spread"]
    assert lines["whole"][-1]["loss"] < lines["whole"][0]["loss"]


@pytest.mark.parametrize(
    "options, error",
    [
        ("--loss l1", "argument --loss: l1 is none of mse, l2, cosine, contrastive, distribution, similarity, spread"),
        ("--loss spread", "error: --loss spread asks nothing of the labels: add another term"),
        ("--loss mse:0", "argument --loss: 0 is no number from 1e-06 to 1e+06"),
        ("--loss mse:x", "argument --loss: 'x', the weight of mse, is no number"),
        ("--loss distribution --loss_temperature 1e-30", "argument --loss_temperature: 1e-30 is no number from 0.001"),
        ("--loss mse cosine mse:2", "error: --loss mse cosine mse: name each term once"),
        (
            "--bank_size 10",
            "error: --bank_size is for contrastive, distribution, similarity, spread: add one of them to --loss",
        ),
        ("--loss_temperature 1", "error: --loss_temperature is for contrastive, distribution, similarity: add"),
    ],
)
def test_a_loss_that_cannot_be(given, tmp_path, capsys, options, error):
    assert train(*given, *options.split(), *folders(tmp_path)) == 2
    assert error in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
