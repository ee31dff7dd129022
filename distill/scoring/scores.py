"""All scores of a model's vectors: of STS sets, bitexts and retrieval, their means, and what is left of cut vectors."""

import numpy as np

from distill.scoring.bitext import Bitext, negative_mse, translation_accuracy, translation_f1, translation_hits
from distill.scoring.bootstrap import Score, Scores, interval, means, resampled_means
from distill.scoring.cutting import bytes_of, cut
from distill.scoring.data import Data
from distill.scoring.metrics import similarities, sts_resamples, sts_scores
from distill.scoring.retrieval import Pool, Retrieval, mixed_scores, retrieval_scores
from distill.scoring.search import nearest_neighbours
from distill.scoring.sts import StsSet

QUERIES = 10_000
Vectors = dict[str, np.ndarray]  # sentence -> its vector (dimension,)


def score(
    vector: Vectors, documents: Vectors, labels: Vectors | None, data: Data, device, samples: int, seed: int
) -> tuple[dict, Scores]:
    """A model's scores as scores.json has them, and what models are compared by, in so many bootstrap samples.

    `vector`: of all sentences, `documents`: of those of retrieval, `labels`: the teacher's of the sources of bitexts.
    """
    bootstrap = samples, seed
    tasks = {"sts": score_sts(data.sets, vector, *bootstrap), "bitext": ({}, {})}
    if data.bitexts:
        tasks["bitext"] = score_bitext(data.bitexts, vector, labels, data.margin, device, *bootstrap)
    tasks["mixed"] = score_mixed(data.pools, vector, device, *bootstrap)
    tasks["retrieval"] = score_retrieval(data.retrievals, vector, documents, device, *bootstrap)
    entry, scores = ({task: both[side] for task, both in tasks.items()} for side in (0, 1))
    summary = means(data.sets, scores)
    scores["summary"] = {name: mean for name, (_, _, mean) in summary.items()}
    entry["summary"] = {
        name: {"value": mean.value, "ci": mean.interval, "n": [entry[task][one]["n"] for one in of_sets]}
        for name, (task, of_sets, mean) in summary.items()
    }
    return entry, scores


def score_sts(sets: list[StsSet], vector: Vectors, samples: int, seed: int) -> tuple[dict, dict[str, Score]]:
    """All correlations of each set with their 95% intervals; Spearman of cosine with its resamples."""
    similar = similarities(sets, vector)
    entry, resampled = sts_scores(sets, similar), sts_resamples(sets, similar, samples, seed)
    for name, resamples in resampled.items():
        entry[name] |= {f"{metric}_ci": interval(values) for metric, values in resamples.items()}
    key = "spearman_cosine"
    return entry, {name: Score(entry[name][key], resampled[name][key]) for name in entry}


def score_bitext(
    bitexts: list[Bitext], vector: Vectors, labels: Vectors | None, margin: bool, device, samples: int, seed: int
) -> tuple[dict, dict[str, Score]]:
    """Accuracies of each bitext with their 95% intervals; the mean accuracy with its resamples.

    A resample takes source sentences, each with its translations in all bitexts: what is hard to find in one language
    is hard to find in the next.
    """
    entry, headline, hits, number = {}, {}, [], {}
    for bitext in bitexts:
        source, target = (np.stack([vector[s] for s in side]) for side in (bitext.sources, bitext.targets))
        entry[bitext.name] = scores = {}
        hits.append({})
        for prefix, k in [("", 0), ("margin_", 4)][: 1 + margin]:
            found = nearest_neighbours(source, target, margin_k=k, device=device)
            both = translation_hits(bitext.sources, bitext.targets, found)
            for (name, value), rows in zip(translation_accuracy(both).items(), [*both, both.mean(0)], strict=True):
                scores[prefix + name], hits[-1][prefix + name] = value, rows
            scores |= {} if k else translation_f1(found)
        if labels is not None:
            scores["negative_mse"] = negative_mse([labels[s] for s in bitext.sources], target)
        scores["n"] = len(source)
    tables = [np.stack([*rows.values()]) for rows in hits]
    clusters = [np.array([number.setdefault(s, len(number)) for s in bitext.sources]) for bitext in bitexts]
    resamples = resampled_means(tables, clusters, samples, seed)
    for bitext, rows, of_bitext, sources in zip(bitexts, hits, resamples, clusters, strict=True):
        scores, trials = entry[bitext.name], len(np.unique(sources))
        found = {name: Score(scores[name], one, trials) for name, one in zip(rows, of_bitext, strict=True)}
        scores |= {f"{name}_ci": one.interval for name, one in found.items()}
        headline[bitext.name] = found["mean_accuracy"]
    return entry, headline


def score_mixed(pools: list[Pool], vector: Vectors, device, samples: int, seed: int) -> tuple[dict, dict[str, Score]]:
    """Retrieval in one pool of all languages with 95% intervals; its accuracy with its resamples, of whole meanings.

    Of more than QUERIES sentences only so many, drawn by the seed, are searched for among all.
    """
    entry, headline = {}, {}
    for pool in pools:
        count = len(pool.sentences)
        queries = np.sort(np.random.default_rng(seed).choice(count, min(count, QUERIES), replace=False))
        values = mixed_scores(pool, np.stack([vector[sentence] for sentence in pool.sentences]), queries, device)
        entry[pool.name], found = mean_scores(values, pool.meanings[queries], samples, seed)
        entry[pool.name]["sentences"] = count
        headline[pool.name] = found["accuracy@1"]
    return entry, headline


def score_retrieval(
    retrievals: list[Retrieval], vector: Vectors, documents: Vectors, device, samples: int, seed: int
) -> tuple[dict, dict[str, Score]]:
    """Metrics of each retrieval set with 95% intervals; nDCG@10 with its resamples, of queries."""
    entry, headline = {}, {}
    for one in retrievals:
        queries = np.stack([vector[query] for query in one.queries])
        values = retrieval_scores(one, queries, np.stack([documents[text] for text in one.documents]), device)
        entry[one.name], found = mean_scores(values, np.arange(len(queries)), samples, seed)
        entry[one.name]["documents"] = len(one.documents)
        headline[one.name] = found["ndcg@10"]
    return entry, headline


def mean_scores(
    values: dict[str, np.ndarray], clusters: np.ndarray, samples: int, seed: int
) -> tuple[dict, dict[str, Score]]:
    """Means over queries (n,) with their 95% intervals, as scores.json has them; and with resamples of whole clusters.

    Every metric is at most 1 and at least 0, but for `language_bias`, which is at least -1.
    """
    (resamples,) = resampled_means([np.stack([*values.values()])], [clusters], samples, seed)
    trials = len(np.unique(clusters))
    found = {
        name: Score(float(rows.mean()), of_metric, trials, -1.0 if name == "language_bias" else 0.0)
        for (name, rows), of_metric in zip(values.items(), resamples, strict=True)
    }
    entry = {name: one.value for name, one in found.items()} | {
        f"{name}_ci": one.interval for name, one in found.items()
    }
    return entry | {"n": len(clusters)}, found


def score_cuts(
    vector: Vectors, documents: Vectors, whole: Scores, data: Data, cuts: list[tuple[int, str]], device, seed: int
) -> list[dict]:
    """What is left of a model's means in each of `cuts`, (dimensions, precision), and its share of the whole ones'.

    `seed`: of the whole ones, which draws the queries of a large pool.
    """
    found = []
    for dimensions, precision in cuts:
        less = [cut(part, dimensions, precision) if part else part for part in (vector, documents)]
        _, scores = score(*less, None, data, device, samples=1, seed=seed)
        values = {name: mean.value for name, mean in scores["summary"].items()}
        wholes = {name: whole["summary"][name].value for name in values}
        kept = {name: value / wholes[name] if wholes[name] > 0 else np.nan for name, value in values.items()}
        about = {"dimensions": dimensions, "precision": precision, "bytes": bytes_of(dimensions, precision)}
        found.append(about | {"summary": values, "kept": kept})
    return found
