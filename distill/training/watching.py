"""Watching a run: dev scores, metrics.jsonl and trackers, curves, the summary at its end."""

import json
import resource
import sys
import time
from pathlib import Path
from typing import NoReturn

import matplotlib
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from distill.command import UserError
from distill.encoder.sentence_encoder import SentenceEncoder, encode_on_all_ranks
from distill.ranks import noting_mistakes, on_first_rank
from distill.scoring.bitext import negative_mse, translation_accuracy, translation_hits
from distill.scoring.data import Data, read_data
from distill.scoring.metrics import defined, similarities, sts_scores, unit
from distill.scoring.report import size_notes
from distill.scoring.scores import score_bitext, score_retrieval
from distill.scoring.search import nearest_neighbours
from distill.scoring.sts import read_sts
from distill.training.cache import fingerprint
from distill.training.checkpoints import Progress
from distill.training.losses import Loss
from distill.training.steps import RankStep

matplotlib.use("Agg")
from matplotlib import pyplot as plt

OF_THE_MACHINE = ("pairs_per_second", "tokens_per_second", "peak_memory_gb")  # in a line, what each run has anew
# Of an evaluation, beside STS: what curves.png calls it, how it is drawn.
MEANS = {
    "mean_accuracy": ("translation accuracy", "k--o"),
    "bitext_accuracy": ("accuracy on --eval_bitext", "k:s"),
    "ndcg_at_10": ("nDCG@10 on --eval_retrieval", "k-.^"),
}
COLLAPSED = 0.95  # mean similarity of different sentences; a useful teacher's is near 0


def read_dev_data(sts_dev: str | None, bitext: list[str], retrieval: list[str]) -> tuple[Data, list[str]]:
    """What dev scores are of, beside the dev split; and notes, on what is left out. UserError for bad files."""
    data, alone = read_data(read_sts(sts_dev) if sts_dev else [], bitext, retrieval)
    return data, size_notes(data, alone)


def chooser_fingerprint(best_metric: str, data: Data) -> str:
    """A name for what chooses the best student: the metric and the content of its sets, not where they lie."""
    of_metric = {"spearman_cosine": data.sets, "bitext_accuracy": data.bitexts, "ndcg_at_10": data.retrievals}
    # Of each all but the first field, its name, and the last, its spec
    return fingerprint(best_metric, *(part for one in of_metric.get(best_metric, []) for part in one[1:-1]))


def evaluate(
    student: SentenceEncoder, dev, dev_labels: np.ndarray | None, data: Data, accelerator: Accelerator
) -> dict:
    """Scores of the dev split, translation accuracy per language and with labels negative MSE; of `data`; the means.

    Every sentence is encoded once, documents behind the same prompt as all others. A language of one pair has no
    accuracy, since one pair is no retrieval; UserError where no language has one.
    """
    pairs = {}
    for row, (source, targets) in enumerate(zip(dev["source"], dev["targets"], strict=True)):
        for target in targets:
            pairs.setdefault(target["language"], []).append((row, source, target["sentence"]))
    sentences = {sentence for listed in pairs.values() for _, *both in listed for sentence in both}
    sentences.update(data.sentences, data.documents)
    vector = encode_on_all_ranks(student, sentences, accelerator)

    def scores() -> dict:
        if not all(np.isfinite(found).all() for found in vector.values()):
            raise UserError(
                "the student gives vectors that are no finite numbers: lower --learning_rate, or use bf16 in place of "
                "fp16"
            )
        result = {"bitext": {}}
        for language, listed in sorted(pairs.items()):
            rows, sources, targets = zip(*listed, strict=True)
            source, target = (np.stack([vector[s] for s in side]) for side in (sources, targets))
            found = {} if dev_labels is None else {"negative_mse": negative_mse(dev_labels[list(rows)], target)}
            result["bitext"][language] = found
            if len(listed) > 1:
                found = nearest_neighbours(source, target, device=accelerator.device)
                hits = translation_hits(sources, targets, found)
                result["bitext"][language] |= translation_accuracy(hits)
        accuracies = [found["mean_accuracy"] for found in result["bitext"].values() if "mean_accuracy" in found]
        if not accuracies:
            raise UserError(
                "the dev split holds no two pairs of a language, to find translations among: build the pairs "
                "anew with a larger --dev_fraction"
            )
        result["mean_accuracy"] = float(np.mean(accuracies))
        sources = [vector[source] for source in dict.fromkeys(dev["source"]) if source in vector]
        result["mean_similarity"] = mean_similarity(np.stack(sources))
        if data.sets:
            correlations = sts_scores(data.sets, similarities(data.sets, vector))
            result["sts"] = {name: found["spearman_cosine"] for name, found in correlations.items()}
            result["spearman_cosine"] = float(np.mean(list(result["sts"].values())))
        # As eval_sts.py has them, but for the intervals, for which one resample is the least
        once = {"device": accelerator.device, "samples": 1, "seed": 0}
        if data.bitexts:
            _, found = score_bitext(data.bitexts, vector, None, False, **once)
            result["eval_bitext"] = {name: one.value for name, one in found.items()}
            result["bitext_accuracy"] = float(np.mean(list(result["eval_bitext"].values())))
        if data.retrievals:
            _, found = score_retrieval(data.retrievals, vector, vector, **once)
            result["eval_retrieval"] = {name: one.value for name, one in found.items()}
            result["ndcg_at_10"] = float(np.mean(list(result["eval_retrieval"].values())))
        return result

    # They decide what all ranks do next, and another rank's may differ in their last digits.
    return on_first_rank(scores, accelerator)


def mean_similarity(vectors: np.ndarray) -> float | None:
    """Mean cosine similarity of each row of `vectors` (n, dimension) to all others; None where there are no others.

    The square of the sum of unit vectors holds every pair twice, and n ones of each with itself.
    """
    n, total = len(vectors), unit(vectors).astype(np.float64).sum(0)
    return float((total @ total - n) / (n * (n - 1))) if n > 1 else None


def evaluation_report(progress: Progress, metric: str, scores: dict) -> str:
    """A line for the terminal; before the first step, which languages it is not about; after it, what goes wrong."""
    step = progress.step
    shown = [metric, *(name for name in MEANS if name in scores and name != metric)]
    report = f"step {step}: dev " + ", ".join(f"{name} {scores[name]:.4f}" for name in shown)
    alone = [language for language, found in scores["bitext"].items() if "mean_accuracy" not in found]
    if step == 0 and alone:
        report += f"\nleft out of the accuracy, since one pair is no retrieval: {', '.join(alone)}"
    if step > 0 and progress.best_score < progress.start_score:
        report += (
            f"\nno evaluation so far is as good as the one before training, {progress.start_score:.4f}: unless the "
            "scores still rise, lower --learning_rate; a teacher may be the wrong one"
        )
    similarity = scores["mean_similarity"]
    if step > 0 and similarity is not None and similarity > COLLAPSED:
        report += (
            f"\nthe student has collapsed: {similarity:.2f} is the mean similarity of different "
            "sentences; lower --learning_rate, or see whether labels and translations are those of the sentences"
        )
    return report


def plot_curves(metrics: list[dict], path: Path) -> None:
    """Loss and dev score over steps, as PNG."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    steps = [line for line in metrics if "loss" in line]
    left.plot([line["step"] for line in steps], [line["loss"] for line in steps])
    left.set(title="Training loss", xlabel="step", ylim=(0, None))
    evaluations = [flat(line) for line in metrics if "mean_accuracy" in line]
    drawn = {name: (f"STS {name.removeprefix('sts/')}", "-o") for name in evaluations[-1] if name.startswith("sts/")}
    drawn |= {name: look for name, look in MEANS.items() if name in evaluations[-1]}
    for name, (label, style) in drawn.items():
        points = [(line["step"], line[name]) for line in evaluations if name in line]  # a run may go on by other files
        right.plot(*zip(*points, strict=True), style, label=label)
    right.set(title="Dev scores", xlabel="step", ylim=(min(0, *right.get_ylim()), 1))
    figure.legend(loc="outside right center", fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


class Metrics:
    """metrics.jsonl and the trackers: a line per logging step or evaluation; and the curves drawn from it.

    On resume the file is cut back to the `lines` that it had at the checkpoint; UserError where one of them is no JSON,
    or the disk is full.
    """

    def __init__(self, output_dir: Path, lines: int, accelerator: Accelerator):
        self.path, self.accelerator = output_dir / "metrics.jsonl", accelerator

        def cut_back() -> list[dict]:
            kept = self.path.read_text().splitlines()[:lines] if self.path.exists() else []
            try:
                read = [dict(json.loads(line)) for line in kept]
            except (ValueError, TypeError) as error:
                raise UserError(f"{self.path} has a line that is no JSON object ({error}): mend it") from None
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(line + "\n" for line in kept))
            temporary.rename(self.path)
            return read

        self.lines = on_first_rank(cut_back, accelerator, output_dir)

    def write(self, step: int, content: dict) -> None:
        """Add a line; after one of an evaluation draw the curves anew. The next agreement tells of a full disk."""
        line = {"step": step} | content
        self.accelerator.log(flat(line), step=step)
        if self.accelerator.is_main_process:
            self.lines.append(line)
            with noting_mistakes(self.path.parent):
                with self.path.open("a") as file:
                    file.write(json.dumps(defined(line)) + "\n")
                if "mean_accuracy" in line:
                    plot_curves(self.lines, self.path.with_name("curves.png"))


def flat(content: dict, prefix: str = "") -> dict:
    """{'sts': {'en': 0.8}} as {'sts/en': 0.8}, which trackers take."""
    result = {}
    for name, value in content.items():
        result |= flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value}
    return result


class Tally:
    """The errors of every sentence since the last line of metrics.jsonl, on the device: no step waits for its loss.

    Beside it the norm of each step's gradient; and what this process has done since it started. `unlogged`: by rank,
    the sums of a run that was cut.
    """

    def __init__(
        self,
        loss: Loss,
        dataset,
        languages: list[str],
        output_dir: Path,
        unlogged: list,
        bar: tqdm,
        accelerator: Accelerator,
    ):
        self.loss, self.dataset, self.names = loss, dataset, ["source", *languages]
        self.output_dir, self.bar, self.accelerator = output_dir, bar, accelerator
        rank, world, sums = accelerator.process_index, accelerator.num_processes, len(loss.factors) + 1
        parts = torch.tensor(unlogged, device=accelerator.device).reshape(len(unlogged), sums, len(self.names))
        self.before = parts[rank::world].sum(0)  # a rank's own; shared out where the number of ranks has changed
        self.steps, self.line_pairs, self.line_tokens, self.since = [], 0, 0, None
        self.seconds, self.pairs, self.tokens, self.padded = 0.0, 0, 0, 0

    def start(self) -> None:
        """Let time run for the next line: only that of steps counts."""
        self.since = self.since or time.perf_counter()

    def add(self, number: int, step: RankStep, errors: list[Tensor], norm: Tensor) -> None:
        """Count a step; `errors`: of each micro-batch the weighted ones, (terms, batch); `norm`: of the gradient."""
        norm = norm.to_local() if isinstance(norm, DTensor) else norm
        self.steps.append((number, step.rows, step.languages, step.weights, torch.cat(errors, 1), norm))
        self.line_pairs += step.pairs
        self.line_tokens += step.tokens
        self.pairs += step.pairs
        self.bar.update(step.pairs)
        self.tokens += step.tokens
        self.padded += sum(inputs["input_ids"].numel() for inputs in step.inputs)

    def sums(self) -> Tensor:
        """This rank's weighted errors by each term and its weights, by language (0: the sources).

        (terms + 1, 1 + languages). Errors of a step whose gradient is no finite number are none either, but where a
        scaler leaves such steps out.
        """
        if not self.steps:
            return self.before
        _, _, languages, weights, errors, norms = zip(*self.steps, strict=True)
        if self.accelerator.scaler is None:
            errors = [of_step + 0 * norm for of_step, norm in zip(errors, norms, strict=True)]
        sums = torch.cat([torch.cat(errors, 1), torch.cat(weights)[None]])
        return self.before.index_add(1, torch.cat(languages), sums)

    def unlogged(self) -> list:
        """The sums of every rank, for a checkpoint; UserError where they are no finite numbers."""
        sums = gather_object([self.sums().tolist()])
        return sums if np.isfinite(sums).all() else self.stop()

    def line(self) -> dict:
        """The loss, by term and by language, and the speed since the last line, over all ranks, for metrics.jsonl.

        Beside them the last step's norm of the gradient, before it is clipped; in fp16 the scale of the loss, and the
        steps that were left out. UserError where the loss or a gradient is no finite number.
        """
        self.start()  # of a run that goes on with no step to take
        sums = self.accelerator.reduce(self.sums()).tolist()
        if not np.isfinite(sums).all():
            self.stop()
        norms = [norm.item() for *_, norm in self.steps]
        line = {"gradient_norm": norms[-1]} if norms else {}
        if self.accelerator.scaler is not None:
            line["loss_scale"] = self.accelerator.scaler.get_scale()
            line["skipped_steps"] = len(norms) - int(np.isfinite(norms).sum())
        *by_term, weight = map(sum, sums)
        loss = self.loss.total(by_term) / weight
        of_languages = zip(self.names, zip(*sums, strict=True), strict=True)
        self.bar.set_postfix(loss=f"{loss:.2e}")
        seconds = time.perf_counter() - self.since
        tokens = self.accelerator.reduce(torch.tensor(self.line_tokens, device=self.before.device)).item()
        speeds = self.line_pairs / seconds, tokens / seconds, self.peak_memory()
        self.before, self.steps = torch.zeros_like(self.before), []
        self.seconds, self.line_pairs, self.line_tokens, self.since = self.seconds + seconds, 0, 0, None
        return line | {
            "loss": loss,
            "loss_by_term": {name: error / weight for name, error in zip(self.loss.factors, by_term, strict=True)},
            "loss_by_language": {
                name: self.loss.total(errors) / its for name, (*errors, its) in of_languages if its > 0
            },
            **dict(zip(OF_THE_MACHINE, speeds, strict=True)),
        }

    def stop(self) -> NoReturn:
        """End a run whose loss or gradient is not a finite number, by the first such step.

        The sentences whose loss is none stand in a file.
        """
        bad, steps, path = [], [], self.output_dir / "not_finite.jsonl"
        for step, rows, languages, _, errors, norm in self.steps:
            if self.accelerator.scaler is None and not norm.isfinite():
                steps.append(step)
            for i in (~errors.isfinite().all(0)).nonzero().flatten().tolist():
                row, language = self.dataset[int(rows[i])], self.names[int(languages[i])]
                sentences = [t["sentence"] for t in row["targets"] if t["language"] == language] or [row["source"]]
                bad.append({"step": step, "row": int(rows[i]), "language": language, "sentences": sentences})
        bad, steps = gather_object(bad), gather_object(steps)
        step = min([*steps, *(line["step"] for line in bad)])
        first = [line for line in bad if line["step"] == step]
        if not first:
            raise UserError(
                f"the gradient of step {step} is not a finite number, though its loss is: start a new run with a lower "
                "--learning_rate, or in full precision (--mixed_precision no)"
            )
        if self.accelerator.is_main_process:
            path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in first), encoding="utf-8")
        raise UserError(
            f"the loss of step {step} is not a finite number: {len(first)} of its sentences stand in "
            f"{path}; if it is most of a step, lower --learning_rate, or use bf16 in place of fp16"
        )

    def peak_memory(self) -> float:
        """Of this process, in GB: on the GPU where it has one."""
        if self.accelerator.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def summary(self) -> str:
        """One sentence: speed, padding, peak memory of this process."""
        return (
            f"{self.pairs / self.seconds:.1f} pairs/s; on each process {self.tokens / self.seconds:.0f} tokens/s, "
            f"{1 - self.tokens / self.padded:.1%} padding, {self.peak_memory():.2f} GB at the peak"
        )


def progress_bar(pairs: int, total: int, accelerator: Accelerator) -> tqdm:
    """A bar of rank 0 that has come to `pairs` of `total`."""
    return tqdm(
        desc="training",
        total=total,
        initial=pairs,
        unit=" pairs",
        disable=not accelerator.is_main_process,
        mininterval=0.5 if sys.stderr.isatty() else 30,  # seconds; in a log file each update is a line
    )
