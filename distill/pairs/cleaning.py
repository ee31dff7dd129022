"""Cleaning of sentence pairs: steps that mend a sentence, filters that drop a pair, each counted under its name."""

import html
import re
from collections.abc import Callable, Iterable

import ftfy
import numpy as np
import polars as pl

from distill.command import UserError
from distill.languages import LETTER, script_pattern
from distill.pairs.identification import in_other_language
from distill.pairs.quality import LENGTH_SLACK, repeating, unlike_markup, unlike_numbers
from distill.pairs.tables import texts
from distill.text_files import expand_languages

# Control characters that are no white space, and characters that show nothing: soft hyphen, direction marks, byte order
# marks. The zero-width joiners stay: Persian and Hindi spell with them.
CONTROL = (
    r"[\x00-\x08\x0e-\x1f\x7f-\x{84}\x{86}-\x{9f}\x{ad}\x{200e}\x{200f}\x{202a}-\x{202e}"
    r"\x{2060}-\x{206f}\x{feff}\x{fff9}-\x{fffb}]"
)
# A zero-width space that does not part words, as it does in Khmer and other scripts that are written without spaces.
ZERO_WIDTH_SPACE = r"(^|[^\p{Khmer}\p{Thai}\p{Lao}\p{Myanmar}\p{Tibetan}\x{200b}])\x{200b}+|\x{200b}+($|\s)"
WHITE_SPACE = r"[^\S ]|  |^ | $"
ENTITY = r"&#?\w+;"
# UTF-8 that was read as a Western code page: the first byte of a character as a letter, the next as a sign.
# Or a byte of such a page as what it is not, a control character.
MOJIBAKE = r"[\x{c2}-\x{f4}][\x{80}-\x{bf}€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|[\x{80}-\x{9f}]"
# What NFC may change: marks, Jamo, and the characters that have a canonical decomposition and no way back.
# Everything else is NFC already, and asking that is six times faster than normalising.
NOT_NFC = (
    r"[\p{M}\x{1100}-\x{11ff}\x{340}-\x{343}\x{374}\x{37e}\x{387}\x{958}-\x{95f}\x{9dc}-\x{9df}\x{a33}-\x{a5e}\x{b5c}\x{b5d}"
    r"\x{f43}-\x{f69}\x{1f71}-\x{1fff}\x{2000}\x{2001}\x{2126}-\x{212b}\x{2329}\x{232a}\x{2adc}\x{f900}-\x{faff}"
    r"\x{fb1d}-\x{fb4f}\x{1d15e}-\x{1d1c0}\x{2f800}-\x{2fa1d}]"
)
SUSPECT = f"{WHITE_SPACE}|{CONTROL}|{NOT_NFC}|{ENTITY}|{MOJIBAKE}|\u200b"

# In the order they are done.
MENDERS = {
    "encoding": lambda texts: _where(MOJIBAKE, ftfy.fix_encoding, texts),
    "entities": lambda texts: _where(ENTITY, _without_entities, texts),
    "control_characters": lambda texts: texts.str.replace_all(CONTROL, "").str.replace_all(
        ZERO_WIDTH_SPACE, "${1}${2}"
    ),
    "nfc": lambda texts: texts.str.normalize("NFC"),
    "white_space": lambda texts: texts.str.replace_all(r"\s+", " ").str.strip_chars(),
}
MENDING = tuple(MENDERS)
FILTERS = ("empty", "too_long", "length_ratio", "same_as_source", "no_letters", "wrong_script", "markup", "repetition")
FILTERS += ("numbers", "wrong_language", "unusual_length", "duplicate", "near_duplicate")
# Why a pair may be dropped: a byte in a column of many rows, not a string.
REASON = pl.Enum(["missing", *FILTERS, "excluded", "dissimilar", "many_translations", "over_limit", "translated"])


def mend(sentences: pl.Series, steps: Iterable[str]) -> tuple[pl.Series, dict[str, pl.Series]]:
    """The sentences after the named steps of `MENDING`, and for each step which sentences (bool) it changed.

    Mended text is never mended again, so that pairs read back (from shards, say) stay as they are: what a step leaves
    for one before it is done in another round.
    """
    # One search tells which sentences need any work; in clean text that is few, and only those are rewritten.
    suspects = sentences.str.contains(SUSPECT).fill_null(False).arg_true()
    rest, before = sentences.gather(suspects), None
    mended = {step: pl.repeat(False, len(rest), dtype=pl.Boolean, eager=True) for step in MENDING if step in steps}
    while before is None or not rest.equals(before):
        before = rest
        for step in mended:
            after = MENDERS[step](rest)
            mended[step] |= after != rest
            rest = after
    changed = {step: _marked(len(sentences), suspects, flags) for step, flags in mended.items()}
    at = pl.int_range(len(sentences), dtype=pl.UInt32, eager=True)
    at = at.scatter(suspects, pl.int_range(len(sentences), len(sentences) + len(rest), dtype=pl.UInt32, eager=True))
    return pl.concat([sentences, rest], rechunk=True).gather(at), changed


def _where(pattern: str, function: Callable[[str], str], texts: pl.Series) -> pl.Series:
    """The texts, those that hold a pattern as a function of one gives them back: too slow for all."""
    places = texts.str.contains(pattern).arg_true()
    return texts.clone().scatter(places, texts.gather(places).map_elements(function, pl.String))


def _without_entities(text: str) -> str:
    """A text with the characters that HTML's entities stand for, as of Moses' tokenizer: `&apos;`."""
    return re.sub(ENTITY, lambda entity: html.unescape(entity[0]), text)


def inspect(
    sentences: pl.Series,
    languages: pl.Series,
    steps: Iterable[str],
    filters: Iterable[str],
    max_sentence_length: int,
    excluded: np.ndarray | None,
) -> pl.DataFrame:
    """Mend sentences and judge each by itself: columns `sentence`, `length`, `fault`, and a bool per mending step.

    `languages` holds the language of each. `fault` is the first reason to drop the sentence, null for none.
    `excluded` is that of `read_excluded`.
    """
    sentences, changed = mend(sentences, steps)
    lengths = sentences.str.len_chars()
    faults = [("missing", sentences.is_null())]
    if "empty" in filters:
        faults.append(("empty", lengths == 0))
    if "too_long" in filters:
        faults.append(("too_long", lengths > max_sentence_length))
    faults += _letter_faults(sentences, languages, filters)
    if excluded is not None:
        hashes = fold(sentences).hash().to_numpy()
        places = np.searchsorted(excluded, hashes).clip(max=len(excluded) - 1)
        faults.append(("excluded", pl.Series(excluded[places] == hashes)))
    frame = pl.DataFrame({"sentence": sentences, "length": lengths, **changed})
    frame = frame.with_columns(language=languages, fault=first_reason(faults))
    return drop_other_languages(frame, "sentence", "fault", filters).drop("language")


def drop_other_languages(frame: pl.DataFrame, sentence: str, fault: str, filters: Iterable[str]) -> pl.DataFrame:
    """Give the sentences (a column) that have no `fault` yet the fault wrong_language where they are not in theirs.

    It is the dearest question, and is asked last. The column `language` has the language of each.
    """
    if "wrong_language" not in filters:
        return frame
    places = frame[fault].is_null().arg_true()
    wrong = in_other_language(frame[sentence].gather(places), frame["language"].gather(places))
    wrong = _marked(len(frame), places, pl.Series(wrong))
    return frame.with_columns(pl.when(wrong).then(pl.lit("wrong_language", REASON)).otherwise(fault).alias(fault))


def first_reason(faults: Iterable[tuple[str, pl.Series | pl.Expr]]) -> pl.Expr:
    """The name of the first condition that holds, null where none does."""
    named = [pl.when(applies).then(pl.lit(name, REASON)) for name, applies in faults]
    return pl.coalesce(*named, pl.lit(None, REASON))


def pair_faults(filters: Iterable[str], max_length_ratio: float) -> list[tuple[str, pl.Expr]]:
    """What can be wrong with a pair of two sound sentences (columns `source`, `target` and their `_length`s)."""
    lengths = [pl.col("source_length") + LENGTH_SLACK, pl.col("target_length") + LENGTH_SLACK]
    reasons = {
        "length_ratio": pl.max_horizontal(lengths) > max_length_ratio * pl.min_horizontal(lengths),
        "same_as_source": pl.col("source") == pl.col("target"),
        "markup": _of_pairs(unlike_markup),
        "repetition": _of_pairs(lambda pairs: repeating(pairs["source"]) | repeating(pairs["target"])),
        "numbers": _of_pairs(unlike_numbers),
    }
    return [(name, applies) for name, applies in reasons.items() if name in filters]


def _of_pairs(fault: Callable[[pl.DataFrame], pl.Series]) -> pl.Expr:
    """A function of frames with the columns `source` and `target` as an expression."""
    return pl.struct("source", "target").map_batches(lambda pairs: fault(pairs.struct.unnest()), pl.Boolean)


def _letter_faults(sentences: pl.Series, languages: pl.Series, filters: Iterable[str]) -> list[tuple[str, pl.Series]]:
    """Sentences without any letter; and those with letters, but none of their language's scripts."""
    by_pattern: dict[str, list[str]] = {}
    for language in languages.unique():
        by_pattern.setdefault(script_pattern(language), []).append(language)
    # A letter of the right script settles both questions, and most sentences begin with one: search for it first. A
    # search that finds nothing is slow, so each script is looked for in the sentences of its languages alone.
    unsettled = pl.repeat(True, len(sentences), eager=True)
    for pattern, tags in by_pattern.items():
        if len(by_pattern) == 1:
            unsettled = ~sentences.str.contains(pattern).fill_null(False)
        else:
            at = languages.is_in(tags).arg_true()
            unsettled.scatter(at, ~sentences.gather(at).str.contains(pattern).fill_null(False))
    at = unsettled.arg_true()
    has_letter = sentences.gather(at).str.contains(LETTER).fill_null(False)
    faults = {"no_letters": ~has_letter, "wrong_script": has_letter}
    return [(name, _marked(len(sentences), at, flags)) for name, flags in faults.items() if name in filters]


def _marked(length: int, at: pl.Series, flags: pl.Series) -> pl.Series:
    """`length` flags: the given ones at the given places, false elsewhere."""
    return pl.repeat(False, length, dtype=pl.Boolean, eager=True).scatter(at, flags)


def fold(sentences: pl.Series) -> pl.Series:
    """Sentences as --exclude compares them: mended, and their letters alone. Null for an empty one."""
    return letters(mend(sentences, MENDING)[0]).replace("", None)


def letters(sentences: pl.Series) -> pl.Series:
    """The letters, marks and digits of sentences, lower-cased; a sentence without any as it is."""
    # Spaces, the most frequent of all others, by a search of their own: half the time of one pattern.
    found = sentences.str.to_lowercase().str.replace_all(r"[^\p{L}\p{M}\p{N} ]+", "")
    found = found.str.replace_all(" ", "", literal=True)
    return found.zip_with(found != "", sentences)


def read_excluded(specs: Iterable[str]) -> np.ndarray:
    """Hashes, sorted, of every text of the evaluation files, folded: of every line, cell and string in them.

    A brace path names a file per language.
    """
    sentences = []
    for spec in specs:
        for path in expand_languages(spec).values() if "{" in spec else [spec]:
            there = fold(pl.concat([pl.Series([], dtype=pl.String), *texts(path)])).drop_nulls()
            if there.is_empty():
                raise UserError(f"{path} holds no sentence to exclude: check the file")
            sentences.append(there.hash().to_numpy())
    return np.unique(np.concatenate(sentences))
