"""What options make of a student: dev scores of runs that differ in them, mean and standard deviation over seeds.

    python benchmarks/variants.py --steps 50 --vary "--learning_rate 5e-5" "--learning_rate 3e-4" -- \\
      --pairs_dir pairs/ --sts_dev 'stsb-{en,it}-dev.csv' --student_model_name_or_path e5/ \\
      --teacher_model_name_or_path intfloat/multilingual-e5-small

    python benchmarks/variants.py --vary "--loss mse" "train_bridge.py --margin 0.3" \\
      --distill "--teacher_model_name_or_path teacher/" -- --pairs_dir pairs/ --sts_dev 'stsb-{en,it}-dev.csv' \\
      --student_model_name_or_path student/

Behind `--` stand the options of the trainer that all runs have, --sts_dev among them; a variant that is one word
begins with a space. The trainer is train_distill.py unless a variant begins with another's name. Each run is a whole
schedule, two processes on a CPU; evaluated before its first step and after its last.
"""

import argparse
import json
import math
import os
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).parent.parent


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vary", nargs="+", required=True, metavar="OPTIONS", help="of each variant, in quotes")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--work_dir", default="benchmark/variants", help="folder for the runs, replaced one by one")
    add_runs(parser)
    return parser


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Add the options of all runs, which `launched` reads, and their seeds."""
    parser.add_argument("--seeds", nargs="+", default=["42"])
    parser.add_argument("--config_file", default=f"{ROOT}/accelerate_configs/multi_cpu.yaml")
    parser.add_argument("--mixed_precision", default="bf16")
    parser.add_argument("--distill", default="", metavar="OPTIONS", help="of all runs of train_distill.py, in quotes")
    parser.add_argument("options", nargs="*", metavar="OPTION", help="of all runs")


def launched(args: argparse.Namespace, variant: str, folder: Path, steps: int, *options: str) -> tuple[list, float]:
    """The lines of metrics.jsonl of a run of so many steps, in a new folder, and its CPU-seconds."""
    own, script = shlex.split(variant), "train_distill.py"
    if own and own[0].endswith(".py"):
        script = own.pop(0)
    else:
        own += shlex.split(args.distill)
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", args.config_file]
    command += ["--mixed_precision", args.mixed_precision, f"{ROOT}/{script}", *args.options]
    command += [*own, *options, "--output_dir", str(folder), "--logging_steps", str(steps)]
    command += ["--max_train_steps", str(steps), "--eval_steps", str(steps)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, check=True)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return lines, end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime


def train(args: argparse.Namespace, variant: str, seed: str) -> tuple[dict, dict, float]:
    """Dev scores before and after a run, and its CPU-seconds, with those of its evaluations."""
    folder = Path(args.work_dir, f"{variant} seed {seed}".replace("/", "-"))
    lines, seconds = launched(args, variant, folder, args.steps, "--seed", seed)
    before, after = (line for line in lines if "sts" in line)
    return before, after, seconds


def figures(scores: dict) -> list[float]:
    """English, the means within and across languages, translation accuracy; x 100; nan for what is not there."""
    sts = scores["sts"]
    kinds = [[sts[key] for key in sts if ("-" in key) == across] or [math.nan] for across in (False, True)]
    values = (sts.get("en", math.nan), *map(statistics.mean, kinds), scores["mean_accuracy"])
    return [100 * value for value in values]


def cell(values: list[float]) -> str:
    """Mean and standard deviation of the seeds."""
    spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main(args: argparse.Namespace) -> None:
    if "--sts_dev" not in args.options:
        sys.exit("variants.py: give --sts_dev among the options behind --")
    rows = []
    for variant in args.vary:
        befores, afters, seconds = zip(*(train(args, variant, seed) for seed in args.seeds), strict=True)
        start = [cell(values) for values in zip(*map(figures, befores), strict=True)]
        if start not in [row[1:5] for row in rows]:
            rows.append(["before", *start, ""])
        rows.append([variant, *map(cell, zip(*map(figures, afters), strict=True)), cell(seconds)])
        headers = ["", "en", "within", "across", "accuracy", "CPU-seconds"]
        print(tabulate(rows, headers, tablefmt="github", disable_numparse=True), flush=True)


if __name__ == "__main__":
    main(build_parser().parse_args())
