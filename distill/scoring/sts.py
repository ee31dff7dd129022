"""Sets of graded sentence pairs (semantic textual similarity): from files or the hub, in one language or across two."""

import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from distill.command import UserError
from distill.languages import is_region, required_tag, standard_tag
from distill.pairs.tables import sentence_tables
from distill.text_files import expand_languages

SCORE_COLUMNS = ("score", "similarity_score", "label")


class StsSet(NamedTuple):
    """Sentence pairs with scores from 0 to 1; sentence1 is in one language, sentence2 in the same or another."""

    name: str  # 'en', 'en-it'; with 'NAME/' before it where the spec was given a name
    languages: tuple[str, str]
    sentence1: list[str]
    sentence2: list[str]
    scores: np.ndarray  # (n,) float64; sets made from aligned tables have one and the same array
    spec: str


def read_sts(spec: str, score_range: tuple[float, float] | None = None, name: str = "") -> list[StsSet]:
    """The sets of a brace path, or of a hub id with braces: tables of `sentence1`, `sentence2` and `score`.

    '{en,it}' stands for aligned tables, row i of each the same pair: every language and every ordered pair of
    languages is a set. '{en-de,es-en}' stands for sets that are cross-lingual by themselves; `split_pairs` tells the
    two apart. CSV and TSV need no header. Scores from `score_range` (if not given: 0-1 where they fit, else 0-5) are
    brought to 0-1. UserError for a bad row, and for aligned tables whose rows or scores differ.
    """
    paths = expand_languages(spec)
    languages = split_pairs(paths, spec)
    names = {tag: set_name(parts[0], parts[-1]) for tag, parts in languages.items()}
    if twice := [tag for tag in paths if list(names.values()).count(names[tag]) > 1]:
        raise UserError(f"{spec} names the same language twice, as {' and '.join(twice)}: leave one out")
    tables = {tag: _read_table(path) for tag, path in paths.items()}
    low, high = score_range or _find_range(tables)
    for tag, path in paths.items():
        _check(tables[tag], path, low, high)
    scores = {tag: (table["score"].to_numpy() - low) / (high - low) for tag, table in tables.items()}
    cells = zip(paths, paths, strict=True)
    if all(len(pair) == 1 for pair in languages.values()):
        _check_alignment(spec, tables)
        scores = dict.fromkeys(paths, next(iter(scores.values())))
        cells = itertools.product(paths, repeat=2)
    prefix = name and f"{name}/"
    return [
        StsSet(
            prefix + set_name(languages[one][0], languages[other][-1]),
            (languages[one][0], languages[other][-1]),
            tables[one]["sentence1"].to_list(),
            tables[other]["sentence2"].to_list(),
            scores[one],
            spec,
        )
        for one, other in cells
    ]


def set_name(language1: str, language2: str) -> str:
    """'en' for one language, 'en-it' for two."""
    return language1 if language1 == language2 else f"{language1}-{language2}"


def set_title(spec: str) -> str:
    """'data/stsb-{en,it}-test.csv' -> 'stsb-test', 'mteb/sts17:{en-de}:test' -> 'sts17'."""
    return re.sub(r"[-_.]?\{.*?\}", "", Path(spec.partition(":")[0]).name).split(".")[0] or "unknown"


def split_pairs(tags: Iterable[str], spec: str) -> dict[str, tuple[str, ...]]:
    """The standard languages of each tag, one or two: 'en-de' and 'en+de' -> ('en', 'de'), 'pt-BR' -> ('pt-BR',).

    A region begins with a capital or a digit, or is surely one ('en-us'); a script also has four letters. 'es-es' is
    two languages, as STS17 has it. UserError for what may be either: 'pt-br', Brazil's or Portuguese to Breton.
    """
    languages = {}
    for tag in tags:
        written = tag.lower() if tag.isupper() else tag
        first, *others = tag.split("+") if "+" in tag else re.split(r"[-_](?![A-Z0-9]|[a-z]{4}\b)", written)
        two = f"{{{first}+{'-'.join(others)}={tag}}}"
        if len(others) > 1:
            raise UserError(f"{spec}: {tag} names more than two languages: write two with a +, as in {two}")
        word = "" if "+" in tag else "".join(others)
        if len(word) == 2 and word != first and is_region(first, word):
            if standard_tag(word):
                one = f"{{{standard_tag(tag)}={tag}}}"
                raise UserError(f"{spec}: {tag} may be one language or two: write {one} for one, {two} for two")
            first, others = tag, []
        languages[tag] = tuple(required_tag(part, spec) for part in (first, *others))
    return languages


def _find_range(tables: dict[str, pl.DataFrame]) -> tuple[float, float]:
    return (0.0, 1.0) if all((table["score"] <= 1).all() for table in tables.values()) else (0.0, 5.0)


def _check(table: pl.DataFrame, path: str, low: float, high: float) -> None:
    """UserError for an empty sentence, a score out of range, fewer than two rows, or scores that are all the same."""
    if len(table) < 2:
        raise UserError(f"{path} holds {len(table)} rows: a correlation needs at least two")
    for column in ("sentence1", "sentence2"):
        for row in (table[column].fill_null("").str.strip_chars() == "").arg_true():
            raise UserError(f"{path}, row {row + 1}: {column} is empty: mend or remove the row")
    scores = table["score"].to_numpy()
    for row in np.flatnonzero(~((scores >= low) & (scores <= high))):
        raise UserError(
            f"{path}, row {row + 1}: the score {scores[row]:g} is not between {low:g} and {high:g}: mend the row, or "
            "give the range with --score_range"
        )
    if np.ptp(scores) == 0:
        raise UserError(f"{path}: every score is {scores[0]:g}, with which nothing can correlate")


def _check_alignment(spec: str, tables: dict[str, pl.DataFrame]) -> None:
    """UserError for aligned tables whose row counts or scores differ."""
    advice = "if they need not be aligned, give each language an --sts of its own"
    counts = {tag: len(table) for tag, table in tables.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"{spec}: the files have different row counts, {counts}; {advice}")
    first, *others = tables
    expected = tables[first]["score"].to_numpy()
    for tag in others:
        found = tables[tag]["score"].to_numpy()
        for row in np.flatnonzero(np.abs(found - expected) > 1e-6):
            raise UserError(
                f"{spec}: the {first} and {tag} files are not aligned, row {row + 1} has the scores "
                f"{expected[row]:g} and {found[row]:g}; {advice}"
            )


def _read_table(path: str) -> pl.DataFrame:
    """The columns `sentence1`, `sentence2` (strings) and `score` (float64) of a file, saved folder or hub id."""
    tables = list(sentence_tables(path))
    names = tables[0].columns if tables else []
    score = next((name for name in SCORE_COLUMNS if name in names), None)
    if score is None or not {"sentence1", "sentence2"} <= set(names):
        raise UserError(
            f"{path} has the columns {', '.join(names) or '(none)'}: expected sentence1, sentence2 and one of "
            f"{', '.join(SCORE_COLUMNS)}"
        )
    for name, dtype in tables[0].select("sentence1", "sentence2", score).schema.items():
        if dtype.is_nested() or dtype == pl.Binary:
            raise UserError(f"{path}: the column {name} holds {dtype}, not {'numbers' if name == score else 'text'}")
    # Each for itself: a block of JSON lines whose scores are all whole numbers has them as integers.
    table = pl.concat(table.select(pl.col("sentence1", "sentence2", score).cast(pl.String)) for table in tables)
    numbers = table[score].str.strip_chars().cast(pl.Float64, strict=False)
    for row in numbers.is_null().arg_true():
        raise UserError(f"{path}, row {row + 1}: the score {table[score][row]!r} is no number: mend or remove the row")
    return table.select("sentence1", "sentence2", score=numbers)
