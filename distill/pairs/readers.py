"""Readers: a corpus of any kind to chunks of pairs, with file and line in every error.

Every reader yields Polars frames of bounded size with the columns `source`, `language`, `target` (strings): pairs, and
the source sentences by themselves (`ALONE`). A null sentence is one that the corpus says is missing. Nothing is judged
here: cleaning.py does that.
"""

import re
from collections import deque
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import polars as pl

from distill.command import UserError
from distill.languages import covers, language_of_word, required_tag
from distill.pairs.schemas import ALONE, COLUMN_PAIRS, alone, named_languages, table_pairs, wide_pairs
from distill.pairs.tables import CHUNK, PARTS, TABLES, aligned_in_zip, distinct, find_format, format_of_suffix
from distill.pairs.tmx import tmx_units
from distill.text_files import OPENERS, Part, expand_languages, file_name, text_lines

PAIR = {"source": pl.String, "language": pl.String, "target": pl.String}


def languages_of_spec(spec: str) -> tuple[str, tuple[str, ...] | None]:
    """'en+it=news.tsv' -> ('news.tsv', ('en', 'it')): what a user says that two columns hold; None where nothing.

    'en=news.txt' -> ('news.txt', ('en',)): sentences of one language.
    """
    match = re.fullmatch(r"([A-Za-z][\w-]*)(?:\+([A-Za-z][\w-]*))?=(.+)", spec)
    if match is None or Path(spec).exists():
        return spec, None
    return match[3], tuple(required_tag(tag, spec) for tag in match.group(1, 2) if tag)


def read_corpus(
    spec: str,
    source_language: str,
    file_format: str | None = None,
    columns: tuple[str, str] | None = None,
    by_themselves: bool = False,
    part: Part | None = None,
) -> Iterator[pl.DataFrame]:
    """Every pair of a corpus, in all its languages (tags in standard form where they are known), in chunks.

    `columns` names the source and target column of a table. `by_themselves`: also every source sentence, in the
    language `ALONE`, whether it has translations or not. `part`: one of `parts_of`. UserError for what cannot be read.
    """
    try:
        for frame in _frames(spec, source_language, file_format, columns, part):
            frame = frame if by_themselves else frame.filter(pl.col("language") != ALONE)
            if not frame.is_empty():
                yield frame
    except UserError:
        if part and part[0]:  # lines and rows are counted from the part's beginning: find them from the file's
            deque(_frames(spec, source_language, file_format, columns), maxlen=0)
        raise


def parts_of(spec: str, file_format: str | None) -> list[Part | None]:
    """The parts that can be read by themselves, in order, of a plain file of TSV, JSON lines or Parquet; else [None].

    UserError where a corpus's format cannot be told.
    """
    path, languages = languages_of_spec(spec)
    if languages and len(languages) == 1:
        return [None]
    kind, plain = format_of(path, languages, file_format), file_name(path).suffix.lower() not in OPENERS
    return (plain and Path(path).is_file() and kind in PARTS and PARTS[kind](path)) or [None]


def format_of(path: str, languages: tuple[str, ...] | None, file_format: str | None) -> str:
    """The format of a corpus: the one given, or by its name; a file of two named columns is TSV, however called."""
    plain = languages and format_of_suffix(path) is None and (Path(path).is_file() or "://" in path)
    return file_format or ("tsv" if plain else find_format(path))


def _frames(
    spec: str,
    source_language: str,
    file_format: str | None,
    columns: tuple[str, str] | None,
    part: Part | None = None,
) -> Iterator[pl.DataFrame]:
    path, languages = languages_of_spec(spec)
    if languages and sum(covers(source_language, tag) for tag in languages) != 1:
        which = "one of the two languages" if len(languages) == 2 else "a language by itself"
        raise UserError(f"{spec}: {which} must be the source language {source_language!r}")
    if languages and len(languages) == 1:
        if (kind := file_format or format_of_suffix(path) or "text") != "text":
            raise UserError(f"{spec}: a language by itself stands before plain text, a sentence a line, not {kind}")
        yield from map(alone, line_chunks(path, CHUNK))
        return
    kind = format_of(path, languages, file_format)
    if kind in ("text", "tmx", "zip"):
        if languages or columns:
            raise UserError(f"{path} names its languages itself: give it without languages or columns")
        path = aligned_in_zip(path) if kind == "zip" else path
        yield from tmx_pairs(path, source_language) if kind == "tmx" else aligned_pairs(path, source_language)
        return
    given = (path, source_language, columns, languages) if kind == "tsv" else (path,)
    row = 0
    for table in (TABLES | {"tsv": tsv_tables})[kind](*given, *([part] if part else [])):
        for pairs in table_pairs(table, path, source_language, columns, languages, row):
            # In no language, a sentence is nobody's target: it is counted as missing.
            target = pl.when(pl.col("language").is_not_null()).then("target").alias("target")
            yield pairs.with_columns(target, pl.col("language").fill_null("und"))
        row += len(table)


def line_chunks(path: str, size: int) -> Iterator[pl.Series]:
    """The lines of a text file, `size` at a time."""
    waiting = pl.Series("line", [], dtype=pl.String)
    for _, lines in text_lines(path):
        waiting = waiting.append(lines)
        while len(waiting) >= size:
            yield waiting[:size]
            waiting = waiting[size:]
    if len(waiting):
        yield waiting


def aligned_pairs(spec: str, source_language: str) -> Iterator[pl.DataFrame]:
    """Line-aligned text, one file a language: line i of each is the same sentence."""
    files = expand_languages(spec)
    paths = {required_tag(tag, spec): path for tag, path in files.items()}
    if len(paths) < len(files) or len(files) < 2:
        raise UserError(f"{spec} must name two different languages or more, found {' '.join(files)}")
    if not any(covers(source_language, tag) for tag in paths):
        raise UserError(f"{spec} lacks the source language {source_language!r}: add it to the braces")
    done = 0
    for columns in zip_longest(*(line_chunks(path, CHUNK) for path in paths.values())):
        lengths = [0 if column is None else len(column) for column in columns]
        if len(set(lengths)) > 1:
            ends, goes_on = (list(paths.values())[lengths.index(end(lengths))] for end in (min, max))
            raise UserError(
                f"{spec}: the files are not line-aligned: {ends} ends after line {done + min(lengths)} and {goes_on} "
                "goes on"
            )
        done += lengths[0]
        yield from wide_pairs(pl.DataFrame(dict(zip(paths, columns, strict=True))), spec, source_language)


def tmx_pairs(path: str, source_language: str) -> Iterator[pl.DataFrame]:
    """TMX: each `tu` holds the same sentence in several languages, one `tuv` each."""
    rows = []
    for variants in tmx_units(path):
        rows += _unit_pairs(variants, source_language)
        if len(rows) >= CHUNK:
            yield pl.DataFrame(rows, schema=PAIR, orient="row")
            rows = []
    if rows:
        yield pl.DataFrame(rows, schema=PAIR, orient="row")


def _unit_pairs(variants: list[tuple[str, str | None]], source_language: str) -> list[tuple]:
    """Each variant of the source language, or else of its variants, with each of the others."""
    own = {source_language} & {tag for tag, _ in variants} or {t for t, _ in variants if covers(source_language, t)}
    sources = [text for tag, text in variants if tag in own] or [None]
    pairs = [(source, tag, text) for source in sources for tag, text in variants if tag not in own]
    return pairs + [(source, ALONE, None) for source in sources if source is not None]


def tsv_tables(
    path: str,
    source_language: str,
    columns: tuple[str, str] | None,
    languages: tuple[str, str] | None,
    part: Part | None = None,
) -> Iterator[pl.DataFrame]:
    """TSV without quoting: with a header, or of two columns whose languages are given or stand in the file's name.

    Also as Tatoeba has it, where a number stands before each sentence, and manythings.org, with its licence behind.
    """
    first = next(text_lines(path, (0, 1)), None)
    if first is None:
        return
    names, has_header = _tsv_columns(path, first[1][0], source_language, columns, languages)
    for number, lines in text_lines(path, part):
        if number == 1:
            number, lines = number + has_header, lines[int(has_header) :]
        tabs = lines.str.count_matches("\t", literal=True)
        bad = ((tabs != len(names) - 1) & (lines != "")).arg_true()
        if len(bad):
            raise UserError(
                f"{path}, line {number + bad[0]}: expected {len(names)} columns between tabs, found {tabs[bad[0]] + 1}"
            )
        yield lines.str.split_exact("\t", len(names) - 1).struct.rename_fields(names).struct.unnest()


def _tsv_columns(
    path: str,
    first: str,
    source_language: str,
    columns: tuple[str, str] | None,
    languages: tuple[str, str] | None,
) -> tuple[list[str], bool]:
    """The columns' names, and whether the first line is a header: one with the names of columns or languages."""
    cells = [cell.strip() for cell in first.split("\t")]
    lower, tags = [cell.lower() for cell in cells], [language_of_word(cell) for cell in cells]
    if columns is not None:
        if lacking := set(columns) - set(cells):
            raise UserError(f"{path} lacks the column {min(lacking)!r}: its first line is {', '.join(cells)[:200]}")
        return distinct(cells, f"{path}, line 1"), True
    if any(set(pair) <= set(lower) for pair in COLUMN_PAIRS):
        return distinct(lower, f"{path}, line 1"), True
    if len(cells) > 1 and any(tag and covers(source_language, tag) for tag in tags) and (len(cells) > 2 or all(tags)):
        return distinct(cells, f"{path}, line 1"), True
    numbered = len(cells) == 4 and cells[0].isdecimal() and cells[2].isdecimal()
    if len(cells) != 2 and not numbered and not (len(cells) == 3 and cells[2].startswith("CC-BY")):
        raise UserError(
            f"{path}, line 1: found {len(cells)} columns: expected source TAB target, or a header: source, target and "
            f"language, or language codes with {source_language!r} among them"
        )
    languages = languages or named_languages(path, source_language)
    if languages is None:
        raise UserError(
            f"{path}: neither a header nor the name says the two languages: say them in the order of the columns, as "
            f"in --corpus {source_language}+it={Path(path).name}"
        )
    names = ["source", "target"] if covers(source_language, languages[0]) else ["target", "source"]
    if numbered:
        return ["number 1", names[0], "number 2", names[1]], False
    return [*names, "licence"][: len(cells)], False
