"""Language tags in one form (BCP 47), and the scripts a language is written in."""

import difflib
import re
from functools import cache

import langcodes
import polars as pl
from langcodes.data_dicts import LIKELY_SUBTAGS
from langcodes.registry_parser import parse_registry

from distill.command import UserError

LETTER = r"\p{L}"
# At the end of a name they name no language, though tsv, csv and txt are codes of some.
FORMAT_SUFFIXES = re.compile(r"(\.(tsv|csv|txt|jsonl|ndjson|json|parquet|arrow|gz|xz|zst|bz2))+$")
# Scripts that one ISO 15924 code stands for, by the names that regular expressions know.
SCRIPT_GROUPS = {
    "Hans": ["Han", "Bopomofo"],
    "Hant": ["Han", "Bopomofo"],
    "Jpan": ["Han", "Hiragana", "Katakana"],
    "Kore": ["Hangul", "Han"],
    "Hanb": ["Han", "Bopomofo"],
    "Jamo": ["Hangul"],
}
# CLDR names one likely script for a language; these are written in more.
SEVERAL_SCRIPTS = {
    language: scripts.split()
    for languages, scripts in {
        "sr az kk ky tt mn tg": "Cyrl Latn",
        "uz tk bs ro": "Latn Cyrl",
        "ku ms ha": "Latn Arab",
        "pa ks sd": "Guru Arab Deva",
        "ber kab zgh shi rif": "Latn Tfng",
    }.items()
    for language in languages.split()
}


@cache
def standard_tag(tag: str) -> str | None:
    """'ita' -> 'it', 'zh_cn' -> 'zh-CN', 'arb' -> 'ar'; None for what is no registered language."""
    try:
        standard = langcodes.standardize_tag(tag, macro=True)
    except langcodes.LanguageTagError:
        return None
    return standard if langcodes.tag_is_valid(standard) else None


@cache
def is_region(language: str, word: str) -> bool:
    """Whether a word after a language is surely its region or script ('pt', 'br'), not another language ('it', 'mt').

    A script has four letters. A region is sure where the language is its likeliest ('mt' is Maltese before it is
    Malta), or where the word is no language.
    """
    if standard_tag(f"{language}-{word}") is None:
        return False
    likely = langcodes.Language.get(f"und-{word}").maximize().language
    return len(word) == 4 or standard_tag(word) is None or likely == langcodes.Language.get(language).language


def required_tag(tag: str, where: str) -> str:
    """The standard form of a tag that the user wrote `where`; UserError with near matches for an unknown one."""
    standard = standard_tag(tag)
    if standard is None:
        near = _near_tags(tag)
        advice = f"did you mean {' or '.join(near)}?" if near else "give an ISO 639 code such as it, ita or pt-BR"
        raise UserError(f"{where}: {tag!r} is no known language tag: {advice}")
    return standard


def _near_tags(tag: str) -> list[str]:
    """Registered languages whose code or English name is close to `tag`, as 'it (Italian)'."""
    languages = [entry for entry in parse_registry() if entry["Type"] == "language" and "Deprecated" not in entry]
    by_name = {name.lower(): entry for entry in reversed(languages) for name in entry["Description"]}
    by_name |= {entry["Subtag"]: entry for entry in languages}
    primary = re.split("[-_]", tag.lower())[0]
    close = [primary, *difflib.get_close_matches(tag.lower(), by_name, n=3, cutoff=0.75)]
    if len(tag) == 2 and langcodes.tag_is_valid(
        f"und-{tag}"
    ):  # a country's code in place of its language's: jp, cz, gr
        close.insert(0, langcodes.Language.get(f"und-{tag}").maximize().language)
    near = [by_name[name] for name in close if name in by_name]
    return list(dict.fromkeys(f"{entry['Subtag']} ({entry['Description'][0]})" for entry in near))[:3]


@cache
def script_pattern(tag: str) -> str:
    """A regular expression for a letter of the language's scripts; for any letter where its script is not known."""
    language = langcodes.Language.get(tag) if standard_tag(tag) else None
    if language is None or (language.script is None and language.language not in LIKELY_SUBTAGS):
        return LETTER
    likely = [language.script or language.maximize().script]
    scripts = likely if language.script else SEVERAL_SCRIPTS.get(language.language, likely)
    names = [name for script in scripts for name in SCRIPT_GROUPS.get(script, [script])]
    pattern = "[[" + "".join(rf"\p{{{name}}}" for name in names) + r"]&&\p{L}]"
    try:
        pl.Series([""]).str.contains(pattern)
    except pl.exceptions.ComputeError:  # a variant of a script, such as Latf, that Unicode's tables do not tell apart
        return LETTER
    return pattern


def languages_of_name(name: str, source_language: str) -> tuple[str, bool] | None:
    """The other language of a file or config name, and whether the source language stands first in it.

    'talks-en-pt-br-train' -> ('pt-BR', True), 'tatoeba.ita-eng' -> ('it', False), None where none is named.
    """
    words = re.findall("[A-Za-z]+", FORMAT_SUFFIXES.sub("", name))
    found = []
    for i, word in enumerate(words):
        if standard_tag(word) != source_language:
            continue
        # A region or script belongs to the tag before it: 'pt-br', 'zh-Hans'.
        for first, neighbours in (
            (True, (words[i + 1 : i + 3], words[i + 1 : i + 2])),
            (False, (words[max(i - 2, 0) : i], words[max(i - 1, 0) : i])),
        ):
            for tag_words in neighbours:
                tag = standard_tag("-".join(tag_words)) if tag_words and len(tag_words[0]) in (2, 3) else None
                if tag and tag != source_language and all(len(extra) in (2, 4) for extra in tag_words[1:]):
                    found.append((tag, first))
                    break
    # Many three-letter words are some language's code ('ted', 'dev'): the shorter code is the likelier one.
    return min(found, key=lambda item: len(item[0].split("-")[0]), default=None)
