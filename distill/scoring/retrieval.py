"""Retrieval: documents ranked for each query; of files with judgements, or of a bitext's languages in one pool."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from distill.command import UserError
from distill.pairs.pairs_folder import evenly_spaced
from distill.pairs.tables import format_of_suffix, named_tables
from distill.scoring.bitext import Bitext
from distill.scoring.search import k_nearest

NEAREST = 10  # neighbours that MRR, nDCG and the language bias look at
DEPTH = 100  # documents that recall looks at


class Retrieval(NamedTuple):
    """Queries, documents, and how relevant which documents are to a query."""

    name: str
    queries: list[str]
    documents: list[str]
    grades: list[dict[int, float]]  # of each query: row of a document -> its grade, over 0
    left_out: int  # queries to which nothing is relevant
    spec: str


class Pool(NamedTuple):
    """The sentences of all languages of some bitexts. Those of one meaning are translations of one another."""

    name: str
    sentences: list[str]
    languages: np.ndarray  # (n,) a number for each sentence's language
    meanings: np.ndarray  # (n,) a number for each sentence's meaning
    tags: list[str]  # of the languages, by number


# ---------------------------------------------------------------- reading


def read_retrieval(spec: str, name: str = "") -> Retrieval:
    """A folder in BEIR's layout: `corpus.jsonl`, `queries.jsonl`, `qrels/SPLIT.tsv`; 'FOLDER:SPLIT', or the test split.

    Its `spec` names the split.
    Documents have `_id`, `text` and perhaps `title`, queries `_id` and `text`, judgements `query-id`, `corpus-id` and
    `score`; any format that names its columns will do, packed or not. A title stands before its text. UserError for
    missing files and columns, and for judgements of unknown ids.
    """
    folder, _, split = spec.partition(":")
    split = split or "test"
    paths = {part: _file_of(folder, part) for part in ("corpus", "queries", f"qrels/{split}")}
    corpus, queries, qrels = paths.values()
    documents = _columns(corpus, "_id", "text", title="")
    asked, judged = _columns(queries, "_id", "text"), _columns(qrels, "query-id", "corpus-id", "score")
    rows = [_row_of_id(path, table["_id"]) for path, table in ((queries, asked), (corpus, documents))]
    grades, known = [{} for _ in asked["_id"]], {}
    for query, document, grade in judged.iter_rows():
        for one, path, there in ((query, queries, rows[0]), (document, corpus, rows[1])):
            if one not in there:
                raise UserError(f"{qrels} judges {one!r}, which {path} has not: take the files of one data set")
        try:
            number = float(grade)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"{qrels}: the score {grade!r} of query {query!r} is no number: mend it")
        if known.setdefault((query, document), number) != number:
            raise UserError(f"{qrels} judges {document!r} for query {query!r} twice, in two ways: remove one")
        if number > 0:
            grades[rows[0][query]][rows[1][document]] = number
    judged = [row for row, of_query in enumerate(grades) if of_query]
    if not judged:
        raise UserError(f"{qrels} finds nothing relevant to any query of {queries}: take the files of one data set")
    texts = [f"{title} {text}".strip() for title, text in documents.select("title", "text").iter_rows()]
    taken = [asked["text"][row] for row in judged]
    left_out, grades = len(grades) - len(judged), [grades[row] for row in judged]
    return Retrieval(name or Path(os.path.abspath(folder)).name, taken, texts, grades, left_out, f"{folder}:{split}")


def _file_of(folder: str, part: str) -> str:
    """The one table of a folder that is called so, whatever its format."""
    found = [str(path) for path in sorted(Path(folder).glob(f"{part}.*")) if format_of_suffix(str(path))]
    if len(found) != 1:
        raise UserError(
            f"{folder} has {len(found) or 'no'} files {part}.*: --retrieval takes a folder with corpus.jsonl, "
            "queries.jsonl and qrels/test.tsv (FOLDER:SPLIT for other judgements)"
        )
    return found[0]


def _row_of_id(path: str, ids: pl.Series) -> dict[str, int]:
    """The row of each id of a table; UserError where two have the same."""
    for again in ids.filter(~ids.is_first_distinct()):
        raise UserError(f"{path} has two rows of _id {again!r}: judgements do not say which they mean; remove one")
    return dict(zip(ids, range(len(ids)), strict=True))


def _columns(path: str, *names: str, **defaults: str) -> pl.DataFrame:
    """These columns of a table, as strings; those of `defaults` may be missing, or have empty cells."""
    frames = []
    for table in named_tables(path):
        if lacking := [name for name in names if name not in table.columns]:
            raise UserError(f"{path} has no column {lacking[0]!r}: it has {', '.join(table.columns)}")
        for name in {*names, *defaults} & {*table.columns}:
            if table.schema[name].is_nested():
                raise UserError(f"{path}: the column {name} holds {table.schema[name]}, not text")
        missing = [pl.lit(text).alias(name) for name, text in defaults.items() if name not in table.columns]
        frame = table.with_columns(missing).select(pl.col(*names, *defaults).cast(pl.String))
        frames.append(frame.with_columns(pl.col(name).fill_null(text) for name, text in defaults.items()))
    if not frames:
        raise UserError(f"{path} is empty: retrieval needs queries, documents and judgements")
    whole = pl.concat(frames)
    for name in names:
        for row in whole[name].is_null().arg_true():
            raise UserError(f"{path}, row {row + 1} has no {name}: mend or remove it")
    return whole


def pools_of(bitexts: list[Bitext]) -> list[Pool]:
    """For each NAME one pool of all sentences of its bitexts, each once in a language: `mixed`, or NAME/mixed.

    Translations of one sentence, and what these translate, have one meaning.
    """
    grouped = {}
    for one in bitexts:
        grouped.setdefault(f"{one.name.rpartition('/')[0]}/mixed".removeprefix("/"), []).append(one)
    pools = []
    for name, group in grouped.items():
        rows, pairs = {}, []
        for one in group:
            for both in zip(one.sources, one.targets, strict=True):
                sides = zip(one.languages, both, strict=True)
                pairs.append([rows.setdefault(side, len(rows)) for side in sides])
        links = coo_array((np.ones(len(pairs)), np.array(pairs).T), shape=(len(rows), len(rows)))
        tags, sentences = zip(*rows, strict=True)
        known, languages = np.unique(tags, return_inverse=True)
        pools.append(Pool(name, list(sentences), languages, connected_components(links)[1], known.tolist()))
    return pools


def sample_of(pool: Pool, meanings: int) -> Pool:
    """So many meanings of a pool, evenly spaced among those of most languages, with all of their sentences."""
    spoken = np.unique(np.stack([pool.meanings, pool.languages]), axis=1)[0]
    languages = np.bincount(spoken)  # of each meaning
    found = np.flatnonzero(languages >= np.sort(languages)[-min(meanings, len(languages))])
    rows = np.flatnonzero(np.isin(pool.meanings, found[evenly_spaced(len(found), meanings)]))
    return Pool(pool.name, [pool.sentences[row] for row in rows], pool.languages[rows], pool.meanings[rows], pool.tags)


# ---------------------------------------------------------------- scores


def retrieval_scores(retrieval: Retrieval, queries: np.ndarray, documents: np.ndarray, device) -> dict[str, np.ndarray]:
    """Of every query accuracy@1, MRR@10, nDCG@10 and recall@100, (n,) each, by cosine; vectors (n, dimension)."""
    _, rows = k_nearest(queries, documents, min(DEPTH, len(documents)), device)
    of_queries = zip(retrieval.grades, rows.tolist(), strict=True)
    found = np.array([[grades.get(row, 0.0) for row in ranked] for grades, ranked in of_queries])
    best = [sorted(of_query.values(), reverse=True)[:NEAREST] for of_query in retrieval.grades]
    best = np.array([[*grades, *[0.0] * (NEAREST - len(grades))] for grades in best])
    relevant = np.array([len(of_query) for of_query in retrieval.grades])
    return ranked_scores(found, best) | {f"recall@{DEPTH}": (found > 0).sum(1) / relevant}


def ranked_scores(found: np.ndarray, best: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy@1, MRR@10 and nDCG@10 of every query, (n,) each.

    found: grades of the documents that were ranked first, (n, k), 0 for what is not relevant; best: those of the best
    ranking, (n, 10). A grade is its own gain (Järvelin & Kekäläinen 2002), as trec_eval has it.
    """
    found = np.pad(found, ((0, 0), (0, NEAREST)))[:, :NEAREST]  # as wide as the best, so that equal ones sum alike
    hits = found > 0
    reciprocal = hits.any(1) / (1 + hits.argmax(1))
    gains = [(grades / np.log2(2 + np.arange(grades.shape[1]))).sum(1) for grades in (found, best)]
    return {"accuracy@1": hits[:, 0] * 1.0, f"mrr@{NEAREST}": reciprocal, f"ndcg@{NEAREST}": gains[0] / gains[1]}


def mixed_scores(pool: Pool, vectors: np.ndarray, queries: np.ndarray, device) -> dict[str, np.ndarray]:
    """Sentences of a pool as queries, among all others: accuracy@1, MRR@10, nDCG@10, language bias, (queries,) each.

    vectors: (n, dimension) of the pool's sentences; queries: rows of those that are asked for.
    Right are translations, whatever their language; sentences of the query's own language compete with them (LAReQA,
    Roy et al. 2020, arXiv 2004.05484). Language bias: of the 10 nearest sentences that mean something else, the share
    in the query's language, less that language's share of all which mean something else. A model that does not tell
    languages apart has 0, whatever its accuracy. nan where nothing means something else.
    """
    meanings, languages = (torch.from_numpy(np.array(of)).to(device) for of in (pool.meanings, pool.languages))
    meant, spoken = meanings[queries], languages[queries]

    def alike(rows: slice, columns: slice) -> torch.Tensor:
        return meant[rows, None] == meanings[columns]

    def itself(rows: slice, columns: slice) -> torch.Tensor:
        return alike(rows, columns) & (spoken[rows, None] == languages[columns])

    seen = min(NEAREST, len(pool.sentences))
    cosines, rows = k_nearest(vectors[queries], vectors, seen, device, hidden=itself)
    found = (pool.meanings[rows] == pool.meanings[queries, None]) & np.isfinite(cosines)
    same_meaning, own = _counts(pool.meanings)[queries], _counts(pool.languages)[queries]
    both = _counts(pool.meanings * (1 + pool.languages.max()) + pool.languages)[queries]
    best = (np.arange(NEAREST) < (same_meaning - both)[:, None]) * 1.0
    scores = ranked_scores(found * 1.0, best)
    cosines, rows = k_nearest(vectors[queries], vectors, seen, device, hidden=alike)
    others = np.isfinite(cosines)
    with np.errstate(invalid="ignore"):
        share = ((pool.languages[rows] == pool.languages[queries, None]) & others).sum(1) / others.sum(1)
        chance = (own - both) / (len(pool.sentences) - same_meaning)
    return scores | {"language_bias": share - chance}


def _counts(numbers: Sequence[int]) -> np.ndarray:
    """How often each number is among all of them, (n,)."""
    _, inverse, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    return counts[inverse]
