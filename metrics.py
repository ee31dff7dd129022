"""Scores of sentence vectors: textual similarity within and across languages, translation accuracy."""

import csv
import io

import datasets
import evaluate
import numpy as np
import torch
from scipy import stats
from torch import Tensor

from distill_utils import UserError, expand_languages
from textfiles import read_lines


class CosineCorrelation(evaluate.Metric):
    """Spearman and Pearson correlation of cosine similarities with gold scores; needs no hub."""

    def _info(self):
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description="Correlation of predicted cosine similarities with gold similarity scores.",
            citation="Agirre et al. 2012, SemEval-2012 Task 6 (Pearson); Reimers et al. 2016 (Spearman).",
            inputs_description="predictions: cosine similarities; references: gold scores",
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, predictions, references):
        return {
            "spearman_cosine": float(stats.spearmanr(predictions, references).statistic),
            "pearson_cosine": float(stats.pearsonr(predictions, references).statistic),
        }


def read_sts(spec: str) -> tuple[dict[str, tuple[list[str], list[str]]], np.ndarray]:
    """Aligned STS files of a brace path: CSV rows `sentence1,sentence2,score`, no header, scores 0 to 5.

    Returns the two sentence lists by language and the scores brought to 0-1, (n,) float64, which all files
    share. UserError for a bad row, or for files whose rows or scores differ.
    """
    sentences, scores = {}, {}
    for language, path in expand_languages(spec).items():
        rows = _read_sts_csv(path)
        sentences[language] = ([row[0] for row in rows], [row[1] for row in rows])
        scores[language] = np.array([row[2] for row in rows])
    counts = {language: len(gold) for language, gold in scores.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"{spec}: the files have different row counts, {counts}")
    first = next(iter(scores))
    for language, gold in scores.items():
        for row in np.flatnonzero(gold != scores[first]):
            raise UserError(
                f"{spec}: the {first} and {language} files are not aligned, row {row + 1} has the scores "
                f"{5 * scores[first][row]:.1f} and {5 * gold[row]:.1f}"
            )
    return sentences, scores[first]


def _read_sts_csv(path: str) -> list[tuple[str, str, float]]:
    rows = []
    for number, row in enumerate(csv.reader(io.StringIO("\n".join(read_lines(path)))), 1):
        try:
            sentence1, sentence2, score = row
            rows.append((sentence1, sentence2, float(score) / 5))
        except ValueError:
            raise UserError(f"{path}, row {number}: expected sentence1,sentence2,score, found {row}") from None
        if not 0 <= rows[-1][2] <= 1:
            raise UserError(f"{path}, row {number}: the score {score} is not between 0 and 5")
    if len(rows) < 2:
        raise UserError(f"{path} holds {len(rows)} rows: a correlation needs at least two")
    return rows


def sts_scores(sentences: dict, scores: np.ndarray, vector: dict[str, np.ndarray]) -> dict[str, dict]:
    """Correlations in each language and across each ordered pair of languages.

    `vector`: the vector of every sentence. Returns {'en': {...}, 'en-it': {...}}; 'en-it' takes sentence1 in
    English and sentence2 in Italian.
    """
    columns = {
        language: [np.stack([vector[sentence] for sentence in column]) for column in both]
        for language, both in sentences.items()
    }
    result = {}
    for language1, (first, _) in columns.items():
        for language2, (_, second) in columns.items():
            name = language1 if language1 == language2 else f"{language1}-{language2}"
            metric = CosineCorrelation(keep_in_memory=True)
            result[name] = metric.compute(predictions=cosine(first, second), references=scores) | {"n": len(scores)}
    return result


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine similarity (n,) of row i of `first` with row i of `second`; either may be one row for all."""
    return (unit(first) * unit(second)).sum(1)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (n, dimension) brought to length 1; a row of zeros stays one."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)


def translation_accuracy(source: np.ndarray, target: np.ndarray, block: int = 2048) -> dict[str, float]:
    """How often a sentence's nearest neighbour by cosine in the other language is its translation, both ways.

    `source`, `target`: (n, dimension), row i translations of each other. Blockwise: never n x n at once.
    """
    source, target = (torch.from_numpy(unit(v)) for v in (source, target))

    def hits(queries: Tensor, answers: Tensor) -> float:
        nearest = torch.cat([(part @ answers.T).argmax(1) for part in queries.split(block)])
        return (nearest == torch.arange(len(queries))).double().mean().item()

    src2trg, trg2src = hits(source, target), hits(target, source)
    return {
        "src2trg_accuracy": src2trg,
        "trg2src_accuracy": trg2src,
        "mean_accuracy": (src2trg + trg2src) / 2,
    }
