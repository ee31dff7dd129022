"""Readers: a corpus of any kind to chunks of pairs, with file and line in every error.

Every reader yields Polars frames of bounded size with the columns `source`, `language`, `target` (strings). A null
sentence is one that the corpus says is missing. Nothing is judged here: cleaning.py does that.
"""

import csv
import json
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from xml.etree import ElementTree

import datasets
import polars as pl
import polars.selectors as cs
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from distill.folders import UserError, expand_languages
from distill.languages import languages_of_name, required_tag, standard_tag
from distill.text_files import BLOCK, OPENERS, decode, opened, reading, text_blocks, text_lines

CHUNK = 100_000  # lines or rows of a frame
NESTED_CHUNK = 1 << 15  # rows of a frame where one row holds many languages
MISSING = ["", "__NULL__", "_ _ NULL _ _"]  # what tables write where a translation is missing
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
            raise UserError(
                f"{spec}: braces stand for line-aligned text, not for {found} files: give one file a corpus"
            )
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


TABLES = {
    "csv": csv_tables,
    "jsonl": jsonl_tables,
    "parquet": parquet_tables,
    "arrow": arrow_tables,
    "hub": hub_tables,
}


# ---------------------------------------------------------------- schemas: a table's columns to pairs


def table_pairs(
    table: pl.DataFrame, spec: str, source_language: str, columns: tuple[str, str] | None = None, row: int = 0
) -> Iterator[pl.DataFrame]:
    """The pairs of a table whose first row is row `row` of the corpus; its schema is found from its columns."""
    table = table.with_columns((cs.categorical() | cs.enum()).cast(pl.String))
    names = table.columns
    nested = next((name for name in ("translations", "translation") if name in names), None)
    if columns is not None or {"english", "non_english"} <= set(names) or {"source", "target"} <= set(names):
        yield column_pairs(table, spec, source_language, columns)
    elif {"source", "targets"} <= set(names):
        yield _grouped_pairs(table, spec)
    elif nested and isinstance(table.schema[nested], pl.Struct):
        inner = table[nested].struct.unnest()
        if {"language", "translation"} <= set(inner.columns):
            yield _ted_pairs(inner, spec, source_language, row)
        else:
            yield from wide_pairs(_with_nulls(inner), spec, source_language)
    elif source_language in map(standard_tag, names):
        yield from wide_pairs(_with_nulls(table), spec, source_language)
    else:
        raise UserError(
            f"{spec} has the columns {', '.join(names)}: expected one of translations (TED), translation (OPUS), "
            f"english and non_english, source and target, or a column per language with {source_language!r} among "
            "them; or name two with --source_column and --target_column"
        )


def wide_pairs(table: pl.DataFrame, spec: str, source_language: str) -> Iterator[pl.DataFrame]:
    """A column per language. In a table of three languages or more a null target is no pair: it was never there."""
    tags = {name: standard_tag(name) for name, dtype in table.schema.items() if dtype in (pl.String, pl.Null)}
    by_tag = {tag: name for name, tag in tags.items() if tag}
    twice = [name for name, tag in tags.items() if tag and by_tag[tag] != name]
    if twice:
        raise UserError(f"{spec}: the columns {twice[0]} and {by_tag[tags[twice[0]]]} name the same language: drop one")
    source = by_tag.pop(source_language, None)
    if source is None:
        raise UserError(f"{spec} lacks the source language {source_language!r}: it has {' '.join(by_tag) or 'none'}")
    for tag, name in by_tag.items():
        pairs = table.select(
            source=pl.col(source).cast(pl.String), language=pl.lit(tag), target=pl.col(name).cast(pl.String)
        )
        yield pairs.filter(pl.col("target").is_not_null()) if len(by_tag) > 1 else pairs


def _with_nulls(table: pl.DataFrame) -> pl.DataFrame:
    """Null for what stands in a table where a translation is missing."""
    return table.with_columns(pl.col(pl.String).replace(dict.fromkeys(MISSING)))


def _ted_pairs(table: pl.DataFrame, spec: str, source_language: str, row: int) -> pl.DataFrame:
    """TED schema: lists `language` and `translation` of equal length. A row without the source has null for it."""
    lengths = table.select(pl.all().list.len().fill_null(0))
    ragged = (lengths["language"] != lengths["translation"]).arg_true()
    if len(ragged):
        raise UserError(
            f"{spec}, row {row + ragged[0] + 1}: {lengths['language'][ragged[0]]} languages but "
            f"{lengths['translation'][ragged[0]]} translations: mend or remove the row"
        )
    sentences = table.select("language", "translation").with_row_index("row").explode("language", "translation")
    sentences = sentences.filter(pl.any_horizontal(pl.col("language", "translation").is_not_null()))
    sentences = sentences.with_columns(_standard(pl.col("language"), sentences["language"]))
    sources = sentences.filter(language=source_language).unique("row", keep="first", maintain_order=True)
    at = pl.Series([None], dtype=pl.UInt32).extend_constant(None, max(len(table) - 1, 0))
    at = at.scatter(sources["row"], pl.int_range(len(sources), dtype=pl.UInt32, eager=True))
    targets = sentences.filter(pl.col("language").ne_missing(source_language))
    return targets.select(
        source=sources["translation"].gather(at.gather(targets["row"])), language="language", target="translation"
    )


def _grouped_pairs(table: pl.DataFrame, spec: str) -> pl.DataFrame:
    """What build_pairs.py itself writes: `source` and a list `targets` of {language, sentence}."""
    pairs = table.select("source", "targets").explode("targets").drop_nulls("targets")
    if not {"language", "sentence"} <= {field.name for field in getattr(pairs.schema["targets"], "fields", [])}:
        raise UserError(f"{spec} has columns source and targets, but its targets are not lists of language, sentence")
    return pairs.select("source", pl.col("targets").struct.unnest()).select("source", "language", target="sentence")


def column_pairs(
    table: pl.DataFrame, spec: str, source_language: str, columns: tuple[str, str] | None = None
) -> pl.DataFrame:
    """Two columns of sentences; the target language from a column `language`, else from the corpus's name."""
    languages = next(filter(None, (languages_of_name(part, source_language) for part in _names(spec))), None)
    if columns is not None:
        source, target = columns
    elif "english" in table.columns:
        source, target = ("english", "non_english") if source_language == "en" else ("non_english", "english")
    else:
        source, target = "source", "target"
    if lacking := [name for name in (source, target) if name not in table.columns]:
        raise UserError(f"{spec} lacks the column {lacking[0]!r}: it has {', '.join(table.columns)}")
    if bad := [name for name in (source, target) if table.schema[name] not in (pl.String, pl.Null)]:
        raise UserError(f"{spec}: the column {bad[0]!r} holds {table.schema[bad[0]]}, not sentences")
    if table.schema.get("language") == pl.String:
        language = _standard(pl.col("language"), table["language"])
    elif languages is not None:
        language = pl.lit(languages[0])
    else:
        raise UserError(
            f"{spec}: nothing names the target language of the column {target!r}: put both languages in the name or "
            f"config, as in {source_language}-it, or add a column 'language'"
        )
    pairs = table.select(
        source=pl.col(source).cast(pl.String), language=language, target=pl.col(target).cast(pl.String)
    )
    return pairs.filter(pl.col("language").ne_missing(source_language))


def _names(spec: str) -> list[str]:
    """Where a corpus's languages may be named, the likeliest place first: hub config, file, folder."""
    path, _, config = spec.partition(":")
    return [config, Path(path).name, Path(path).parent.name]


def _standard(column: pl.Expr, values: pl.Series) -> pl.Expr:
    """A column of language tags in standard form; what is no known tag stays as it is."""
    standard = {tag: standard_tag(tag) or tag for tag in values.drop_nulls().unique().to_list()}
    return column.replace({tag: new for tag, new in standard.items() if tag != new})
