"""What options make of a student: dev scores of runs that differ in them, mean and standard deviation over seeds.

    python benchmarks/variants.py --steps 100 --seeds 1 2 3 --learning_rate 8e-4 2e-3 --vary "--loss mse" \\
      "--loss mse distribution:0.3" -- --pairs_dir pairs/ --sts_dev 'stsb-{en,it}-dev.csv' \\
      --student_model_name_or_path student/ --teacher_model_name_or_path sentence-transformers/all-MiniLM-L6-v2

    python benchmarks/variants.py --vary "--loss mse" "train_bridge.py --margin 0.3" \\
      --distill "--teacher_model_name_or_path teacher/" -- --pairs_dir pairs/ --sts_dev 'stsb-{en,it}-dev.csv' \\
      --student_model_name_or_path student/

Behind `--` stand the options of the trainer that all runs have, --sts_dev among them; a variant that is one word
begins with a space. The trainer is train_distill.py unless a variant begins with another's name. Each run is a whole
schedule, evaluated before its first step (unless --skip_first_evaluation is among the options) and after its last. Of
several learning rates each is tried on the first seed, and the best by STS across languages plus accuracy is taken:
that of translation on --eval_bitext where that is among the options, else on the dev split. The last pool is of the dev
split.

A run that has ended is kept in --work_dir: a call that was cut goes on when it is given again, and two calls with other
variants or seeds may share the work.
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
from collections.abc import Callable
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parent.parent))
from distill.encoder.sentence_encoder import SentenceEncoder, encode_on_all_ranks
from distill.folders import read_json, write_json
from distill.scoring.bitext import read_bitext
from distill.scoring.retrieval import mixed_scores, pools_of
from distill.training.checkpoints import BEST, LAST

ROOT = Path(__file__).parent.parent
OF_A_CALL = ("vary", "seeds", "learning_rate")  # what may differ where kept runs are taken


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vary", nargs="+", required=True, metavar="OPTIONS", help="of each variant, in quotes")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--learning_rate", nargs="+", default=[""], help="to choose from for each variant")
    parser.add_argument("--work_dir", default="benchmark/variants", help="folder for the runs and their results")
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


def kept(path: Path, make: Callable[[], dict]) -> dict:
    """What a JSON file holds; made and written where it is not there."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, make())
    return read_json(path, {})


def check_kept(args: argparse.Namespace, of_a_call: tuple[str, ...]) -> None:
    """End the script where the runs that are kept had other options than those that may differ."""
    settings = {name: value for name, value in vars(args).items() if name not in of_a_call}
    if kept(Path(args.work_dir, "settings.json"), lambda: settings) != settings:
        sys.exit(f"{Path(sys.argv[0]).name}: {args.work_dir} holds runs with other options: name another --work_dir")


def mixed_accuracy(student: SentenceEncoder, pairs_dir: str, accelerator: Accelerator) -> float:
    """How many translations of the dev pairs are nearest in one pool of all languages."""
    [pool] = pools_of(read_bitext(f"{pairs_dir}:dev"))
    vector = encode_on_all_ranks(student, pool.sentences, accelerator)
    vectors, queries = np.stack([vector[sentence] for sentence in pool.sentences]), np.arange(len(pool.sentences))
    return mixed_scores(pool, vectors, queries, accelerator.device)["accuracy@1"].mean()


def result(args: argparse.Namespace, variant: str, rate: str, seed: str) -> dict:
    """Dev scores before and after a run, and its CPU-seconds, with those of its evaluations."""
    folder = Path(args.work_dir, f"{variant} {rate} seed {seed}".replace("/", "-"))

    def make() -> dict:
        given = ["--seed", seed, *(["--learning_rate", rate] if rate else [])]
        lines, seconds = launched(args, variant, folder, args.steps, *given)
        scored = [line for line in lines if "sts" in line]
        pairs_dir = read_json(folder / "args.json", {})["pairs_dir"]
        student = SentenceEncoder.from_pretrained(str(folder / "student"))
        for saved in (BEST, LAST):
            shutil.rmtree(folder / saved)
        scored[-1]["mixed_accuracy"] = mixed_accuracy(student, pairs_dir, Accelerator(cpu=True))
        return {"before": scored[:-1], "after": scored[-1], "seconds": seconds}

    return kept(folder / "result.json", make)


def figures(scores: dict) -> list[float]:
    """English, means within and across languages, accuracy between two and among all; x 100, nan if not there."""
    sts = scores["sts"]
    kinds = [[sts[key] for key in sts if ("-" in key) == across] or [math.nan] for across in (False, True)]
    accuracies = scores.get("bitext_accuracy", scores["mean_accuracy"]), scores.get("mixed_accuracy", math.nan)
    values = sts.get("en", math.nan), *map(statistics.mean, kinds), *accuracies
    return [100 * value for value in values]


def cell(values: list[float]) -> str:
    """Mean and standard deviation of the seeds."""
    spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def row(args: argparse.Namespace, variant: str) -> tuple[list[list[str]], list[str]]:
    """Lines of the table: before, where the runs have been evaluated then, and after."""

    def quality(rate: str) -> float:
        _, _, across, accuracy, _ = figures(result(args, variant, rate, args.seeds[0])["after"])
        return across + accuracy

    rate = max(args.learning_rate, key=quality) if len(args.learning_rate) > 1 else args.learning_rate[0]
    results = [result(args, variant, rate, seed) for seed in args.seeds]
    befores = [["before", "", *(cell([value]) for value in figures(line)), ""] for line in results[0]["before"]]
    columns = zip(*(figures(one["after"]) for one in results), strict=True)
    return befores, [variant, rate, *map(cell, columns), cell([one["seconds"] for one in results])]


def main(args: argparse.Namespace) -> None:
    if "--sts_dev" not in args.options:
        sys.exit("variants.py: give --sts_dev among the options behind --")
    check_kept(args, OF_A_CALL)
    rows = []
    for variant in args.vary:
        before, after = row(args, variant)
        rows += [line for line in before if line not in rows] + [after]
        headers = ["", "rate", "en", "within", "across", "accuracy", "mixed pool", "CPU-seconds"]
        print(tabulate(rows, headers, tablefmt="github", disable_numparse=True), flush=True)


if __name__ == "__main__":
    main(build_parser().parse_args())
