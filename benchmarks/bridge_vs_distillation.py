"""Translation ranking beside distillation: one start, the same pairs, each approach at its own best learning rate.

    python benchmarks/bridge_vs_distillation.py --pairs 5000 20000 90000 --seeds 1 2 3 \\
      --learning_rate 1e-4 3e-4 8e-4 --pairs_dir pairs/ --sts_dev 'stsb-{en,it,es,fr,de}-dev.csv' \\
      --student_model_name_or_path student/ \\
      --teacher_model_name_or_path sentence-transformers/all-MiniLM-L6-v2 -- --max_seq_length 64

For each number of pairs a table, with means and standard deviations over the seeds. All approaches take as many steps
of as many pairs: the English task half of them from English sentences beside themselves with words left out, made here
of the corpus' own (or from the tables of --english_pairs), the last approach a tenth of them, at the end, as ranking.
Each learning rate of the grid is tried on the first seed, and the best by STS plus accuracy is taken. Behind `--` stand
options of both trainers. All scores are of the student after its last step, on the dev sets. CPU-seconds are those of
whole runs, with labels, hard negatives and the trainers' own evaluation of translations.

A run that has ended is kept in --work_dir, so that a call that was cut goes on when it is given again.
"""

import argparse
import math
import shlex
import shutil
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from accelerate import Accelerator
from datasets import DatasetDict
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.variants import add_runs, cell, check_kept, figures, kept, launched, mixed_accuracy
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.folders import read_json, write_json
from distill.pairs.pairs_folder import load_splits
from distill.training.checkpoints import BEST, LAST
from distill.training.watching import evaluate, read_dev_data


class Approach(NamedTuple):
    """A row of the table."""

    name: str
    variant: str  # trainer and options
    after: str = ""  # the approach that takes all steps but the last tenth


NEGATIVES = "train_bridge.py --hard_negatives 2"
APPROACHES = {
    "ranking": Approach("ranking", "train_bridge.py"),
    "margin": Approach("ranking, margin 0.3", "train_bridge.py --margin 0.3"),
    "english": Approach("ranking, half of it English", "train_bridge.py --english_pairs {english}"),
    "negatives": Approach("ranking, 2 hard negatives", NEGATIVES),
    "mse": Approach("distillation, mse", "--loss mse"),
    "distribution": Approach("distillation, mse distribution:0.3", "--loss mse distribution:0.3"),
    "both": Approach("the same, then ranking, 2 hard negatives", NEGATIVES, after="distribution"),
}
DROPPED = 0.1  # of a sentence's words, at least one
OF_A_CALL = ("pairs", "seeds", "learning_rate", "approaches")  # what may differ where kept runs are taken


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs_dir", required=True, help="folder of build_pairs.py")
    parser.add_argument("--student_model_name_or_path", required=True, help="what all approaches start from")
    parser.add_argument("--teacher_model_name_or_path", required=True)
    parser.add_argument("--sts_dev", required=True, metavar="SPEC")
    parser.add_argument("--english_pairs", nargs="+", metavar="SPEC", help="in place of sentences with words left out")
    parser.add_argument("--pairs", type=int, nargs="+", required=True, help="numbers of pairs to train on")
    parser.add_argument("--epochs", type=float, default=1.0, help="over these pairs")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", nargs="+", default=["1e-4", "3e-4", "8e-4"])
    parser.add_argument("--approaches", nargs="+", choices=APPROACHES, default=[*APPROACHES])
    parser.add_argument("--work_dir", default="benchmark/bridge", help="folder for pairs, runs and their results")
    add_runs(parser)
    return parser


# ---------------------------------------------------------------- what all train on, and are measured by


def prepare(args: argparse.Namespace, count: int, folder: Path) -> None:
    """A folder of pairs with about so many to train on, of rows which a larger number has too; the English task's."""
    splits = load_splits(args.pairs_dir)
    train = splits["train"].shuffle(seed=0, keep_in_memory=True)  # no cache beside the user's pairs
    pairs = np.cumsum([len(targets) for targets in train["targets"]])
    if pairs[-1] < count:
        sys.exit(f"bridge_vs_distillation.py: {args.pairs_dir} has {pairs[-1]} pairs to train on, --pairs asks {count}")
    train = train.select(range(1 + int(np.searchsorted(pairs, count)))).flatten_indices(keep_in_memory=True)
    DatasetDict(train=train, dev=splits["dev"]).save_to_disk(folder / "pairs")
    write_json(folder / "pairs/args.json", read_json(Path(args.pairs_dir, "args.json"), {}))
    lines = [{"anchor": sentence, "positive": without_words(sentence)} for sentence in train["source"]]
    pl.DataFrame(lines).write_ndjson(folder / "english.jsonl")


def without_words(sentence: str) -> str:
    """A sentence with some words left out at random, the same ones each time: ConSERT's cutoff of tokens.

    Yan et al. 2021, arXiv 2105.11741. Where SimCSE drops units of the encoder, nothing has to be encoded in training
    mode. A sentence of one word is its own.
    """
    words = sentence.split()
    dropped = min(len(words) - 1, math.ceil(DROPPED * len(words)))
    left = np.random.default_rng(list(sentence.encode())).choice(len(words), len(words) - dropped, replace=False)
    return " ".join(words[i] for i in sorted(left))


def dev_scores(args: argparse.Namespace, model: str) -> dict:
    """Dev scores as the trainers have them, and `mixed_accuracy`: translations found in one pool of all languages."""
    accelerator, student = Accelerator(cpu=True), SentenceEncoder.from_pretrained(model)
    data, _ = read_dev_data(args.sts_dev, [], [])
    scores = evaluate(student, load_splits(args.pairs_dir)["dev"], None, data, accelerator)
    return scores | {"mixed_accuracy": mixed_accuracy(student, args.pairs_dir, accelerator)}


# ---------------------------------------------------------------- runs


class Runs:
    """All runs on one number of pairs, each kept in a folder of its own."""

    def __init__(self, args: argparse.Namespace, count: int):
        self.args, self.folder = args, Path(args.work_dir, str(count))
        self.steps = max(2, math.ceil(args.epochs * count / args.batch_size))
        if not (self.folder / "english.jsonl").is_file():
            prepare(args, count, self.folder)

    def trained(self, folder: Path, variant: str, rate: str, seed: str, student: str, steps: int) -> dict:
        """What training a student costs: tokens encoded in steps, CPU-seconds of all that a run computes."""
        english = " ".join(self.args.english_pairs or [f"{self.folder}/english.jsonl"])
        given = ["--pairs_dir", f"{self.folder}/pairs", "--student_model_name_or_path", student, "--seed", seed]
        given += ["--learning_rate", rate, "--batch_size", str(self.args.batch_size)]
        given += ["--cache_dir", f"{folder}/cache"]  # of its own: each run computes labels and negatives itself
        lines, seconds = launched(self.args, variant.format(english=english), folder, steps, *given)
        shutil.rmtree(folder / "cache")
        [line] = (line for line in lines if "loss" in line)
        pairs = steps * self.args.batch_size
        return {"tokens": pairs * line["tokens_per_second"] / line["pairs_per_second"], "seconds": seconds}

    def result(self, name: str, rate: str, seed: str) -> dict:
        """Dev scores of the student that an approach makes, and what it costs."""
        approach, start, steps, costs = APPROACHES[name], self.args.student_model_name_or_path, self.steps, []
        if approach.after:
            steps = max(1, round(self.steps / 10))
            rate_before = self.best_rate(approach.after)
            begun = self.folder / f"{approach.after} {rate_before} seed {seed}, for {name}"
            first = begun, APPROACHES[approach.after].variant, rate_before, seed, start, self.steps - steps
            costs.append(kept(begun / "cost.json", lambda: self.trained(*first)))
            start, name = str(begun / "student"), f"{name} {rate_before}"
        folder = self.folder / f"{name} {rate} seed {seed}"

        def make() -> dict:
            costs.append(self.trained(folder, approach.variant, rate, seed, start, steps))
            scores = dev_scores(self.args, str(folder / "student"))
            for student in (BEST, LAST):
                shutil.rmtree(folder / student)
            return scores | {cost: sum(of_part[cost] for of_part in costs) for cost in ("tokens", "seconds")}

        return kept(folder / "result.json", make)

    def best_rate(self, name: str) -> str:
        """The learning rate of the grid that is best on the first seed."""

        def quality(rate: str) -> float:
            result = self.result(name, rate, self.args.seeds[0])
            return result["spearman_cosine"] + result["mean_accuracy"]

        return max(self.args.learning_rate, key=quality)

    def row(self, name: str, start: dict) -> list[str]:
        """An approach's line of the table."""
        rate = self.best_rate(name)
        results = [self.result(name, rate, seed) for seed in self.args.seeds]
        columns = zip(*(scores(result, start) for result in results), strict=True)
        tokens = statistics.mean(result["tokens"] for result in results)
        seconds = cell([result["seconds"] for result in results])
        return [APPROACHES[name].name, rate, *map(cell, columns), f"{tokens / 1e6:.2f}", seconds]


def scores(result: dict, start: dict) -> list[float]:
    """STS within and across languages and of English, what is kept of that, both accuracies; x 100."""
    english, within, across, accuracy, mixed = figures(result)
    return [within, across, english, english - figures(start)[0], accuracy, mixed]


def main(args: argparse.Namespace) -> None:
    work_dir = Path(args.work_dir)
    args.distill = f"--teacher_model_name_or_path {shlex.quote(args.teacher_model_name_or_path)} {args.distill}"
    check_kept(args, OF_A_CALL)
    start = kept(work_dir / "start.json", lambda: dev_scores(args, args.student_model_name_or_path))
    headers = ["", "rate", "within", "across", "en", "en kept", "accuracy", "mixed pool", "M tokens", "CPU-seconds"]
    for count in args.pairs:
        runs = Runs(args, count)
        rows = [["before", "", *(cell([value]) for value in scores(start, start)), "", ""]]
        rows += [runs.row(name, start) for name in args.approaches]
        print(f"\n{count:,} pairs, {runs.steps} steps of {args.batch_size}, seeds {' '.join(args.seeds)}\n")
        print(tabulate(rows, headers, tablefmt="github", disable_numparse=True), flush=True)


if __name__ == "__main__":
    main(build_parser().parse_args())
