"""Watching a run: dev scores, metrics.jsonl and trackers, curves, the summary at its end."""

import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NoReturn

import matplotlib
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from distill.encoder.sentence_encoder import SentenceEncoder, encode_on_all_ranks
from distill.folders import UserError
from distill.ranks import together
from distill.scoring.bitext import negative_mse, translation_accuracy, translation_hits
from distill.scoring.metrics import similarities, sts_scores, unit
from distill.training.steps import MicroBatch

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLLAPSED = 0.95  # mean similarity of different sentences; a useful teacher's is near 0


def evaluate(student: SentenceEncoder, dev, dev_labels: np.ndarray, sts, accelerator: Accelerator) -> dict:
    """Dev scores: translation accuracy and negative MSE per language, STS where given, and the means over both."""
    pairs = {}
    for row, (source, targets) in enumerate(zip(dev["source"], dev["targets"], strict=True)):
        for target in targets:
            pairs.setdefault(target["language"], []).append((row, source, target["sentence"]))
    sentences = {sentence for listed in pairs.values() for _, *both in listed for sentence in both}
    if sts is not None:
        sentences.update(sentence for graded in sts for sentence in (*graded.sentence1, *graded.sentence2))
    vector = encode_on_all_ranks(student, sentences, accelerator)
    result = {"bitext": {}}
    for language, listed in sorted(pairs.items()):
        rows, sources, targets = zip(*listed, strict=True)
        source, target = (np.stack([vector[s] for s in side]) for side in (sources, targets))
        hits = translation_hits(sources, targets, source, target, device=accelerator.device)
        error = negative_mse(dev_labels[list(rows)], target)
        result["bitext"][language] = translation_accuracy(hits) | {"negative_mse": error}
    result["mean_accuracy"] = float(np.mean([scores["mean_accuracy"] for scores in result["bitext"].values()]))
    result["mean_similarity"] = mean_similarity(np.stack([vector[source] for source in dict.fromkeys(dev["source"])]))
    if sts is not None:
        scores = sts_scores(sts, similarities(sts, vector))
        result["sts"] = {name: correlations["spearman_cosine"] for name, correlations in scores.items()}
        result["spearman_cosine"] = float(np.mean(list(result["sts"].values())))
    return result


def mean_similarity(vectors: np.ndarray) -> float:
    """Mean cosine similarity of each row of `vectors` (n, dimension) to all others: the square of the sum of unit
    vectors holds every pair twice, and n ones of each with itself."""
    n, total = len(vectors), unit(vectors).astype(np.float64).sum(0)
    return float((total @ total - n) / (n * (n - 1)))


def evaluation_report(step: int, metric: str, scores: dict) -> str:
    """A line for the terminal, and a warning where the student has collapsed."""
    report = f"step {step}: dev {metric} {scores[metric]:.4f}"
    if step > 0 and scores["mean_similarity"] > COLLAPSED:
        report += (
            f"\nthe student has collapsed: {scores['mean_similarity']:.2f} is the mean similarity of different "
            "sentences; lower --learning_rate, or see whether the labels are those of the sentences"
        )
    return report


def plot_curves(metrics: list[dict], path: Path) -> None:
    """Loss and dev score over steps, as PNG."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    steps = [line for line in metrics if "loss" in line]
    left.plot([line["step"] for line in steps], [line["loss"] for line in steps])
    left.set(title="Training loss (MSE)", xlabel="step", ylim=(0, None))
    evaluations = [line for line in metrics if "mean_accuracy" in line]
    at = [line["step"] for line in evaluations]
    for name in evaluations[-1].get("sts", {}):
        right.plot(at, [line["sts"][name] for line in evaluations], marker="o", label=f"STS {name}")
    accuracy = [line["mean_accuracy"] for line in evaluations]
    right.plot(at, accuracy, "k--", marker="o", label="translation accuracy")
    right.set(title="Dev scores", xlabel="step", ylim=(min(0, *right.get_ylim()), 1))
    figure.legend(loc="outside right center", fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


class Metrics:
    """metrics.jsonl and the trackers: a line per logging step or evaluation.

    On resume the file is cut back to the `lines` that it had at the checkpoint.
    """

    def __init__(self, path: Path, lines: int, accelerator: Accelerator):
        self.path, self.accelerator, self.lines = path, accelerator, []
        if accelerator.is_main_process:
            kept = path.read_text().splitlines()[:lines] if path.exists() else []
            self.lines = [json.loads(line) for line in kept]
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(line + "\n" for line in kept))
            temporary.rename(path)

    def write(self, line: dict) -> None:
        self.accelerator.log(flat(line), step=line["step"])
        together(partial(self._append, line), self.accelerator, self.path.parent, cut_short=False)

    def _append(self, line: dict) -> None:
        if self.accelerator.is_main_process:
            self.lines.append(line)
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")


def flat(content: dict, prefix: str = "") -> dict:
    """{'sts': {'en': 0.8}} as {'sts/en': 0.8}, which trackers take."""
    result = {}
    for name, value in content.items():
        result |= flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value}
    return result


class Losses:
    """Every sentence's error since the last line of metrics.jsonl, on the device: no step waits for its loss.

    `before`, `seconds`: sums, as `sums()` gives them, and time that a run which was stopped had so far.
    """

    def __init__(
        self, languages: list[str], accelerator: Accelerator, before: Tensor | None = None, seconds: float = 0.0
    ):
        self.names, self.accelerator, self.steps = ["source", *languages], accelerator, []
        self.since = time.perf_counter() - seconds
        self.before = torch.zeros(2, len(self.names), device=accelerator.device) if before is None else before

    def add(self, step: int, batches: list[MicroBatch], errors: list[Tensor]) -> None:
        """`errors`: what `add_gradients` gave for these micro-batches."""
        self.steps += [(step, b.rows, b.languages, b.weights, e) for b, e in zip(batches, errors, strict=True)]

    def sums(self) -> Tensor:
        """This rank's weighted errors and weights by language (0: the sources), (2, 1 + languages)."""
        if not self.steps:
            return self.before
        languages, weights, errors = (torch.cat(parts) for parts in list(zip(*self.steps, strict=True))[2:])
        return self.before.index_add(1, languages, torch.stack([errors, weights]))

    @property
    def seconds(self) -> float:
        """Time spent in steps."""
        return time.perf_counter() - self.since

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in this block is not spent in steps."""
        start = time.perf_counter()
        yield
        self.since += time.perf_counter() - start

    def line(self) -> dict:
        """The loss, the loss by language and the speed since the last line, over all ranks, for metrics.jsonl."""
        sums = self.accelerator.reduce(self.sums()).tolist()
        by_language = dict(zip(self.names, zip(*sums, strict=True), strict=True))
        total_errors, total_weights = map(sum, sums)
        return {
            "loss": total_errors / total_weights,
            "loss_by_language": {name: error / weight for name, (error, weight) in by_language.items() if weight > 0},
            "pairs_per_second": total_weights / 2 / self.seconds,
        }

    def stop(self, dataset, path: Path) -> NoReturn:
        """End a run whose loss is not a finite number; the sentences of the first such step stand in `path`."""
        bad = []
        for step, rows, languages, _, errors in self.steps:
            for i in (~errors.isfinite()).nonzero().flatten().tolist():
                row, language = dataset[int(rows[i])], self.names[int(languages[i])]
                sentences = [t["sentence"] for t in row["targets"] if t["language"] == language] or [row["source"]]
                bad.append({"step": step, "row": int(rows[i]), "language": language, "sentences": sentences})
        bad = gather_object(bad)
        first = [line for line in bad if line["step"] == min(line["step"] for line in bad)]
        if self.accelerator.is_main_process:
            path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in first), encoding="utf-8")
        raise UserError(
            f"the loss of step {first[0]['step']} is not a finite number: {len(first)} of its sentences stand in "
            f"{path}; if it is most of a step, lower --learning_rate, or use bf16 in place of fp16"
        )


class Meter:
    """What this process has done since it started, for the summary."""

    def __init__(self):
        self.seconds, self.pairs, self.tokens, self.padded = 0.0, 0, 0, 0

    def add(self, batches: list[MicroBatch], pairs: int) -> None:
        self.pairs += pairs
        self.tokens += sum(batch.tokens for batch in batches)
        self.padded += sum(batch.inputs["input_ids"].numel() for batch in batches)

    def summary(self, student: SentenceEncoder, accelerator: Accelerator) -> str:
        """One sentence: speed, padding, share of the measured rate of matrix products, peak memory.

        A token costs 6 operations for each weight of a linear layer, forward and backward (Kaplan et al. 2020,
        arXiv 2001.08361); attention itself is left out.
        """
        weights = sum(m.weight.numel() for m in student.modules() if isinstance(m, torch.nn.Linear))
        share = 6 * weights * self.tokens / self.seconds / matrix_product_rate(accelerator)
        if accelerator.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**30
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return (
            f"{self.pairs / self.seconds:.1f} pairs/s; on each process {self.tokens / self.seconds:.0f} tokens/s, "
            f"{1 - self.tokens / self.padded:.1%} padding, {share:.0%} of its matrix products' rate, "
            f"{peak:.2f} GB at the peak"
        )


def matrix_product_rate(accelerator: Accelerator, size: int = 1024, repeats: int = 10) -> float:
    """Operations per second of a product of square matrices, in the precision that training has."""

    def now() -> float:
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    matrix = torch.randn(size, size, device=accelerator.device)
    with accelerator.autocast():
        matrix @ matrix
        start = now()
        for _ in range(repeats):
            matrix @ matrix
    return 2 * size**3 * repeats / (now() - start)
