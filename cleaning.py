"""Cleaning of sentence pairs: steps that mend a sentence, filters that drop a pair, each counted under its name."""

import csv
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from corpora import decode, text_blocks, text_lines
from distill_utils import UserError, expand_languages
from languages import script_pattern

# Control characters that are no white space, and characters that show nothing: soft hyphen, zero-width space,
# direction marks, byte order marks. The zero-width joiners stay: Persian and Hindi spell with them.
CONTROL = (
    r"[\x00-\x08\x0e-\x1f\x7f-\x{84}\x{86}-\x{9f}\x{ad}\x{200b}\x{200e}\x{200f}\x{202a}-\x{202e}"
    r"\x{2060}-\x{206f}\x{feff}\x{fff9}-\x{fffb}]"
)
WHITE_SPACE = r"[^\S ]|  |^ | $"
# What NFC may change: marks, Jamo, and the characters that have a canonical decomposition and no way back.
# Everything else is NFC already, and asking that is six times faster than normalising.
NOT_NFC = (
    r"[\p{M}\x{1100}-\x{11ff}\x{340}-\x{343}\x{374}\x{37e}\x{387}\x{958}-\x{95f}\x{9dc}-\x{9df}\x{a33}-\x{a5e}\x{b5c}\x{b5d}"
    r"\x{f43}-\x{f69}\x{1f71}-\x{1fff}\x{2000}\x{2001}\x{2126}-\x{212b}\x{2329}\x{232a}\x{2adc}\x{f900}-\x{faff}"
    r"\x{fb1d}-\x{fb4f}\x{1d15e}-\x{1d1c0}\x{2f800}-\x{2fa1d}]"
)
LETTER = r"\p{L}"
LENGTH_SLACK = 10  # characters added to both sides of a length ratio: "USA" is a fair translation of a long name

MENDING = ("nfc", "control_characters", "white_space")
FILTERS = ("empty", "too_long", "length_ratio", "same_as_source", "no_letters", "wrong_script", "duplicate")


def mend(sentences: pl.Series, steps: Iterable[str]) -> tuple[pl.Series, dict[str, pl.Series]]:
    """The sentences after the named steps of `MENDING`, and for each step which sentences (bool) it changed."""
    # One search tells which sentences need any work; in clean text that is few, and only those are rewritten.
    suspects = sentences.str.contains(f"{WHITE_SPACE}|{CONTROL}|{NOT_NFC}").fill_null(False).arg_true()
    changed = {}
    rest = sentences.gather(suspects)
    for step in MENDING:
        if step not in steps:
            continue
        before = rest
        if step == "nfc":
            rest = rest.str.normalize("NFC")
        elif step == "control_characters":
            rest = rest.str.replace_all(CONTROL, "")
        else:
            rest = rest.str.replace_all(r"\s+", " ").str.strip_chars()
        changed[step] = pl.repeat(False, len(sentences), eager=True).scatter(suspects, rest != before)
    at = pl.int_range(len(sentences), dtype=pl.UInt32, eager=True)
    at = at.scatter(suspects, pl.int_range(len(sentences), len(sentences) + len(rest), dtype=pl.UInt32, eager=True))
    return pl.concat([sentences, rest]).gather(at), changed


def verdict(
    filters: Iterable[str],
    source_language: str,
    target_languages: Iterable[str],
    max_sentence_length: int,
    max_length_ratio: float,
    excluded: pl.Series | None,
) -> pl.Expr:
    """Why a pair is dropped (the first reason that holds), null for one that is kept.

    Reads the columns `source`, `language`, `target`. `excluded` holds folded sentences (see `fold`).
    """
    both = pl.col("source", "target")
    lengths = [pl.col(side).str.len_chars() + LENGTH_SLACK for side in ("source", "target")]
    reasons = {
        "missing": pl.any_horizontal(both.is_null()),
        "empty": pl.any_horizontal(both == ""),
        "too_long": pl.any_horizontal(both.str.len_chars() > max_sentence_length),
        "length_ratio": pl.max_horizontal(lengths) > max_length_ratio * pl.min_horizontal(lengths),
        "same_as_source": pl.col("source") == pl.col("target"),
        "no_letters": pl.any_horizontal(~both.str.contains(LETTER)),
        "wrong_script": _wrong_script(source_language, target_languages),
    }
    reasons = {name: applies for name, applies in reasons.items() if name == "missing" or name in filters}
    if excluded is not None:
        reasons["excluded"] = pl.any_horizontal(
            pl.col(side).map_batches(lambda sentences: fold(sentences).is_in(excluded.implode()), pl.Boolean)
            for side in ("source", "target")
        )
    return pl.coalesce(pl.when(applies).then(pl.lit(name)) for name, applies in reasons.items())


def _wrong_script(source_language: str, target_languages: Iterable[str]) -> pl.Expr:
    """Whether a side has letters, but none of its language's scripts."""
    by_pattern: dict[str | None, list[str]] = {}
    for language in target_languages:
        by_pattern.setdefault(script_pattern(language), []).append(language)
    source = script_pattern(source_language)
    wrong = [_only_others("source", source)] if source else []
    for pattern, languages in by_pattern.items():
        if pattern is not None:
            wrong.append(pl.col("language").is_in(languages) & _only_others("target", pattern))
    return pl.any_horizontal(wrong) if wrong else pl.lit(False)


def _only_others(side: str, pattern: str) -> pl.Expr:
    return pl.col(side).str.contains(LETTER) & ~pl.col(side).str.contains(pattern)


def fold(sentences: pl.Series) -> pl.Series:
    """Sentences as --exclude compares them: NFC, no control characters, white space and case folded."""
    return mend(sentences, MENDING)[0].str.to_lowercase()


def read_excluded(specs: Iterable[str]) -> pl.Series:
    """Every sentence of the evaluation files, folded: text with a sentence a line, or STS files (.csv, .tsv).

    A brace path names a file per language. Of an STS file the two sentence columns are taken.
    """
    sentences = []
    for spec in specs:
        for path in expand_languages(spec).values() if "{" in spec else [spec]:
            there = _sts_sentences(path) if ".csv" in Path(path).suffixes else _plain_sentences(path)
            if there.is_in(["", None], nulls_equal=True).all():
                raise UserError(f"{path} holds no sentence to exclude: check the file")
            sentences.append(fold(there))
    sentences = pl.concat(sentences).unique(maintain_order=True)
    return sentences.filter(sentences != "")


def _plain_sentences(path: str) -> pl.Series:
    """A sentence a line; in a TSV every cell."""
    lines = [lines.str.split("\t").explode() if ".tsv" in path else lines for _, lines in text_lines(path)]
    return pl.concat(lines) if lines else pl.Series([], dtype=pl.String)


def _sts_sentences(path: str) -> pl.Series:
    text = "".join(decode(path, number, block) for number, block in text_blocks(path))
    rows = csv.reader(text.splitlines(keepends=True))
    sentences = []
    try:
        for row in filter(None, rows):
            if len(row) < 2:
                raise UserError(f"{path}, line {rows.line_num}: expected sentence1,sentence2,score, found one column")
            sentences += row[:2]
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num} is no CSV ({error}): mend or remove it") from None
    return pl.Series(sentences, dtype=pl.String)
