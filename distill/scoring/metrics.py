"""Scores of sentence vectors on textual similarity: how similarities correlate with gold scores."""

import tempfile

import datasets
import evaluate
import numpy as np
from scipy import stats

from distill.scoring.bootstrap import resampled_correlations
from distill.scoring.sts import StsSet


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine similarity (n,) of row i of `first` with row i of `second`; either may be one row for all."""
    return (unit(first) * unit(second)).sum(1)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (n, dimension) brought to length 1; a row of zeros stays one."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)


# Row i of one with row i of the other, (n,); a distance is negated, so that more is nearer.
SIMILARITIES = {
    "cosine": cosine,
    "dot": lambda first, second: (first * second).sum(1),
    "euclidean": lambda first, second: -np.linalg.norm(first - second, axis=1),
    "manhattan": lambda first, second: -np.abs(first - second).sum(1),
}


class SimilarityCorrelation(evaluate.Metric):
    """Spearman's and Pearson's correlation of similarities with gold scores, named as in sentence-transformers.

    `compute` takes the columns `cosine`, `dot`, `euclidean`, `manhattan` and `references`; it needs no hub. A
    correlation with what does not vary is undefined: nan.
    """

    def _info(self):
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description="Correlation of the similarities of sentence vectors with gold similarity scores.",
            citation="Agirre et al. 2012, SemEval-2012 Task 6 (Pearson); Reimers et al. 2016 (Spearman).",
            inputs_description=f"{', '.join(SIMILARITIES)}: similarities; references: gold scores",
            features=datasets.Features(dict.fromkeys([*SIMILARITIES, "references"], number)),
        )

    def _compute(self, references, **similarities):
        scores = {}
        for name in SIMILARITIES:
            varies = min(np.ptp(similarities[name]), np.ptp(references)) > 0
            for kind, correlation in (("spearman", stats.spearmanr), ("pearson", stats.pearsonr)):
                value = correlation(similarities[name], references).statistic if varies else np.nan
                scores[f"{kind}_{name}"] = float(value)
        return scores


def similarities(sets: list[StsSet], vector: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """All SIMILARITIES of each set's sentence pairs, (n,) each; `vector` has that of every sentence."""
    found = []
    for pairs in sets:
        both = [np.stack([vector[sentence] for sentence in side]) for side in (pairs.sentence1, pairs.sentence2)]
        found.append({name: similarity(*both) for name, similarity in SIMILARITIES.items()})
    return found


def sts_scores(sets: list[StsSet], similar: list[dict[str, np.ndarray]]) -> dict[str, dict]:
    """Correlations of each set by its name ('en', or 'en-it' for sentence1 in English, sentence2 in Italian)."""
    scores = {}
    with tempfile.TemporaryDirectory() as folder:  # which the library wants, though it writes nothing there
        for pairs, columns in zip(sets, similar, strict=True):
            metric = SimilarityCorrelation(keep_in_memory=True, cache_dir=folder)
            scores[pairs.name] = metric.compute(references=pairs.scores, **columns) | {"n": len(pairs.scores)}
    return scores


def sts_resamples(
    sets: list[StsSet], similar: list[dict[str, np.ndarray]], samples: int, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """The correlations of `sts_scores` in bootstrap resamples of the pairs, (samples,) each.

    Sets of the same gold scores are aligned: they are resampled together, so that their mean can be taken within
    each resample.
    """
    resamples, groups = {pairs.name: {} for pairs in sets}, {}
    for pairs, columns in zip(sets, similar, strict=True):
        groups.setdefault(pairs.scores.tobytes(), []).append((pairs, columns))
    for number, group in enumerate(groups.values()):
        cells = [(pairs, name, columns[name]) for pairs, columns in group for name in SIMILARITIES]
        predictions, gold = np.stack([column for *_, column in cells]), cells[0][0].scores
        spearman, pearson = resampled_correlations(predictions, gold, samples, (seed, number))
        for (pairs, name, _), ranked, plain in zip(cells, spearman, pearson, strict=True):
            resamples[pairs.name] |= {f"spearman_{name}": ranked, f"pearson_{name}": plain}
    return resamples


def defined(content):
    """The same with None for nan, which JSON lacks."""
    if isinstance(content, dict):
        return {name: defined(value) for name, value in content.items()}
    if isinstance(content, list):
        return [defined(value) for value in content]
    return None if isinstance(content, float) and np.isnan(content) else content
