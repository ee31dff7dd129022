"""What a few steps do to a student, by learning rate: dev scores before and after, and the loss.

    python benchmarks/first_steps.py --learning_rate 5e-5 3e-4 1e-3 -- --pairs_dir pairs/ \
      --sts_dev 'stsb-{en,it}-dev.csv' --teacher_model_name_or_path intfloat/multilingual-e5-small \
      --student_model_name_or_path e5/

Behind `--` stand the options of train_distill.py. Each run is a whole schedule, two processes on a CPU.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).parent.parent


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--learning_rate", nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--config_file", default=f"{ROOT}/accelerate_configs/multi_cpu.yaml")
    parser.add_argument("--mixed_precision", default="bf16")
    parser.add_argument("--work_dir", default="benchmark/first_steps", help="folder for the runs, replaced")
    parser.add_argument("options", nargs="*", metavar="OPTION", help="of train_distill.py")
    return parser


def train(args: argparse.Namespace, learning_rate: str) -> list[dict]:
    """The lines of metrics.jsonl of a run."""
    folder = Path(args.work_dir, learning_rate)
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", args.config_file]
    command += ["--mixed_precision", args.mixed_precision, ROOT / "train_distill.py", *args.options]
    command += ["--output_dir", folder, "--learning_rate", learning_rate]
    command += ["--max_train_steps", args.steps, "--eval_steps", args.steps, "--logging_steps", args.steps]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run([str(word) for word in command], env=environment, check=True)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def row(name: str, scores: dict, loss: float | None = None) -> list:
    """English, the means within and across languages, translation accuracy; x 100."""
    sts = scores["sts"]
    kinds = [[sts[key] for key in sts if ("-" in key) == across] for across in (False, True)]
    means = [sum(values) / len(values) for values in kinds]
    return [name, *(100 * value for value in (sts["en"], *means, scores["mean_accuracy"])), loss]


def main(args: argparse.Namespace) -> None:
    rows = []
    for learning_rate in args.learning_rate:
        lines = train(args, learning_rate)
        before, after = (line for line in lines if "sts" in line)
        [loss] = [line["loss"] for line in lines if "loss" in line]
        rows += [] if rows else [row("before", before)]
        rows += [row(learning_rate, after, loss)]
    headers = ["learning rate", "en", "within", "across", "accuracy", "loss"]
    digits = ("", ".1f", ".1f", ".1f", ".1f", ".5f")
    print(tabulate(rows, headers, floatfmt=digits, tablefmt="github", disable_numparse=[0]))


if __name__ == "__main__":
    main(build_parser().parse_args())
