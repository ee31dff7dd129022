"""Could it be chance? Intervals and paired tests by resampling a test set's rows (Efron & Tibshirani 1993).

A resample is kept as counts, how often it takes each row, and never as the rows themselves: so the exact ranks in it
are running sums over rows that were sorted once. Equal (rows, samples, seed) give equal resamples, so the scores of two
models on them are pairs.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from distill.scoring.sts import StsSet

NUMBERS = 1 << 16  # counts in memory at a time: few enough for a core's cache, enough to keep numpy busy


class Score(NamedTuple):
    """A number that models are compared by, and the same in every bootstrap resample."""

    value: float
    resamples: np.ndarray  # (samples,)
    trials: int = 0  # of a mean of bounded numbers: how many independent ones; 0 for a correlation
    lowest: float = 0.0  # that such a number can be; the highest is 1

    @property
    def interval(self) -> list[float] | None:
        """95%, as `interval` has it."""
        return interval(self.resamples, self.trials, self.lowest)


Scores = dict[str, dict[str, Score]]  # of a model: 'sts', 'bitext', 'mixed', 'retrieval' and 'summary', then by name


def row_counts(rows: int, samples: int, seed) -> Iterator[np.ndarray]:
    """How often each resample takes each row: blocks (rows, resamples) float64, `samples` resamples in all."""
    random = np.random.default_rng(seed)
    size = max(1, NUMBERS // rows)
    for start in range(0, samples, size):
        block = min(size, samples - start)
        taken = random.integers(rows, size=(block, rows)) * block + np.arange(block)[:, None]
        yield np.bincount(taken.ravel(), minlength=rows * block).reshape(rows, block).astype(np.float64)


class Ranks:
    """Ranks of values (rows,) within any resample of them; equal values share the mean of their ranks."""

    def __init__(self, values: np.ndarray):
        self.order = np.argsort(values, kind="stable")
        ordered = values[self.order]
        self.last = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])  # of each run of equal values
        self.run = np.empty(len(values), dtype=int)
        self.run[self.order] = np.repeat(np.arange(len(self.last)), np.diff(self.last, prepend=-1))

    def centred(self, counts: np.ndarray) -> np.ndarray:
        """Ranks minus their mean, (rows, resamples), in resamples given as counts of that shape."""
        ends = np.cumsum(counts[self.order], axis=0)[self.last]
        # A run has the ranks from 1 after the last run's end to its own end; all ranks have the mean (rows + 1) / 2.
        centres = ends - len(counts)
        centres[1:] += ends[:-1]
        return (centres / 2)[self.run]


def resampled_correlations(predictions: np.ndarray, gold: np.ndarray, samples: int, seed) -> np.ndarray:
    """Spearman's and Pearson's correlation of each prediction with the gold scores in the same resamples.

    predictions: (predictions, rows), gold: (rows,). Returns (2, predictions, samples); nan where a resample does not
    vary. For Spearman the rows of each resample are ranked anew, exactly: ranks kept from the whole set would give
    another statistic, since a resample repeats rows and so has more ties.
    """
    ranks, gold_ranks = [Ranks(prediction) for prediction in predictions], Ranks(gold)
    deviations, gold_deviations = (x - x.mean(-1, keepdims=True) for x in (predictions.astype(np.float64), gold))
    blocks = []
    for counts in row_counts(len(gold), samples, seed):
        gold_ranked = gold_ranks.centred(counts)
        spearman = [_correlation(counts, ranked.centred(counts), gold_ranked) for ranked in ranks]
        pearson = [_pearson(counts, values, gold_deviations) for values in deviations]
        blocks.append(np.array([spearman, pearson]))
    result = np.concatenate(blocks, axis=2)
    # Ranks show exactly where values do not vary; Pearson's sums leave a rounding error there.
    result[1][np.isnan(result[0])] = np.nan
    return result


def _correlation(counts: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlation (resamples,) of x and y, (rows, resamples) with mean 0."""
    xy, xx, yy = (np.einsum("nb,nb,nb->b", counts, *pair) for pair in ((x, y), (x, x), (y, y)))
    with np.errstate(invalid="ignore"):
        return xy / np.sqrt(xx * yy)


def _pearson(counts: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation (resamples,) of x and y, (rows,), from their sums in each resample."""
    x, y, xx, yy, xy = np.stack([x, y, x * x, y * y, x * y]) @ counts / len(counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (xy - x * y) / np.sqrt(np.maximum(xx - x * x, 0) * np.maximum(yy - y * y, 0))


def resampled_means(tables: list[np.ndarray], clusters: list[np.ndarray], samples: int, seed) -> list[np.ndarray]:
    """Means (k, samples) of each table's values (k, rows) in the same resamples.

    clusters: a number for each row of each table, (rows,), from 0. A resample takes clusters, with all their rows in
    all tables: rows that belong together are no independent evidence (Davison & Hinkley 1997, section 3.8). nan where
    it takes no row of a table.
    """
    blocks = []
    for counts in row_counts(1 + max(rows.max() for rows in clusters), samples, seed):
        taken = [counts[rows] for rows in clusters]
        with np.errstate(invalid="ignore"):
            blocks.append([values @ times / times.sum(0) for values, times in zip(tables, taken, strict=True)])
    return [np.concatenate(means, axis=1) for means in zip(*blocks, strict=True)]


def interval(resamples: np.ndarray, trials: int = 0, lowest: float = 0.0) -> list[float] | None:
    """95% of the resampled scores lie in it (percentile bootstrap). Undefined ones are left out; None if all are.

    Where every one of `trials` independent numbers between `lowest` and 1 is the same, as in 1,000 hits of 1,000, all
    resamples are equal too. The interval is then that of Clopper & Pearson 1934 for a share of 0 of n, up to
    1 - 0.025^(1 / n).
    """
    defined = resamples[~np.isnan(resamples)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [0.025, 0.975]).tolist()
    bound = 1 - 0.025 ** (1 / trials) if trials and high - low < 1e-12 else 0.0  # but for rounding they are equal
    return [max(lowest, low - bound), min(1.0, high + bound)] if bound else [low, high]


def paired_test(new: Score, old: Score) -> dict:
    """The difference of two models' scores with its 95% interval, and how likely chance alone gives one as large.

    The two-sided p-value is twice the share of resamples on the other side of zero, that of the whole set counted among
    them, so it is never 0 (Davison & Hinkley 1997, ch. 4); `least_p` is the lowest that so many can show.
    """
    resamples = new.resamples - old.resamples
    defined = resamples[~np.isnan(resamples)]
    other_side = min((defined <= 0).sum(), (defined >= 0).sum())
    return {
        "difference": new.value - old.value,
        "ci": interval(resamples, new.trials, lowest=-1.0),
        "p_value": float(min(1.0, 2 * (other_side + 1) / (len(defined) + 1))),
        "least_p": min(1.0, 2 / (len(defined) + 1)),
    }


def means(sets: list[StsSet], scores: Scores) -> dict[str, tuple[str, list[str], Score]]:
    """The means over all that have the same NAME, each with the task and the names of what it is the mean of.

    Spearman in the source language (`en`: the first language that a spec names), within and across languages, and from
    or to the source (`en-xx`), which are left out where they are all that is within, or across; the accuracies of
    bitexts, and in one pool of all languages (`mixed`); nDCG@10 of retrieval.
    """
    groups, source = {}, {}
    for one in sets:
        prefix, (first, second) = one.name.rpartition("/")[0], one.languages
        of_source = source.setdefault(prefix, first)
        kinds = groups.setdefault(prefix, {of_source: [], "within": [], "across": [], f"{of_source}-xx": []})
        kinds["within" if first == second else "across"].append(one.name)
        if of_source in one.languages:
            kinds[of_source if first == second else f"{of_source}-xx"].append(one.name)
    for prefix, kinds in groups.items():
        for kind, whole in ((source[prefix], "within"), (f"{source[prefix]}-xx", "across")):
            if kinds[kind] == kinds[whole]:
                del kinds[kind]
    for task, kind in (("bitext", "accuracy"), ("mixed", "mixed")):
        for name in scores[task]:
            groups.setdefault(name.rpartition("/")[0], {}).setdefault(kind, []).append(name)
    if scores["retrieval"]:
        groups.setdefault("", {})["retrieval"] = [*scores["retrieval"]]
    task_of = {"accuracy": "bitext", "mixed": "mixed", "retrieval": "retrieval"}
    found = {}
    for prefix, kinds in groups.items():
        for kind, names in kinds.items():
            task = task_of.get(kind, "sts")
            if names:
                found[f"{prefix}/{kind}".removeprefix("/")] = task, names, mean([scores[task][name] for name in names])
    return found


def mean(scores: list[Score]) -> Score:
    """The mean of scores that were resampled together; it has as many trials as the one that has fewest."""
    trials = min(score.trials for score in scores)
    return Score(np.mean([score.value for score in scores]), np.mean([one.resamples for one in scores], axis=0), trials)


def compare(new: Scores, old: Scores) -> dict:
    """The paired bootstrap test of every score that two models have."""
    return {
        kind: {name: paired_test(score, old[kind][name]) for name, score in scores.items()}
        for kind, scores in new.items()
    }
