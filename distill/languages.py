"""Language tags in one form (BCP 47), and the scripts a language is written in."""

import difflib
import itertools
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
        "yue": "Hant Hans",
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
    if len(word) not in (2, 4) or standard_tag(f"{language}-{word}") is None:
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


@cache
def _registry() -> dict[str, dict]:
    """IANA's entries of languages, by English name in lower case and by code."""
    languages = [entry for entry in parse_registry() if entry["Type"] == "language" and "Deprecated" not in entry]
    by_name = {name.lower(): entry for entry in reversed(languages) for name in entry["Description"]}
    return by_name | {entry["Subtag"]: entry for entry in languages}


def _near_tags(tag: str) -> list[str]:
    """Registered languages whose code or English name is close to `tag`, as 'it (Italian)'."""
    by_name = _registry()
    primary = re.split("[-_]", tag.lower())[0]
    close = [primary, *difflib.get_close_matches(tag.lower(), by_name, n=3, cutoff=0.75)]
    if len(tag) == 2 and langcodes.tag_is_valid(
        f"und-{tag}"
    ):  # a country's code in place of its language's: jp, cz, gr
        close.insert(0, langcodes.Language.get(f"und-{tag}").maximize().language)
    near = [by_name[name] for name in close if name in by_name]
    return list(dict.fromkeys(f"{entry['Subtag']} ({entry['Description'][0]})" for entry in near))[:3]


@cache
def _one_script() -> set[str]:
    """The languages that are written in one script, by IANA's registry."""
    return {entry["Subtag"] for entry in _registry().values() if "Suppress-Script" in entry}


@cache
def script_pattern(tag: str) -> str:
    """A regular expression for a letter of the language's scripts; for any letter where its script is not known."""
    language = langcodes.Language.get(tag) if standard_tag(tag) else None
    if language is None or (language.script is None and language.language not in LIKELY_SUBTAGS):
        return LETTER
    likely = [language.script or language.maximize().script]
    if not language.script and len(language.language) == 3 and language.language not in _one_script():
        likely.append(
            "Latn"
        )  # of a small language the likely script is a guess: mni, crh and nan have Latin letters too
    scripts = likely if language.script else SEVERAL_SCRIPTS.get(language.language, likely)
    names = [name for script in scripts for name in SCRIPT_GROUPS.get(script, [script])]
    pattern = "[[" + "".join(rf"\p{{{name}}}" for name in names) + r"]&&\p{L}]"
    try:
        pl.Series([""]).str.contains(pattern)
    except pl.exceptions.ComputeError:  # a variant of a script, such as Latf, that Unicode's tables do not tell apart
        return LETTER
    return pattern


# Words of corpora's names that are some language's code too; "to" and "and" where they stand between two languages.
NO_LANGUAGES = {"dev", "ted", "val", "raw", "all", "new", "old", "tok", "ref", "hyp", "dup", "sub", "web", "mix", "top"}
BETWEEN = {"to", "and"}


def languages_of_name(name: str, source_language: str) -> tuple[str, bool] | None:
    """The other language of a file or config name, and whether the source language stands first in it.

    'talks-en-pt-br-train' -> ('pt-BR', True), 'tatoeba.ita-eng' -> ('it', False), None where none is named. It stands
    beside the source language. UserError where two do, as in 'de-en-it'.
    """
    words = [
        word for word in re.findall("[A-Za-z]+", FORMAT_SUFFIXES.sub("", name)) if word.lower() not in NO_LANGUAGES
    ]
    parts = [_tag_at(words, place) for place in range(len(words))]
    words = [
        word
        for place, word in enumerate(words)
        if not (word.lower() in BETWEEN and 0 < place < len(words) - 1 and parts[place - 1] and parts[place + 1])
    ]
    tags, place = [], 0  # of the name's words, a region or script with the language before it; None for others
    while place < len(words):
        tag, taken = _tag_at(words, place) or (None, 1)
        tags.append(tag)
        place += taken
    found = set()
    for before, after in itertools.pairwise(tags):
        if before and after and covers(source_language, before) != covers(source_language, after):
            source_first = covers(source_language, before)
            found.add((after if source_first else before, source_first))
    # Many three-letter words are some language's code: the shorter code is the likelier one.
    likely = {pair for pair in found if len(pair[0].split("-")[0]) == 2} or found
    if len({tag for tag, _ in likely}) > 1:
        both = " and ".join(sorted(tag for tag, _ in likely))
        raise UserError(
            f"{name} names {both} beside {source_language}: say the languages of its columns, as in "
            f"--corpus {source_language}+{sorted(likely)[0][0]}=..."
        )
    return min(likely, default=None)


def _tag_at(words: list[str], place: int) -> tuple[str, int] | None:
    """The language tag that begins with a word, and how many words it takes; None where the word is no language."""
    word = words[place]
    if len(word) not in (2, 3) or standard_tag(word) is None:
        return None
    taken = 1
    while taken < 3 and place + taken < len(words) and is_region(word, words[place + taken]):
        taken += 1
    return standard_tag("-".join(words[place : place + taken])), taken


def covers(language: str, tag: str) -> bool:
    """Whether a tag is that of the language or of a variant of it: 'zh' covers 'zh-CN', 'zh-CN' only itself."""
    return tag == language or tag.startswith(f"{language}-")


@cache
def language_of_word(word: str) -> str | None:
    """The standard tag of a code or of a language's English name: 'ita' and 'Italian' -> 'it', None for others."""
    entry = _registry().get(word.strip().lower())
    return standard_tag(word.strip()) or (standard_tag(entry["Subtag"]) if entry else None)
