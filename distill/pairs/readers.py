"""Readers: a corpus of any kind to chunks of pairs, with file and line in every error.

Every reader yields Polars frames of bounded size with the columns `source`, `language`, `target` (strings). A null
sentence is one that the corpus says is missing. Nothing is judged here: cleaning.py does that.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from xml.etree import ElementTree

import datasets
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from distill.command import UserError
from distill.languages import languages_of_name, required_tag, standard_tag
from distill.pairs.schemas import table_pairs, wide_pairs
from distill.text_files import (
    BLOCK,
    OPENERS,
    decode,
    expand_languages,
    opened,
    read_lines,
    reading,
    text_blocks,
    text_lines,
)

CHUNK = 100_000  # lines or rows of a frame
NESTED_CHUNK = 1 << 15  # rows of a frame where one row holds many languages
FORMATS = {
    "text": [],  # a brace path, whatever its suffix
    "tsv": [".tsv"],
    "csv": [".csv"],
    "jsonl": [".jsonl", ".ndjson", ".json"],
    "parquet": [".parquet"],
    "tmx": [".tmx"],
    "arrow": [],  # a folder of save_to_disk
    "hub": [],
}
HUB_SPEC = re.compile(r"(?P<name>[^:@]+)(@(?P<revision>[^:]+))?(:(?P<config>[^:]*))?(:(?P<split>[^:]*))?")
# Half of an escaped character beyond U+FFFF, which Polars would mend in silence and Python cannot write.
LONE_SURROGATE = re.compile(
    r"\\u[dD][89abAB][\da-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][\da-fA-F]{2})\\u[dD][c-fC-F]"
)
PAIR = {"source": pl.String, "language": pl.String, "target": pl.String}


def read_corpus(
    spec: str, source_language: str, file_format: str | None = None, columns: tuple[str, str] | None = None
) -> Iterator[pl.DataFrame]:
    """Every pair of a corpus, in all its languages (tags in standard form), in chunks.

    `columns` names the source and target column of a table. UserError for what cannot be read.
    """
    kind = file_format or find_format(spec)
    if kind == "text":
        yield from aligned_pairs(spec, source_language)
    elif kind == "tmx":
        yield from tmx_pairs(spec, source_language)
    else:
        row = 0
        for table in tsv_tables(spec, source_language) if kind == "tsv" else TABLES[kind](spec):
            for pairs in table_pairs(table, spec, source_language, None if kind == "tsv" else columns, row):
                # In no language, a sentence is nobody's target: it is counted as missing.
                target = pl.when(pl.col("language").is_not_null()).then("target").alias("target")
                yield pairs.with_columns(target, pl.col("language").fill_null("und"))
            row += len(table)


def find_format(spec: str) -> str:
    """The format of a corpus by its name; UserError where the name says none."""
    path = Path(spec)
    suffixes = path.suffixes[:-1] if path.suffix in OPENERS else path.suffixes
    found = next((name for name, endings in FORMATS.items() if suffixes and suffixes[-1] in endings), None)
    if "{" in spec and "}" in spec:
        if found is not None:
            raise UserError(f"{spec}: braces are for line-aligned text, not for {found} files: give one file a corpus")
        return "text"
    if path.is_dir():
        saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
        return "arrow" if saved else "hub"
    if found is not None:
        return found
    hub = HUB_SPEC.fullmatch(spec)
    if hub and (Path(hub["name"]).is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", hub["name"])) and not path.exists():
        return "hub"
    missing = "does not exist" if not path.exists() else "has a name that says no format"
    raise UserError(
        f"{spec} {missing}: give .parquet, .jsonl, .csv, .tsv, .tmx (also as .gz, .xz, .zst), a saved Arrow folder, a "
        "hub id, or quoted braces for line-aligned files, as in 'train.{en,de}.gz'; --format overrides the name"
    )


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
    if source_language not in paths:
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
    rows, body, units = [], None, 0
    with opened(path) as file:
        try:
            for event, element in ElementTree.iterparse(file, events=("start", "end")):
                name = element.tag.rpartition("}")[2]
                if event == "start":
                    body = element if name == "body" else body
                elif name == "tu":
                    units += 1
                    rows += _unit_pairs(element, f"{path}, translation unit {units}", source_language)
                    if body is not None:
                        body.clear()
                    if len(rows) >= CHUNK:
                        yield pl.DataFrame(rows, schema=PAIR, orient="row")
                        rows = []
        except ElementTree.ParseError as error:
            line, column = error.position
            reason = str(error).partition(":")[0]
            raise UserError(
                f"{path}, line {line}, column {column + 1} is no XML ({reason}): mend or fetch it"
            ) from None
    if not units:
        raise UserError(f"{path} holds no translation unit (<tu>): this is no TMX file")
    if rows:
        yield pl.DataFrame(rows, schema=PAIR, orient="row")


def _unit_pairs(unit: ElementTree.Element, where: str, source_language: str) -> list[tuple]:
    variants = []
    for variant in unit.iter():
        if variant.tag.rpartition("}")[2] != "tuv":
            continue
        tag = variant.get("{http://www.w3.org/XML/1998/namespace}lang") or variant.get("lang")
        if tag is None:
            raise UserError(f"{where} has a <tuv> without xml:lang: add it")
        segment = next((child for child in variant if child.tag.rpartition("}")[2] == "seg"), None)
        variants.append((standard_tag(tag) or tag, None if segment is None else _segment_text(segment)))
    sources = [text for tag, text in variants if tag == source_language] or [None]
    return [(source, tag, text) for source in sources for tag, text in variants if tag != source_language]


def _segment_text(element: ElementTree.Element) -> str:
    """A segment's text without the codes of another format that <bpt>, <ept>, <it>, <ph> and <ut> carry."""
    parts = [element.text or ""]
    for child in element:
        if child.tag.rpartition("}")[2] in ("hi", "sub"):
            parts.append(_segment_text(child))
        parts.append(child.tail or "")
    return "".join(parts)


# ---------------------------------------------------------------- tables: a file to frames with its own columns


def tsv_tables(path: str, source_language: str) -> Iterator[pl.DataFrame]:
    """TSV without quoting: a header of language codes, or source TAB target with the languages in the file's name."""
    names = None
    for number, lines in text_lines(path):
        if names is None:
            names, has_header = _tsv_columns(path, lines[0], source_language)
            number, lines = number + has_header, lines[int(has_header) :]
        tabs = lines.str.count_matches("\t", literal=True)
        bad = ((tabs != len(names) - 1) & (lines != "")).arg_true()
        if len(bad):
            raise UserError(
                f"{path}, line {number + bad[0]}: expected {len(names)} columns between tabs, found {tabs[bad[0]] + 1}"
            )
        yield lines.str.split_exact("\t", len(names) - 1).struct.rename_fields(names).struct.unnest()


def _tsv_columns(path: str, first: str, source_language: str) -> tuple[list[str], bool]:
    """The columns' names, and whether the first line is a header."""
    cells = [cell.strip() for cell in first.split("\t")]
    if len(cells) > 1 and source_language in map(standard_tag, cells):
        return _distinct(cells, f"{path}, line 1"), True
    languages = languages_of_name(Path(path).name, source_language)
    if len(cells) != 2:
        raise UserError(
            f"{path}, line 1: found {len(cells)} columns: expected source TAB target, or a header of language codes "
            f"with {source_language!r} among them"
        )
    if languages is None:
        raise UserError(f"{path}: the name must say the two languages, as in talks-{source_language}-it.tsv.gz")
    target, source_first = languages
    return ([source_language, target] if source_first else [target, source_language]), False


def _distinct(names: list[str], where: str) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{where}: the header names {', '.join(map(repr, twice))} more than once: rename a column")
    return names


def csv_tables(path: str) -> Iterator[pl.DataFrame]:
    """CSV with a header; every column is read as strings."""
    first = next((lines[0] for _, lines in text_lines(path)), None)
    if first is None:
        return
    header = _distinct(next(csv.reader([first])), f"{path}, line 1")
    strings = pa.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()))
    with opened(path) as file:
        options = pa.csv.ParseOptions(newlines_in_values=True)
        serial = pa.csv.ReadOptions(use_threads=False, block_size=BLOCK)  # threads lose the number of a bad row
        try:
            for batch in pa.csv.open_csv(file, serial, options, strings):
                yield pl.DataFrame(pl.from_arrow(batch))
        except pa.ArrowInvalid as error:
            for _ in text_lines(path):  # says in which line the text is not UTF-8
                pass
            found = re.search(r"Row #(\d+): (.*)", str(error))
            where, reason = (f", row {found[1]} with the header", found[2]) if found else ("", str(error))
            raise UserError(f"{path}{where} is no sound CSV ({reason}): mend or remove it") from None


def jsonl_tables(path: str) -> Iterator[pl.DataFrame]:
    """JSON lines: one object a line."""
    for number, block in text_blocks(path):
        text = decode(path, number, block)
        if number == 1 and text.lstrip().startswith("["):
            raise UserError(f"{path} is one JSON array: write one object a line, as in 'jq -c .[]'")
        if LONE_SURROGATE.search(text) and (fault := _json_fault(path, number, text)):
            raise UserError(fault)
        try:
            yield pl.read_ndjson(text.encode(), infer_schema_length=None)
        except pl.exceptions.PolarsError as error:
            raise UserError(
                _json_fault(path, number, text) or f"{path} cannot be read: {str(error).splitlines()[0]}"
            ) from None


def _json_fault(path: str, number: int, text: str) -> str | None:
    """What is wrong, and in which line of a block; None where every line by itself is sound."""
    for line, content in enumerate(text.split("\n"), number):
        try:
            if content.strip() and not isinstance(json.loads(content), dict):
                return f"{path}, line {line} is no JSON object: write one object a line"
            json.dumps(json.loads(content or "{}"), ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            return f"{path}, line {line} is no sound JSON ({error}): mend or remove the line"
    return None


def parquet_tables(path: str) -> Iterator[pl.DataFrame]:
    with opened(path) as file, pq.ParquetFile(file) as parquet:
        nested = any(pa.types.is_nested(field.type) for field in parquet.schema_arrow)
        for batch in parquet.iter_batches(NESTED_CHUNK if nested else CHUNK, use_threads=False):
            yield pl.DataFrame(pl.from_arrow(batch))


def arrow_tables(path: str) -> Iterator[pl.DataFrame]:
    """A folder of `save_to_disk`: all splits, one after the other."""
    with reading(path):
        try:
            saved = datasets.load_from_disk(path)
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no whole Arrow folder ({error}): save it again") from None
        for split in saved.values() if isinstance(saved, dict) else [saved]:
            yield from _dataset_tables(split)


def hub_tables(spec: str) -> Iterator[pl.DataFrame]:
    """A hub dataset `id[@revision][:config[:split]]`, or a local folder that `datasets.load_dataset` takes."""
    match = HUB_SPEC.fullmatch(spec)
    if match is None:
        raise UserError(f"{spec} is no hub id: write id, id:config or id:config:split")
    name, revision, config, split = match.group("name", "revision", "config", "split")
    try:
        dataset = datasets.load_dataset(name, config or None, split=split or "train", revision=revision)
    except Exception as error:  # the builders raise anything; each means that this id cannot be had
        if "scripts are no longer supported" in str(error):
            raise UserError(
                f"{name} is a script dataset, which datasets 4 and later refuse: give its Parquet copy, "
                f"{name}@refs/convert/parquet, or download its raw file and give the path"
            ) from None
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise UserError(f"{spec} cannot be loaded ({reason}): check id:config:split and the network") from None
    yield from _dataset_tables(dataset)


def _dataset_tables(dataset: datasets.Dataset) -> Iterator[pl.DataFrame]:
    for table in dataset.with_format("arrow").iter(NESTED_CHUNK):
        yield pl.DataFrame(pl.from_arrow(table))


TABLES = {"csv": csv_tables, "jsonl": jsonl_tables, "parquet": parquet_tables, "arrow": arrow_tables, "hub": hub_tables}


# ---------------------------------------------------------------- tables of sentence1 and sentence2


def sentence_tables(path: str) -> Iterable[pl.DataFrame]:
    """Frames of a file, saved folder or hub id (split `test` if none is named) with sentence1, sentence2, a score.

    CSV needs no header; UserError where a row has other columns. Other kinds have the columns that they name.
    """
    suffix = next((suffix for suffix in reversed(Path(path).suffixes) if suffix not in OPENERS), None)
    kind = next((kind for kind in ("jsonl", "parquet") if suffix in FORMATS[kind]), None)
    if kind:
        return TABLES[kind](path)
    if suffix in (".csv", ".tsv") or Path(path).is_file():
        return [_sentence_csv(path, "\t" if suffix == ".tsv" else ",")]
    if (Path(path) / "state.json").is_file():
        return TABLES["arrow"](path)
    if Path(path.partition(":")[0]).is_dir() or re.fullmatch(r"\w[\w.-]*/[\w.-]+([:@].*)?", path):
        name, config, split = [*path.split(":"), "", ""][:3]
        return TABLES["hub"](f"{name}:{config}:{split or 'test'}")
    raise UserError(f"{path} does not exist: give .csv, .tsv, .jsonl, .parquet, a saved Arrow folder or a hub id")


def _sentence_csv(path: str, delimiter: str) -> pl.DataFrame:
    """A CSV of three columns, or of more under a header that names them; as TSV it has no quotes."""
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    try:
        rows = list(csv.reader(io.StringIO("\n".join(read_lines(path))), delimiter=delimiter, quoting=quoting))
    except csv.Error as error:
        raise UserError(f"{path} is no sound table ({error}): mend it") from None
    header = ["sentence1", "sentence2", "score"]
    if rows and set(header[:2]) <= set(rows[0]):
        header, *rows = rows
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise UserError(f"{path}, row {number}: expected {delimiter.join(header)}, found {row}")
    return pl.DataFrame(rows, schema=dict.fromkeys(header, pl.String), orient="row")
