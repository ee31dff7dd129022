"""Schemas: the columns of a table to pairs, whichever of the field's layouts they are in."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import polars.selectors as cs

from distill.command import UserError
from distill.languages import languages_of_name, standard_tag

MISSING = ["", "__NULL__", "_ _ NULL _ _"]  # what tables write where a translation is missing


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
        sides = table.select(source=pl.col(source).cast(pl.String), target=pl.col(name).cast(pl.String))
        pairs = sides.select("source", pl.lit(tag).alias("language"), "target")
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
