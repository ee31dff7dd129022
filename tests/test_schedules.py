"""Learning rates: schedules by hand, parts with their own, runs that are extended."""

import shutil

import numpy as np
import pytest
from conftest import checkpoint_steps, folders, metrics, tiny_encoder, train
from torch import nn
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from distill.training.student import LearningRates, optimizer_and_schedule, parameter_groups, rate_factor


@pytest.fixture(scope="module")
def given(pairs, teacher, student) -> list[str]:
    models = ("--teacher_model_name_or_path", teacher, "--student_model_name_or_path", student)
    more = ("--logging_steps", "1", "--learning_rate", "1e-3", "--checkpointing_steps", "2")
    return ["--pairs_dir", pairs, *models, *more, "--checkpoints_total_limit", "9"]


def test_schedules_by_hand():
    shapes = {kind: rate_factor(kind, 10, 0.2, 0.5) for kind in ("linear", "cosine", "constant", "wsd")}
    found = {kind: [round(factor(step), 3) for step in range(11)] for kind, factor in shapes.items()}
    assert found["linear"] == [0, 0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0]
    assert found["cosine"][2] == 1 and found["cosine"][6] == 0.5 and found["cosine"][10] == 0
    assert found["constant"] == [0, 0.5, *[1] * 9]
    assert found["wsd"] == [0, 0.5, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0]


PEERS = {"linear": get_linear_schedule_with_warmup, "cosine": get_cosine_schedule_with_warmup}


@pytest.mark.parametrize("kind", PEERS)
def test_schedules_are_those_of_transformers(kind):
    factor = rate_factor(kind, 17, 0.2, None)
    optimizer, _ = optimizer_and_schedule(tiny_encoder(), LearningRates(1e-3), factor, 1e-8, 0)
    expected = PEERS[kind](optimizer, 3, 17).lr_lambdas[0]
    assert [factor(step) for step in range(18)] == pytest.approx([expected(step) for step in range(18)])


def test_embeddings_and_the_last_layer_have_learning_rates_of_their_own():
    student = tiny_encoder(dense=nn.Sequential(nn.Sequential(nn.Linear(32, 8), nn.Identity())))
    student.freeze_unused()
    groups = parameter_groups(student, LearningRates(1e-3, 1e-4, 1e-2), 0.01)
    trained = [p for p in student.parameters() if p.requires_grad]
    assert sum(len(group["params"]) for group in groups) == len(trained)
    words, layer = student.transformer.get_input_embeddings().weight, student.dense[-1][0]
    of = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert of[id(words)] == (1e-4, 0.01)
    assert of[id(layer.weight)] == (1e-2, 0.01) and of[id(layer.bias)] == (1e-2, 0)
    assert {rate for key, (rate, _) in of.items() if key not in map(id, (words, layer.weight, layer.bias))} == {1e-3}


def test_a_run_is_extended_from_its_stable_part(given, tmp_path, capsys):
    wsd = ("--lr_scheduler_type", "wsd", "--decay_ratio", "0.5", "--warmup_ratio", "0")
    assert train(*given, *wsd, "--max_train_steps", "8", *folders(tmp_path)) == 0
    rates = [line["learning_rate"] for line in metrics(tmp_path) if "loss" in line]
    assert rates == pytest.approx([1e-3 * share for share in (1, 1, 1, 1, 1, 0.75, 0.5, 0.25)])
    longer = (*given, *wsd, "--max_train_steps", "12", *folders(tmp_path), "--resume_from_checkpoint")
    assert train(*longer, "latest") == 2
    assert "at step 8 the learning rate was 0.00e+00, with this number of steps it would be" in capsys.readouterr().err
    assert train(*longer, f"{tmp_path}/run/checkpoint-4") == 0
    assert checkpoint_steps(tmp_path)[-1] == 12
    assert train(*given, *wsd, "--max_train_steps", "12", *folders(tmp_path / "whole")) == 0
    one, other = ([line for line in metrics(folder) if "loss" in line] for folder in (tmp_path, tmp_path / "whole"))
    np.testing.assert_allclose(*([line["loss"] for line in lines] for lines in (one, other)), rtol=1e-6)
    assert train(*given, *wsd, "--max_train_steps", "10", *folders(tmp_path), "--resume_from_checkpoint", "latest") == 2
    assert "the run has taken 12 steps, more than the 10 that are asked for: give no fewer" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run")


@pytest.mark.parametrize(
    "options, error",
    [
        ("--decay_ratio 0.3", "--decay_ratio is for --lr_scheduler_type wsd: give both, or leave it out"),
        (
            "--lr_scheduler_type wsd --warmup_ratio 0.9",
            "--warmup_ratio 0.9 and --decay_ratio 0.2 are more than all steps",
        ),
        ("--freeze_embeddings --embedding_learning_rate 1", "--freeze_embeddings leaves them as they are"),
        ("--projection_learning_rate 1", "--projection_learning_rate does nothing without --projection"),
    ],
)
def test_rates_that_nothing_takes(given, tmp_path, capsys, options, error):
    assert train(*given, *options.split(), *folders(tmp_path)) == 2
    assert error in capsys.readouterr().err and not (tmp_path / "run").exists()
