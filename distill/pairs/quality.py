"""Quality of a pair: what a translation has as its source has it, and text that is none."""

import math
import unicodedata
from collections import Counter

import numpy as np
import polars as pl

TAG = r"</?[A-Za-z][^<>]*>|\{\\[^{}]*\}"  # of HTML and its kin, and of subtitles
LINK = r"https?://(www\.)?|www\.\w"
REPEATING = 6, 3  # words of a sentence, and how often each is there on average, from which it only repeats itself
ALIKE = 0.5  # share of the digits other than zero that two sides must have in common
LENGTH_SLACK = 10  # characters added to both sides of a length ratio: "USA" is a fair translation of a long name
STEPS = 32  # into which a doubling of the length ratio is cut, to count them
FEWEST = 3000  # pairs of a language from which its usual ratio is learned
UNUSUAL = 4  # standard deviations,
NARROWEST = 5  # which are so many steps at least: of sentences by few patterns the lengths say little
FEW = 2  # digits that do not count: they may stand in words, and 5 p.m. is 17:00


def unlike_markup(pairs: pl.DataFrame) -> pl.Series:
    """Whether `source` and `target` do not have as many tags, or not as many links."""
    return pairs.select(
        pl.any_horizontal(
            pl.col("source").str.count_matches(pattern) != pl.col("target").str.count_matches(pattern)
            for pattern in (TAG, LINK)
        )
    ).to_series()


def repeating(sentences: pl.Series) -> pl.Series:
    """Whether a sentence says few words again and again."""
    least, times = REPEATING
    words = sentences.str.split(" ")
    return (words.list.len() >= least) & (words.list.len() >= times * words.list.n_unique())


def unlike_numbers(pairs: pl.DataFrame) -> pl.Series:
    """Whether the digits of `source` and `target` tell of other numbers, as OpusFilter's NonZeroNumeralsFilter does.

    Zeros are not compared, since thousands are written in many ways, nor the order, since dates are. Digits of any
    script are compared by their value.
    """
    # Most pairs have no digit, and most others the same ones: only the rest is looked at closely.
    has_digit = pl.any_horizontal(pl.col("source", "target").str.contains(r"\p{Nd}"))
    places = pairs.select(has_digit.fill_null(False)).to_series().arg_true()
    digits = pairs[places].select(pl.col("source", "target").str.replace_all(r"[\P{Nd}0]+", ""))
    found = [None not in texts and texts[0] != texts[1] and _unlike(*texts) for texts in digits.iter_rows()]
    return pl.repeat(False, len(pairs), dtype=pl.Boolean, eager=True).scatter(places, found)


def length_steps() -> pl.Expr:
    """How much longer `target` is than `source`: the binary logarithm of the ratio, in whole STEPS. 0 without one."""
    target, source = (pl.col(side).str.len_chars() + LENGTH_SLACK for side in ("target", "source"))
    return ((target / source).log(2) * STEPS).round().cast(pl.Int32).fill_null(0)


def usual_lengths(counts: dict[str, Counter]) -> dict[str, tuple[int, int]]:
    """From which to which of `length_steps` the translations in a language lie, by how many pairs there are at each.

    UNUSUAL standard deviations around the median, of which the middle half spans 2 x 0.6745: what is no translation
    hardly moves these. None for a language of few pairs.
    """
    usual = {}
    for language, at in counts.items():
        if at.total() >= FEWEST:
            steps = np.array(sorted(at))
            below = np.cumsum([at[step] for step in steps])
            low, middle, high = steps[np.searchsorted(below, np.array([0.25, 0.5, 0.75]) * below[-1])].tolist()
            deviations = UNUSUAL * max(NARROWEST, (high - low) / (2 * 0.6745))
            usual[language] = math.ceil(middle - deviations), math.floor(middle + deviations)
    return usual


def of_unusual_length(usual: dict[str, tuple[int, int]]) -> pl.Expr:
    """Whether a pair (`source`, `language`, `target`) lies outside what is usual in its language."""
    within = [
        (pl.col("language") == language) & ~length_steps().is_between(*limits) for language, limits in usual.items()
    ]
    return pl.any_horizontal(False, *within)


def _unlike(source: str, target: str) -> bool:
    one, other = (Counter(filter(None, (unicodedata.digit(sign, 0) for sign in text))) for text in (source, target))
    totals, common = (one.total(), other.total()), (one & other).total()
    return max(totals) > FEW and 2 * common < ALIKE * sum(totals)
