"""Bitext retrieval: how often a sentence's nearest neighbour in the other language is its translation."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distill.command import UserError
from distill.folders import read_json
from distill.languages import required_tag
from distill.pairs.pairs_folder import load_pairs
from distill.text_files import read_aligned_lines


class Bitext(NamedTuple):
    """Sentences and their translations, line by line."""

    name: str  # 'en-it': source English, target Italian; with 'NAME/' before it where the spec was given a name
    languages: tuple[str, str]
    sources: list[str]
    targets: list[str]
    spec: str


def read_bitext(spec: str, name: str = "") -> list[Bitext]:
    """The first language of line-aligned files with each of the others; or a folder of build_pairs.py.

    Of a folder the split `test` is taken, or `dev` if there is none; 'FOLDER:SPLIT' takes another, and the bitexts'
    `spec` names it. UserError for files of unequal length, empty lines, or where no language has two pairs.
    """
    pairs, spec = (_aligned_files(spec), spec) if "{" in spec else _pairs_folder(spec)
    prefix = name and f"{name}/"
    if max((len(sources) for sources, _ in pairs.values()), default=0) < 2:
        raise UserError(f"{spec} holds no two pairs of a language: retrieval needs at least two")
    return [
        Bitext(prefix + "-".join(languages), languages, sources, targets, spec)
        for languages, (sources, targets) in pairs.items()
    ]


def _aligned_files(spec: str) -> dict[tuple[str, str], tuple[list[str], list[str]]]:
    lines = read_aligned_lines(spec)
    tags = {tag: required_tag(tag, spec) for tag in lines}
    if len(set(tags.values())) < max(2, len(tags)):
        raise UserError(f"{spec} must name two different languages or more, found {' '.join(tags)}")
    for tag, sentences in lines.items():
        for number, sentence in enumerate(sentences, 1):
            if not sentence.strip():
                raise UserError(f"{spec}: line {number} of {tag} is empty: remove it from all of the files")
    first, *others = lines
    return {(tags[first], tags[other]): (lines[first], lines[other]) for other in others}


def _pairs_folder(spec: str) -> tuple[dict[tuple[str, str], tuple[list[str], list[str]]], str]:
    path, _, split = spec.partition(":")
    if not Path(path).is_dir():
        raise UserError(f"{spec}: give line-aligned files in quoted braces ('tatoeba.{{en,it}}') or a pairs folder")
    pairs = load_pairs(path)
    split = split or ("test" if "test" in pairs else "dev")
    if split not in pairs:
        raise UserError(f"{path} has no split {split!r}: it has {', '.join(pairs)}")
    source_language = read_json(Path(path) / "args.json", {}).get("source_language", "en")
    found = {}
    for source, targets in zip(pairs[split]["source"], pairs[split]["targets"], strict=True):
        for target in targets:
            sources, sentences = found.setdefault((source_language, target["language"]), ([], []))
            sources.append(source)
            sentences.append(target["sentence"])
    return dict(sorted(found.items())), f"{Path(path)}:{split}"


# ---------------------------------------------------------------- retrieval


def translation_hits(sources: list[str], targets: list[str], found: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Whether each source finds its translation, and each target its source: (2, n) bool.

    Every row of the same source or the same target is right: a sentence may occur twice, and have two translations, of
    which only one can be nearest. (sentence-transformers' TranslationEvaluator wants the text that was found to be that
    of the row, and so the one translation.) found: what `nearest_neighbours` gives for their vectors.
    """
    texts = []
    for sentences in (sources, targets):
        first = {}
        texts.append(np.array([first.setdefault(sentence, row) for row, sentence in enumerate(sentences)]))
    return np.stack([np.any([text[rows] == text for text in texts], axis=0) for rows in found])


def translation_accuracy(hits: np.ndarray) -> dict[str, float]:
    """Accuracies of `translation_hits`, named as in sentence-transformers."""
    src2trg, trg2src = hits.mean(1).tolist()
    return {"src2trg_accuracy": src2trg, "trg2src_accuracy": trg2src, "mean_accuracy": (src2trg + trg2src) / 2}


def translation_f1(found: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """MTEB's score of bitext mining, in both directions: F1 of each row as a class of one member, in the mean.

    A row that c others find has the precision 1 / c where one of them is right, and so F1 is 2 / (1 + c). Rows are
    right by number: of two that read the same one is wrong. found: what `nearest_neighbours` gives.
    """
    scores = {}
    for name, rows in zip(("src2trg_f1", "trg2src_f1"), found, strict=True):
        times = np.bincount(rows, minlength=len(rows))
        scores[name] = float(np.mean((rows == np.arange(len(rows))) * 2 / (1 + times)))
    return scores


def negative_mse(labels: Sequence[np.ndarray], vectors: Sequence[np.ndarray]) -> float:
    """Mean squared error of vectors (dimension,) to their labels, times -100 so that more is better.

    As sentence-transformers' MSEEvaluator has it. nan where the two differ in width.
    """
    if len(labels[0]) != len(vectors[0]):
        return float("nan")
    errors = (np.square(label - vector).mean(dtype=np.float64) for label, vector in zip(labels, vectors, strict=True))
    return -100 * sum(errors) / len(labels)
