"""What only a GPU can show; benchmarks/gpu.sh runs these tests where there is one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_encoder
from torch import testing
from transformers import XLMRobertaConfig, XLMRobertaModel

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
# A step may read nothing back from the GPU, from its tensors being there to the update of the weights.
WATCHED = """
import torch
import train_distill
from distill.command import run
from distill.training.steps import RankStep
from distill.training.watching import Tally

on, add = RankStep.on, Tally.add

def watched_on(self, device):
    step = on(self, device)
    if Tally.seen > 2:  # the first steps make the optimizer's state and load kernels
        torch.cuda.set_sync_debug_mode("error")
    return step

def watched_add(self, *given):
    torch.cuda.set_sync_debug_mode("default")
    Tally.seen += 1
    add(self, *given)

Tally.seen, RankStep.on, Tally.add = 0, watched_on, watched_add
with train_distill.listening():
    run(train_distill.main, train_distill.build_parser().parse_args())
"""


@pytest.fixture(scope="module")
def given(pairs, teacher, student) -> list[str]:
    models = ["--teacher_model_name_or_path", teacher, "--student_model_name_or_path", student]
    return ["--pairs_dir", pairs, *models, "--max_train_steps", "12", "--logging_steps", "1", "--learning_rate", "1e-3"]


def trained(folder, script: str, precision: str, *options: str) -> list[dict]:
    """The lines with a loss of a run on one GPU."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/single_gpu.yaml"]
    command = [sys.executable, *launcher, "--mixed_precision", precision, script, *options]
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [*command, "--output_dir", str(folder)], cwd=ROOT, env=environment, text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "on cuda" in done.stdout
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if "loss" in line]


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_packed_sentences_have_the_vectors_and_gradients_of_padded_ones(kind):
    """In bf16, against padded ones in fp32; heads are 16 wide."""
    encoder = tiny_encoder()
    if kind == "xlm-roberta":
        settings = encoder.transformer.config.to_dict() | {"type_vocab_size": 1, "pad_token_id": 1}
        del settings["model_type"]
        encoder = tiny_encoder(transformer=XLMRobertaModel(XLMRobertaConfig(**settings)))
    encoder = encoder.cuda()
    assert encoder.packs(half=True) and not encoder.packs(half=False) and not encoder.packs(half=True, dropout=0.1)
    lengths = np.array([20, 7, 7, 7, 3, 2, 2])
    ids, found = np.random.default_rng(0).integers(5, 90, lengths.sum()), []
    for packed in (True, False):
        inputs = {
            name: value.cuda() if isinstance(value, torch.Tensor) else value
            for name, value in encoder.batch(ids, lengths, packed).items()
        }
        encoder.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=packed):
            vectors = encoder(**inputs)
        vectors.pow(3).sum().backward()
        found.append([vectors.detach(), *(p.grad for p in encoder.parameters() if p.grad is not None)])
    for half, whole in zip(*found, strict=True):
        testing.assert_close(half, whole, rtol=0.1, atol=0.05 * float(whole.abs().max()))


@pytest.mark.parametrize("attention", ["packed", "padded"])
def test_no_step_waits_for_the_gpu(given, tmp_path, attention):
    (tmp_path / "watched.py").write_text(WATCHED)
    losses = ("--loss", "mse", "cosine", "contrastive", "distribution", "similarity")
    more = ("--attn_implementation", attention, "--logging_steps", "100", *losses)
    assert len(trained(tmp_path / "run", str(tmp_path / "watched.py"), "bf16", *given, *more)) == 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_what_fp32_learns(given, tmp_path, precision):
    whole = trained(tmp_path / "fp32", "train_distill.py", "no", *given)
    half = trained(tmp_path / "half", "train_distill.py", precision, *given)
    np.testing.assert_allclose([line["loss"] for line in half], [line["loss"] for line in whole], rtol=0.05)
    assert ("loss_scale" in half[0]) == (precision == "fp16")
