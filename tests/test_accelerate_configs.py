"""Every file of accelerate_configs/ is run, those for GPUs in processes on a CPU (cpu and multi_cpu in other tests)."""

import signal

import forked
import numpy as np
import pytest
import torch
from conftest import FAULTY, ROOT, STOPPED, checkpoint_steps, folders, launch, metrics, saved, tiny_encoder, train
from safetensors.torch import load_file
from torch import testing

from distill.encoder.sentence_encoder import SentenceEncoder

OPTIONS = "--max_train_steps 12 --logging_steps 1 --checkpointing_steps 5 --eval_steps 6 --learning_rate 1e-3"
# Accelerate takes FSDP for processes with GPUs only: here it is told that these are such.
FSDP_ON_CPU = """
from accelerate.state import DistributedType, PartialState
PartialState(cpu=True)
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

import train_distill
distillation_loss = train_distill.distillation_loss

def of_fp32(loss, vectors, labels, *more):
    assert vectors.dtype == labels.dtype
    return distillation_loss(loss, vectors, labels, *more)

train_distill.distillation_loss = of_fp32
"""


@pytest.fixture(scope="module")
def options(pairs, teacher, student) -> list[str]:
    models = ["--teacher_model_name_or_path", teacher, "--student_model_name_or_path", student]
    # Steps of several forwards, so that ranks could come to differ in their number.
    return ["--pairs_dir", pairs, *models, *OPTIONS.split(), "--max_tokens_per_batch", "100"]


@pytest.fixture
def fsdp_on_cpu(tmp_path) -> str:
    path = tmp_path / "fsdp_on_cpu.py"
    path.write_text(FSDP_ON_CPU + FAULTY)
    return str(path)


def losses(folder) -> list[float]:
    return [line["loss"] for line in metrics(folder) if "loss" in line]


def test_all_files_are_tested():
    assert {path.stem for path in ROOT.glob("accelerate_configs/*")} == {
        *("cpu", "multi_cpu"),  # by conftest.script and conftest.launch too
        *("single_gpu", "multi_gpu", "fsdp2"),
    }


@pytest.mark.parametrize("config, processes", [("cpu", 1), ("multi_cpu", 2), ("single_gpu", 1), ("multi_gpu", 2)])
def test_files_as_they_are_in_processes_on_a_cpu(options, tmp_path, config, processes):
    assert train(*options, *folders(tmp_path / "fp32")) == 0
    file = (f"accelerate_configs/{config}.yaml", "--num_processes", str(processes), "--main_process_port", "0")
    code, said, errors = launch("train_distill.py", *options, *folders(tmp_path), config=file)
    assert code == 0, errors
    has = torch.cpu.get_capabilities()
    precision = "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") else "no"
    assert f"{processes} process(es) on cpu, 1 node(s), mixed precision: {precision}" in said
    np.testing.assert_allclose(losses(tmp_path), losses(tmp_path / "fp32"), rtol=0.03)


def test_fsdp2_in_processes_on_a_cpu(options, tmp_path, fsdp_on_cpu):
    """Sharded for real: equal to one process, and resumed from sharded checkpoints after a signal."""
    assert train(*options, *folders(tmp_path / "one")) == 0
    file = ("accelerate_configs/fsdp2.yaml", "--main_process_port", "0", "--mixed_precision")
    fault = ("1", str(int(signal.SIGTERM)), "distill.training.watching.Tally.add", "7")
    code, _, errors = launch(fsdp_on_cpu, *fault, *options, *folders(tmp_path), config=(*file, "no"))
    assert code == STOPPED, errors
    assert checkpoint_steps(tmp_path) == [5, 7]
    shards = {path.name for path in (tmp_path / "run/checkpoint-7/pytorch_model_fsdp_0").iterdir()}
    assert {"__0_0.distcp", "__1_0.distcp"} <= shards, "each rank saves its part"
    none = ("none", "0", "train_distill.distillation_loss", "0")
    resumed = (*options, *folders(tmp_path), "--resume_from_checkpoint", "latest")
    code, said, errors = launch(fsdp_on_cpu, *none, *resumed, config=(*file, "no"))
    assert code == 0, errors
    assert "resumed from" in said
    np.testing.assert_allclose(losses(tmp_path), losses(tmp_path / "one"), rtol=1e-5)
    one, sharded = (load_file(folder / "run/student/model.safetensors") for folder in (tmp_path / "one", tmp_path))
    for name in one:
        testing.assert_close(sharded[name], one[name], atol=2e-4, rtol=1e-3)


def test_fsdp2_in_bf16_with_a_new_layer(options, tmp_path, fsdp_on_cpu):
    """The layer starts as it does in one process; the loss is that of fp32 vectors, before the student's Normalize."""
    student = saved(tiny_encoder(seed=2, normalize=True), tmp_path / "student")
    options = [*options, "--projection", "--student_model_name_or_path", student]
    assert train(*options, *folders(tmp_path / "one")) == 0
    given = ("none", "0", "train_distill.distillation_loss", "0", *options, *folders(tmp_path))
    code, _, errors = launch(fsdp_on_cpu, *given, config=("accelerate_configs/fsdp2.yaml", "--main_process_port", "0"))
    assert code == 0, errors
    np.testing.assert_allclose(losses(tmp_path), losses(tmp_path / "one"), rtol=0.03)
    scores = []
    for folder in (tmp_path, tmp_path / "one"):
        assert SentenceEncoder.from_pretrained(str(folder / "run/student")).normalize
        scores.append([line["bitext"]["it"]["negative_mse"] for line in metrics(folder) if "bitext" in line])
    np.testing.assert_allclose(*scores, rtol=0.03)


def test_gradients_that_go_in_bf16_from_process_to_process(options, tmp_path, fsdp_on_cpu):
    for name, more in (("fp32", ()), ("bf16", ("--bf16_exchange",))):
        codes, _, errors = forked.run(
            tmp_path / name, "train_distill.py", *options, *more, *folders(tmp_path / name), processes=2
        )
        assert codes == [0, 0], errors
    found, exact = losses(tmp_path / "bf16"), losses(tmp_path / "fp32")
    np.testing.assert_allclose(found, exact, rtol=0.01)
    assert found != exact
    given = ("none", "0", "train_distill.distillation_loss", "0", *options, "--bf16_exchange", *folders(tmp_path))
    code, _, errors = launch(fsdp_on_cpu, *given, config=("accelerate_configs/fsdp2.yaml", "--main_process_port", "0"))
    assert code == 2 and "error: --bf16_exchange is for several processes that each hold the student" in errors


def test_fsdp_is_not_silently_left_out(options, tmp_path):
    file = ("accelerate_configs/fsdp2.yaml", "--main_process_port", "0")
    code, _, errors = launch("train_distill.py", *options, *folders(tmp_path), config=file)
    assert code == 2
    assert "error: FSDP is used in its version 2 and on GPUs, as in accelerate_configs/fsdp2.yaml" in errors
