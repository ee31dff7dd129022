"""Schemas: the columns of a table to pairs, whichever of the field's layouts they are in."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from distill.command import UserError
from distill.languages import covers, language_of_word, languages_of_name

MISSING = ["", "__NULL__", "_ _ NULL _ _"]  # what tables write where a translation is missing
TEXT = (pl.String, pl.Null)  # types of a column of sentences, of which all may be missing
COLUMN_PAIRS = (("source", "target"), ("english", "non_english"))  # columns of sentences that name no language
ALONE = "source alone"  # in the place of a language, with no target: a source sentence by itself
NUMBERS = {"id", "no"}  # headers of languages, and as often of the numbers of rows


def table_pairs(
    table: pl.DataFrame,
    spec: str,
    source_language: str,
    columns: tuple[str, str] | None = None,
    languages: tuple[str, str] | None = None,
    row: int = 0,
) -> Iterator[pl.DataFrame]:
    """The pairs of a table whose first row is row `row` of the corpus; its schema is found from its columns.

    Beside them its source sentences by themselves, whether they have translations or not, in the language `ALONE`.
    `columns`: the source and the target column; `languages`: those of the two columns of sentences.
    """
    table = _with_nulls(table.cast({name: _plain(dtype) for name, dtype in table.schema.items()}))
    names = table.columns
    nested = next((name for name in ("translations", "translation") if name in names), None)
    if columns is not None or any(set(pair) <= set(names) for pair in COLUMN_PAIRS):
        yield from column_pairs(table, spec, source_language, columns, languages)
        return
    if languages is not None:
        raise UserError(f"{spec} names its languages itself: give it without {'+'.join(languages)}=")
    if {"source", "targets"} <= set(names):
        yield from grouped_pairs(table, spec)
    elif nested and isinstance(table.schema[nested], pl.Struct):
        inner = table[nested].struct.unnest()
        if {"language", "translation"} <= set(inner.columns):
            yield from _ted_pairs(inner, spec, source_language, row)
        else:
            yield from wide_pairs(_with_nulls(inner), spec, source_language)
    elif any(covers(source_language, tag) for tag in map(language_of_word, names) if tag):
        yield from wide_pairs(table, spec, source_language)
    else:
        raise UserError(
            f"{spec} has the columns {', '.join(names)}: expected one of translations (TED), translation (OPUS), "
            f"english and non_english, source and target, or a column per language with {source_language!r} among "
            "them; or name two with --source_column and --target_column"
        )


def _plain(dtype: pl.DataType) -> pl.DataType:
    """A type without what is but another way to store it: categories, lists of a fixed size."""
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return pl.String()
    if isinstance(dtype, pl.List | pl.Array):
        return pl.List(_plain(dtype.inner))
    if isinstance(dtype, pl.Struct):
        return pl.Struct({field.name: _plain(field.dtype) for field in dtype.fields})
    return dtype


def wide_pairs(table: pl.DataFrame, spec: str, source_language: str) -> Iterator[pl.DataFrame]:
    """A column per language. In a table of three languages or more a null target is no pair: it was never there.

    The source is the language's own column, else that of a variant. Pairs of a column of numbers are in no language.
    """
    tags = {name: language_of_word(name) for name, dtype in table.schema.items() if dtype in TEXT}
    by_tag = {tag: name for name, tag in tags.items() if tag}
    twice = [name for name, tag in tags.items() if tag and by_tag[tag] != name]
    if twice:
        raise UserError(f"{spec}: the columns {twice[0]} and {by_tag[tags[twice[0]]]} name the same language: drop one")
    of_source = sorted((tag for tag in by_tag if covers(source_language, tag)), key=len)
    if not of_source:
        raise UserError(f"{spec} lacks the source language {source_language!r}: it has {' '.join(by_tag) or 'none'}")
    source = by_tag.pop(of_source[0])
    yield alone(table[source])
    for tag, name in by_tag.items():
        sides = table.select(source=pl.col(source).cast(pl.String), target=pl.col(name).cast(pl.String))
        is_text = name.lower() not in NUMBERS or sides["target"].str.contains(r"\p{L}\s+\p{L}").any()
        pairs = sides.select("source", pl.lit(tag if is_text else f"column {name}").alias("language"), "target")
        yield pairs.filter(pl.col("target").is_not_null()) if len(by_tag) > 1 else pairs


def alone(sources: pl.Series) -> pl.DataFrame:
    """Source sentences by themselves; those that are missing left out."""
    there = sources.cast(pl.String).drop_nulls().to_frame("source")
    return there.with_columns(language=pl.lit(ALONE), target=pl.lit(None, pl.String))


def _with_nulls(table: pl.DataFrame) -> pl.DataFrame:
    """Null for what stands in a table where a translation is missing."""
    return table.with_columns(pl.col(pl.String).replace(dict.fromkeys(MISSING)))


def _ted_pairs(table: pl.DataFrame, spec: str, source_language: str, row: int) -> Iterator[pl.DataFrame]:
    """TED schema: lists `language` and `translation` of equal length. A row without the source has null for it."""
    table = table.select("language", "translation")
    if not all(isinstance(dtype, pl.List) for dtype in table.schema.values()):
        raise UserError(f"{spec} has translations with language and translation, but they are no lists")
    check_text({name: dtype.inner for name, dtype in table.schema.items()}, spec)
    table = table.cast(pl.List(pl.String))
    lengths = table.select(pl.all().list.len().fill_null(0))
    ragged = (lengths["language"] != lengths["translation"]).arg_true()
    if len(ragged):
        raise UserError(
            f"{spec}, row {row + ragged[0] + 1}: {lengths['language'][ragged[0]]} languages but "
            f"{lengths['translation'][ragged[0]]} translations: mend or remove the row"
        )
    sentences = table.with_row_index("row").explode("language", "translation")
    sentences = sentences.filter(pl.any_horizontal(pl.col("language", "translation").is_not_null()))
    sentences = sentences.with_columns(_standard(pl.col("language"), sentences["language"]))
    # Of a row's sentences in the source language its own comes before those of variants.
    of_source = [tag for tag in sentences["language"].drop_nulls().unique() if covers(source_language, tag)]
    sources = sentences.with_row_index("place").filter(pl.col("language").is_in(of_source))
    sources = sources.sort(pl.col("language").str.len_chars(), "place").unique("row", keep="first", maintain_order=True)
    at = pl.Series([None], dtype=pl.UInt32).extend_constant(None, max(len(table) - 1, 0))
    at = at.scatter(sources["row"], pl.int_range(len(sources), dtype=pl.UInt32, eager=True))
    targets = sentences.filter(~pl.int_range(pl.len()).is_in(sources["place"].implode()))
    yield alone(sources["translation"])
    yield targets.select(
        source=sources["translation"].gather(at.gather(targets["row"])), language="language", target="translation"
    )


def grouped_pairs(table: pl.DataFrame, spec: str) -> Iterator[pl.DataFrame]:
    """What build_pairs.py itself writes: `source` and a list `targets` of {language, sentence}."""
    listed = getattr(table.schema["targets"], "inner", None)
    fields = {field.name: field.dtype for field in getattr(listed, "fields", [])}
    if not {"language", "sentence"} <= fields.keys():
        raise UserError(f"{spec} has columns source and targets, but its targets are not lists of language, sentence")
    check_text({"source": table.schema["source"]} | {name: fields[name] for name in ("language", "sentence")}, spec)
    yield alone(table["source"])
    pairs = table.select("source", "targets").explode("targets").drop_nulls("targets")
    pairs = pairs.select("source", pl.col("targets").struct.unnest())
    yield pairs.select(pl.col("source", "language").cast(pl.String), target=pl.col("sentence").cast(pl.String))


def check_text(columns: dict[str, pl.DataType], spec: str) -> None:
    """UserError where a column that is to hold sentences or languages holds something else."""
    if bad := [name for name, dtype in columns.items() if dtype not in TEXT]:
        raise UserError(f"{spec}: the column {bad[0]!r} holds {columns[bad[0]]}, not sentences")


def column_pairs(
    table: pl.DataFrame,
    spec: str,
    source_language: str,
    columns: tuple[str, str] | None = None,
    languages: tuple[str, str] | None = None,
) -> Iterator[pl.DataFrame]:
    """Two columns of sentences; the target language from a column `language`, `languages`, or the corpus's name."""
    source, target = columns or next(pair for pair in COLUMN_PAIRS if set(pair) <= set(table.columns))
    if source == "english" and columns is None and not covers("en", source_language):
        source, target = target, source
    if lacking := [name for name in (source, target) if name not in table.columns]:
        raise UserError(f"{spec} lacks the column {lacking[0]!r}: it has {', '.join(table.columns)}")
    check_text({name: table.schema[name] for name in (source, target)}, spec)
    if table.schema.get("language") == pl.String:
        language = _standard(pl.col("language"), table["language"])
    elif languages := languages or named_languages(spec, source_language):
        language = pl.lit(next(tag for tag in languages if not covers(source_language, tag)))
    else:
        raise UserError(
            f"{spec}: nothing names the target language of the column {target!r}: say both, as in --corpus "
            f"{source_language}+it={Path(spec).name}, or add a column 'language'"
        )
    yield alone(table[source])
    yield table.select(source=pl.col(source).cast(pl.String), language=language, target=pl.col(target).cast(pl.String))


def named_languages(spec: str, source_language: str) -> tuple[str, str] | None:
    """The two languages, in their order, in a corpus's name: its hub config, file or folder."""
    for part in _names(spec):
        if found := languages_of_name(part, source_language):
            tag, source_first = found
            return (source_language, tag) if source_first else (tag, source_language)
    return None


def _names(spec: str) -> list[str]:
    """Where a corpus's languages may be named, the likeliest place first: hub config, file, folder."""
    path, _, config = spec.partition(":")
    return [config, Path(path).name, Path(path).parent.name]


def _standard(column: pl.Expr, values: pl.Series) -> pl.Expr:
    """A column of language tags, or names, in standard form; what is no known one stays as it is."""
    standard = {tag: language_of_word(tag) or tag for tag in values.drop_nulls().unique().to_list()}
    return column.replace({tag: new for tag, new in standard.items() if tag != new})
