"""Tables: a file of any format, a saved folder or a hub dataset to frames with its own columns, whoever asks."""

import csv
import io
import itertools
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import polars as pl
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from distill.command import UserError
from distill.folders import read_json
from distill.pairs.tmx import tmx_units
from distill.text_files import (
    MAX_LINE,
    OPENERS,
    PART,
    Part,
    decode,
    expand_languages,
    file_name,
    opened,
    parts_of_text,
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
    "zip": [".zip"],  # of line-aligned text, as OPUS has it
    "arrow": [],  # a folder of save_to_disk
    "mined": [],  # a folder of mine_pairs.py
    "hub": [],
}
MINED = "mined pairs"  # the kind of folder that mine_pairs.py makes
MINED_FILE = "pairs.parquet"
HUB_SPEC = re.compile(r"(?P<name>[^:@]+)(@(?P<revision>[^:]+))?(:(?P<config>[^:]*))?(:(?P<split>[^:]*))?")
# Half of an escaped character beyond U+FFFF, which Polars would mend in silence and Python cannot write.
LONE_SURROGATE = re.compile(
    r"\\u[dD][89abAB][\da-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][\da-fA-F]{2})\\u[dD][c-fC-F]"
)


def format_of_suffix(path: str) -> str | None:
    """The format that a file's name ends in, packed or not."""
    suffixes = (suffix.lower() for suffix in reversed(file_name(path).suffixes))
    suffix = next((suffix for suffix in suffixes if suffix not in OPENERS), None)
    return next((name for name, endings in FORMATS.items() if suffix in endings), None)


def find_format(spec: str) -> str:
    """The format of a corpus by its name; UserError where the name says none."""
    path, found = Path(spec), format_of_suffix(spec)
    if "{" in spec and "}" in spec:
        if found is not None:
            raise UserError(f"{spec}: braces are for line-aligned text, not for {found} files: give one file a corpus")
        return "text"
    if path.is_dir():
        saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
        mined = (path / MINED_FILE).is_file() and read_json(path / "args.json", {}).get("kind") == MINED
        return "arrow" if saved else "mined" if mined else "hub"
    if found is not None:
        return found
    hub = HUB_SPEC.fullmatch(spec)
    if hub and (Path(hub["name"]).is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", hub["name"])) and not path.exists():
        return "hub"
    missing = "does not exist" if not path.exists() else "has a name that says no format"
    raise UserError(
        f"{spec} {missing}: give .parquet, .jsonl, .csv, .tsv, .tmx (also as .gz, .xz, .zst), a saved Arrow folder, a "
        "hub id, a .zip of OPUS, or quoted braces for line-aligned files, as in 'train.{en,de}.gz'; --format overrides "
        "the name"
    )


def distinct(names: list[str], where: str) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{where}: the header names {', '.join(map(repr, twice))} more than once: rename a column")
    return names


def csv_rows(path: str, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV, each with the line it begins in; of TSV, which has no quotes, too.

    Strict: a quote that is never closed would swallow the rows up to the next one. UserError with the line.
    """
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    lines = (f"{line}\n" for _, block in text_lines(path) for line in block)
    rows = csv.reader(lines, delimiter=delimiter, quoting=quoting, skipinitialspace=True, strict=True)
    csv.field_size_limit(MAX_LINE)
    while True:
        begins = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise UserError(f"{path}, line {begins} begins a row with unsound quotes ({error}): mend it") from None
        if row is None:
            return
        yield begins, row


def _csv_frames(path: str, header: list[str], rows: Iterator[tuple[int, list[str]]]) -> Iterator[pl.DataFrame]:
    """Rows under a header as strings, in chunks; columns that it does not name are left out."""
    named = distinct([name for name in header if name], f"{path}, line 1")
    schema = dict.fromkeys((name or f"unnamed {i}" for i, name in enumerate(header)), pl.String)
    whole = True
    while whole:
        chunk = [(line, row or [""] * len(header)) for line, row in itertools.islice(rows, CHUNK)]
        for line, row in chunk:
            if len(row) != len(header):
                expected = f"{len(header)} columns ({','.join(header)})"
                raise UserError(f"{path}, line {line}: expected {expected}, found {len(row)}: mend or remove it")
        yield pl.DataFrame([row for _, row in chunk], schema=schema, orient="row").select(named)
        whole = len(chunk) == CHUNK


def csv_tables(path: str, delimiter: str = ",") -> Iterator[pl.DataFrame]:
    """CSV, or TSV, with a header; every column is read as strings."""
    rows = csv_rows(path, delimiter)
    _, header = next(rows, (0, None))
    if header is not None:
        yield from _csv_frames(path, [name.strip() for name in header], rows)


def jsonl_tables(path: str, part: Part | None = None) -> Iterator[pl.DataFrame]:
    """JSON lines: one object a line. A value that is no string is none in a column of strings either: UserError."""
    for number, block in text_blocks(path, part):
        text = decode(path, number, block)
        if number == 1 and text.lstrip().startswith("["):
            raise UserError(f"{path} is one JSON array: write one object a line, as in 'jq -c .[]'")
        # Arrow's reader dies of a null before the first object.
        if (text.lstrip().startswith("null") or LONE_SURROGATE.search(text)) and (
            fault := _json_fault(path, number, text)
        ):
            raise UserError(fault)
        if not text.strip():
            continue
        whole = pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1)
        try:
            table = pa.json.read_json(io.BytesIO(text.encode()), whole)
        except pa.ArrowInvalid as error:
            mixed = re.search(r"Column\(/(.*)\) (.*) in row (\d+)", str(error))
            if mixed:
                line = _line_of_row(text, int(mixed[3]))
                said = f"{path}, line {number + line}: the column {mixed[1]} {mixed[2]}: mend or remove the line"
            raise UserError(
                said if mixed else _json_fault(path, number, text) or f"{path} cannot be read: {error}"
            ) from None
        yield pl.DataFrame(pl.from_arrow(table))


def _line_of_row(text: str, row: int) -> int:
    """The line of a row, both from 0: lines of nothing are no rows."""
    return [i for i, line in enumerate(text.split("\n")) if line.strip()][row]


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


def parquet_tables(path: str, part: Part | None = None) -> Iterator[pl.DataFrame]:
    """The rows of a Parquet file, or of some of its row groups."""
    with opened(path) as file, pq.ParquetFile(file) as parquet:
        nested = any(pa.types.is_nested(field.type) for field in parquet.schema_arrow)
        groups = range(*(part or (0, parquet.num_row_groups)))
        for batch in parquet.iter_batches(NESTED_CHUNK if nested else CHUNK, row_groups=groups, use_threads=False):
            yield pl.DataFrame(pl.from_arrow(batch))


def parts_of_parquet(path: str) -> list[Part]:
    """The row groups of a plain file, as many in a part as hold PART bytes before they were packed."""
    with opened(path) as file, pq.ParquetFile(file) as parquet:
        sizes = [parquet.metadata.row_group(i).total_byte_size for i in range(parquet.num_row_groups)]
    before = [0, *itertools.accumulate(sizes)]
    starts = [i for i in range(len(sizes)) if i == 0 or before[i] // PART > before[i - 1] // PART]
    return list(zip(starts, [*starts[1:], len(sizes)], strict=True))


def arrow_tables(path: str) -> Iterator[pl.DataFrame]:
    """A folder of `save_to_disk`: all splits, one after the other."""
    saved = saved_dataset(path)
    with reading(path):
        for split in saved.values() if isinstance(saved, dict) else [saved]:
            yield from _dataset_tables(split)


def saved_dataset(path: str) -> datasets.Dataset | datasets.DatasetDict:
    """A folder of `save_to_disk`; UserError where it is not whole."""
    with reading(path):
        try:
            return datasets.load_from_disk(path)
        except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is no whole Arrow folder ({error}): save it again") from None


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


def mined_tables(folder: str) -> Iterator[pl.DataFrame]:
    """A folder of mine_pairs.py."""
    return parquet_tables(str(Path(folder) / MINED_FILE))


def aligned_in_zip(path: str) -> str:
    """The line-aligned files in an archive of OPUS, as a brace path: `TED2020.en-it.en` and `TED2020.en-it.it`."""
    with reading(path), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    found = [match for name in names if (match := re.fullmatch(r"(.*[.](\w+)-(\w+))[.](\2|\3)", name))]
    stems = {match[1]: sorted(match.group(2, 3)) for match in found}
    if len(stems) != 1 or len(found) != 2:
        inside = ", ".join(names[:5]) or "nothing"
        raise UserError(
            f"{path} holds no two files like ted.en-it.en and ted.en-it.it, but {inside}: name those that are meant, "
            f"as in 'zip://{{en,it}}.txt::{path}', or a table as en+it=zip://NAME::{path}"
        )
    [(stem, tags)] = stems.items()
    return f"zip://{stem}.{{{','.join(tags)}}}::{path}"


PARTS = {"jsonl": parts_of_text, "tsv": parts_of_text, "parquet": parts_of_parquet}  # formats whose files have parts
TABLES = {"csv": csv_tables, "jsonl": jsonl_tables, "parquet": parquet_tables}
TABLES |= {"arrow": arrow_tables, "mined": mined_tables, "hub": hub_tables}


def named_tables(path: str) -> Iterator[pl.DataFrame]:
    """Frames of a table, of any kind, that names its columns; UserError for what is none."""
    kind = find_format(path)
    if kind == "tsv":
        return csv_tables(path, "\t")
    if kind not in TABLES:
        raise UserError(
            f"{path} has no columns with names: give .csv, .tsv, .jsonl, .parquet, an Arrow folder, a hub id"
        )
    return TABLES[kind](path)


def texts(path: str) -> Iterator[pl.Series]:
    """Every text of a file, saved folder or hub id, whatever it is in: lines, cells, strings at any depth, segments."""
    kind = format_of_suffix(path) or ("text" if Path(path).is_file() else find_format(path))
    if kind == "tmx":
        for variants in tmx_units(path):
            yield pl.Series([text for _, text in variants], dtype=pl.String)
    elif kind == "csv":
        for _, row in csv_rows(path):
            yield pl.Series(row)
    elif kind in ("text", "tsv", "zip"):
        for file in expand_languages(aligned_in_zip(path)).values() if kind == "zip" else [path]:
            for _, lines in text_lines(file):
                yield lines.str.split("\t").explode() if kind == "tsv" else lines
    else:
        for table in TABLES[kind](path):
            yield from (text for column in table for text in _strings(column))


def _strings(column: pl.Series) -> Iterator[pl.Series]:
    """The strings in a column, also in its lists and structs."""
    if isinstance(column.dtype, pl.List | pl.Array):
        yield from _strings(column.explode())
    elif isinstance(column.dtype, pl.Struct):
        yield from (text for field in column.struct.unnest() for text in _strings(field))
    elif column.dtype in (pl.String, pl.Categorical, pl.Enum):
        yield column.cast(pl.String)


# ---------------------------------------------------------------- tables of sentence1 and sentence2


def sentence_tables(path: str) -> Iterable[pl.DataFrame]:
    """Frames of a file, saved folder or hub id (split `test` if none is named) with sentence1, sentence2, a score.

    CSV needs no header; UserError where a row has other columns. Other kinds have the columns that they name.
    """
    kind = format_of_suffix(path)
    if kind in ("jsonl", "parquet"):
        return TABLES[kind](path)
    if kind in ("csv", "tsv") or Path(path).is_file():
        return _sentence_csv(path, "\t" if kind == "tsv" else ",")
    if (Path(path) / "state.json").is_file():
        return TABLES["arrow"](path)
    if Path(path.partition(":")[0]).is_dir() or re.fullmatch(r"\w[\w.-]*/[\w.-]+([:@].*)?", path):
        name, config, split = [*path.split(":"), "", ""][:3]
        return TABLES["hub"](f"{name}:{config}:{split or 'test'}")
    raise UserError(f"{path} does not exist: give .csv, .tsv, .jsonl, .parquet, a saved Arrow folder or a hub id")


def _sentence_csv(path: str, delimiter: str) -> Iterator[pl.DataFrame]:
    """A CSV of three columns, or of more under a header that names them; as TSV it has no quotes."""
    header, rows = ["sentence1", "sentence2", "score"], csv_rows(path, delimiter)
    first = next(rows, None)
    names = [name.strip().lower() for name in first[1]] if first else []
    if set(header[:2]) <= set(names):
        header, first = names, None
    return _csv_frames(path, header, itertools.chain([first] if first else [], rows))
