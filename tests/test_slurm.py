"""The batch files in a real Slurm of at least two nodes: two nodes together, jobs that are cut, arrays."""

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from conftest import ENVIRONMENT, ROOT, SAMPLES, launch

from build_pairs import build_parser as pairs_parser
from build_pairs import main as build_pairs

DONE = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


def nodes() -> int:
    """How many nodes of a Slurm answer."""
    if shutil.which("sbatch") is None:
        return 0
    answer = subprocess.run(["sinfo", "--noheader", "--responding", "--Format=Nodes"], capture_output=True, text=True)
    return sum(int(line) for line in answer.stdout.split())


pytestmark = [
    pytest.mark.skipif(nodes() < 2, reason="no Slurm of two nodes answers here"),
    pytest.mark.xdist_group("slurm"),  # its nodes are taken by one test at a time
]


def submit(path: str, *options: str, sbatch: tuple[str, ...] = (), log: Path, folder: Path = ROOT, **more: str) -> str:
    """Submit a batch file as a user does who stands in `folder`; the job's id."""
    command = ["sbatch", "--parsable", f"--output={log}", "--cpus-per-task=1", "--mem=1G", *sbatch, path, *options]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT | more, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def of_job(job: str) -> dict[str, str]:
    """What Slurm knows of a job (of an array: of its first task)."""
    shown = subprocess.run(["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True, check=True)
    return dict(re.findall(r"(\w+)=(\S*)", shown.stdout.splitlines()[0]))


def wait_for(condition, seconds: float = 300):
    """The first true value of `condition()`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
    return value


def end_of(job: str) -> dict[str, str]:
    """What Slurm knows of a job that has ended."""
    return wait_for(lambda: (found := of_job(job))["JobState"] in DONE and found)


def control(*command: str) -> None:
    subprocess.run(command, check=True)


# ---------------------------------------------------------------- training


@pytest.fixture(scope="module")
def options(pairs, teacher, student) -> list[str]:
    """A run of some seconds, that a test can meet in the middle."""
    models = ["--teacher_model_name_or_path", teacher, "--student_model_name_or_path", student]
    steps = "--max_train_steps 300 --checkpointing_steps 50 --eval_steps 100 --learning_rate 1e-3 --dropout 0.1"
    return ["--pairs_dir", pairs, *models, *steps.split()]


@pytest.fixture(scope="module")
def uncut(options, tmp_path_factory) -> Path:
    """The same run on two processes of this machine, without Slurm."""
    folder = tmp_path_factory.mktemp("uncut")
    code, _, errors = launch("train_distill.py", *options, "--output_dir", str(folder / "run"))
    assert code == 0, errors
    return folder / "run"


def train(options: list[str], folder: Path, *sbatch: str) -> str:
    """Submit train.slurm for two nodes of one process each; the job's id."""
    two_nodes = ("--nodes=2", "--gpus-per-node=1", "--time=10", *sbatch)
    given = [*options, "--output_dir", str(folder / "run")]
    config = {"CONFIG": "accelerate_configs/multi_cpu.yaml"}
    return submit("slurm/train.slurm", *given, sbatch=two_nodes, log=folder / "log", **config)


def starts(folder: Path) -> int:
    return (folder / "log").read_text(errors="replace").count("2 process(es) on cpu, 2 node(s)")


def in_training(folder: Path) -> bool:
    """Whether the run has a checkpoint."""
    return bool(list((folder / "run").glob("checkpoint-*[0-9]")))


def pending(number: int, folder: Path) -> bool:
    """Whether a signal waits for a process of the run, which is held."""
    for process in psutil.process_iter(["cmdline"]):
        if str(folder / "run") in (process.info["cmdline"] or []):
            status = Path(f"/proc/{process.pid}/status").read_text()
            if int(re.search(r"ShdPnd:\s*(\w+)", status)[1], 16) >> (number - 1) & 1:
                return True
    return False


def restarts(job: str) -> int:
    return int(of_job(job)["Restarts"])


def assert_equal(folder: Path, uncut: Path) -> None:
    for name in ("student/model.safetensors", "checkpoint-300/model.safetensors"):
        assert (folder / "run" / name).read_bytes() == (uncut / name).read_bytes(), name


def assert_finished(job: str, folder: Path, uncut: Path, cut: bool) -> str:
    """The job is done, after a restart at least if it was cut, with the weights of the uncut run; returns its log."""
    ended, log = end_of(job), (folder / "log").read_text(errors="replace")
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), log
    assert (restarts(job) > 0, starts(folder) > 1, "resumed from" in log) == (cut, cut, cut), log
    assert_equal(folder, uncut)
    return log


def test_two_nodes_train_together_and_equal_two_processes(options, uncut, tmp_path):
    assert_finished(train(options, tmp_path), tmp_path, uncut, cut=False)


def test_a_job_cut_by_its_time_limit_is_requeued_and_finished(options, uncut, tmp_path):
    """Slurm sends USR1 a minute before the limit of two; until then the run is held, as if it were a long one."""
    job = train(options, tmp_path, "--time=2", "--signal=USR1@60")
    wait_for(lambda: in_training(tmp_path))
    control("scancel", "--signal=STOP", job)
    wait_for(lambda: pending(signal.SIGUSR1, tmp_path) or restarts(job) > 0)
    control("scancel", "--signal=CONT", job)
    assert "stopped by SIGUSR1" in assert_finished(job, tmp_path, uncut, cut=True)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["scontrol", "requeue", "JOB"], id="requeued by hand"),
        pytest.param(["scancel", "--signal=TERM", "JOB.0"], id="a signal to its step"),
    ],
)
def test_a_job_cut_in_the_middle_is_finished(options, uncut, tmp_path, command):
    job = train(options, tmp_path)
    wait_for(lambda: in_training(tmp_path))
    control(*(word.replace("JOB", job) for word in command))
    assert "stopped by SIGTERM" in assert_finished(job, tmp_path, uncut, cut=True)


def test_a_cancelled_step_ends_the_job_and_the_next_one_goes_on(options, uncut, tmp_path):
    """Slurm cancels a step by SIGKILL."""
    job = train(options, tmp_path)
    wait_for(lambda: in_training(tmp_path))
    control("scancel", f"{job}.0")
    ended = end_of(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "137:0", "0")
    job = train(options, tmp_path)
    ended, log = end_of(job), (tmp_path / "log").read_text(errors="replace")
    assert ended["JobState"] == "COMPLETED" and "resumed from" in log, log
    assert_equal(tmp_path, uncut)


def test_a_cancelled_job_saves_and_ends(options, tmp_path):
    job = train(options, tmp_path)
    wait_for(lambda: in_training(tmp_path))
    control("scancel", job)
    ended = end_of(job)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0")
    wait_for(lambda: "stopped by SIGTERM" in (tmp_path / "log").read_text(errors="replace"), 30)
    assert starts(tmp_path) == 1


def test_a_job_that_fails_is_not_requeued(options, tmp_path):
    job = train([*options, "--freeze_layers", "9"], tmp_path)
    ended, log = end_of(job), (tmp_path / "log").read_text(errors="replace")
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0"), log
    assert "error: --freeze_layers 9: the student has 2" in log and "Traceback" not in log


@pytest.mark.parametrize("name", ["train", "eval"])
def test_a_task_has_the_cpus_of_its_job(tmp_path, name):
    """By itself srun binds a task to one; here no task is bound, but one sees what srun was told."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    python = tmp_path / ".venv/bin/python"
    python.write_text(f'#!/bin/bash\necho "$SRUN_CPUS_PER_TASK" > {tmp_path}/told\n')
    python.chmod(0o755)
    sbatch = ("--cpus-per-task=3", "--gpus-per-node=1", "--time=5")
    job = submit(str(ROOT / f"slurm/{name}.slurm"), sbatch=sbatch, log=tmp_path / "log", folder=tmp_path)
    assert end_of(job)["JobState"] == "COMPLETED", (tmp_path / "log").read_text()
    assert (tmp_path / "told").read_text() == "3\n"


# ---------------------------------------------------------------- evaluation, pairs


def test_evaluation(teacher, tmp_path):
    given = ["--model_name_or_path", teacher, "--sts", str(SAMPLES / "sts-{en,it}.csv"), "--output_dir"]
    sbatch = ("--gpus-per-node=2", "--time=5")
    config = {"CONFIG": "accelerate_configs/multi_cpu.yaml"}
    job = submit("slurm/eval.slurm", *given, f"{tmp_path}/scores", sbatch=sbatch, log=tmp_path / "log", **config)
    assert end_of(job)["JobState"] == "COMPLETED", (tmp_path / "log").read_text(errors="replace")
    scores = json.loads((tmp_path / "scores/scores.json").read_text())
    assert set(scores["models"][0]["sts"]) == {"en", "it", "en-it", "it-en"}


def test_pairs_by_two_nodes_equal_one_call(tmp_path):
    """The batch file with its edit-me block edited, from a folder that has what it names."""
    script = (ROOT / "slurm/build_pairs.slurm").read_text(encoding="utf-8")
    edited = re.sub(r"^corpora=.*$", "corpora=(talks.jsonl news.tsv)", script, flags=re.M)
    edited = re.sub(r"^languages=.*$", "languages=(it de)", edited, flags=re.M)
    (tmp_path / "build_pairs.slurm").write_text(edited)
    for name in (".venv", "distill", "build_pairs.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(SAMPLES / "talks.jsonl", tmp_path)
    (tmp_path / "news.tsv").write_text("en\tit\nA new sentence.\tUna frase nuova.\n")
    options = ("--max_translations", "2")
    where = {"log": tmp_path / "log", "folder": tmp_path}
    job = submit("build_pairs.slurm", *options, sbatch=("--nodes=2", "--mem=3G"), **where)
    ended = end_of(job)
    assert ended["JobState"] == "COMPLETED" and ended["NumNodes"] == "2", (tmp_path / "log").read_text()
    command = (
        f"--corpus {tmp_path}/talks.jsonl {tmp_path}/news.tsv --target_languages it de --output_dir {tmp_path}/whole"
    )
    build_pairs(pairs_parser().parse_args([*command.split(), *options]))
    for name in ("train", "dev"):
        one, other = (tmp_path / folder / name / "data-00000-of-00001.arrow" for folder in ("pairs", "whole"))
        assert one.read_bytes() == other.read_bytes()
