"""Turn parallel corpora into an Arrow dataset with one row per source sentence and its translations.

    python build_pairs.py --corpus ted_multi.parquet 'train.{en,de,fr}.gz' talks-en-it.tsv.gz \\
        --source_language en --target_languages it es ar fr de --output_dir pairs/

The result opens with `datasets.load_from_disk`: a DatasetDict (train, dev) with the columns `source` (string)
and `targets` (list of {language, sentence}). `report.json` beside it says what was read, kept and dropped.
"""

import argparse
import re
from pathlib import Path

import datasets
import polars as pl
import pyarrow as pa
import xxhash
from tabulate import tabulate

from distill_utils import (
    HelpFormatter,
    UserError,
    read_aligned_lines,
    read_lines,
    replaced_folder,
    run,
    write_json,
)

# What polars calls large_string and large_list, `datasets` wants as string and list.
SCHEMA = pa.schema(
    {
        "source": pa.string(),
        "targets": pa.list_(pa.struct({"language": pa.string(), "sentence": pa.string()})),
    }
)
CORPUS_HELP = (
    "TED schema (.parquet, .jsonl, or a hub id[:config[:split]]), line-aligned text in quoted braces "
    "('train.{en,de}.gz'), or two columns with the languages in the name ('talks-en-it.tsv.gz')"
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    # fmt: off
    data = parser.add_argument_group("corpora")
    data.add_argument("--corpus", nargs="+", required=True, metavar="SPEC", help=CORPUS_HELP)
    data.add_argument("--source_language", default="en", help="language the teacher reads")
    data.add_argument("--target_languages", nargs="+", required=True, help="languages to keep translations in")
    data.add_argument("--output_dir", required=True, help="folder to write, replaced when whole")
    selection = parser.add_argument_group("selection")
    selection.add_argument("--max_sentence_length", type=int, default=250, help="longest sentence, in characters")
    selection.add_argument("--max_sentences_per_language", type=int, default=500_000, help="most pairs of a language")
    selection.add_argument("--dev_fraction", type=float, default=0.01, help="share of source sentences held out")
    selection.add_argument("--seed", type=int, default=42, help="decides which sentences are held out or sampled")
    # fmt: on
    return parser


# ---------------------------------------------------------------- readers: a corpus to (source, language, target)


def read_corpus(spec: str, source_language: str) -> pl.DataFrame:
    """Every pair of a corpus, in all its languages, as columns `source`, `language`, `target` (strings)."""
    if "{" in spec:
        pairs = aligned_pairs(read_aligned_lines(spec), spec, source_language)
    elif re.search(r"\.tsv(\.gz)?$", spec):
        pairs = tsv_pairs(spec, source_language)
    else:
        pairs = ted_pairs(read_table(spec), spec, source_language)
    if pairs.is_empty():
        raise UserError(f"{spec} holds no sentence pair with source language {source_language!r}")
    return pairs


def read_table(spec: str) -> pl.DataFrame:
    """A Parquet or JSON lines file, or a hub dataset `id[:config[:split]]`."""
    try:
        if spec.endswith(".parquet"):
            return pl.read_parquet(spec)
        if spec.endswith(".jsonl"):
            return pl.read_ndjson(spec, infer_schema_length=None)
        if Path(spec).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+(:[^:]*){0,2}", spec):
            raise UserError(
                f"{spec} is no corpus that can be read: give .parquet, .jsonl, .tsv.gz, a hub id, or quoted "
                "braces for line-aligned files, as in 'train.{en,de}.gz'"
            )
        name, config, split = (*spec.split(":"), None, None)[:3]
        return datasets.load_dataset(name, config or None, split=split or "train").to_polars()
    except FileNotFoundError:
        raise UserError(f"{spec} does not exist: check the path") from None
    except (
        pl.exceptions.PolarsError,
        datasets.exceptions.DatasetsError,
        OSError,
        ValueError,
        RuntimeError,
    ) as error:
        raise UserError(f"{spec} cannot be read: {str(error).splitlines()[0]}") from error


def ted_pairs(table: pl.DataFrame, spec: str, source_language: str) -> pl.DataFrame:
    """TED schema: each row's `translations` holds lists `language` and `translation` of equal length."""
    try:
        rows = table.select(pl.col("translations").struct.unnest()).with_row_index("row")
        sentences = rows.explode("language", "translation")
        source = sentences.filter(language=source_language).unique("row", keep="first")
    except (pl.exceptions.PolarsError, AttributeError) as error:
        raise UserError(
            f"{spec} has the columns {', '.join(table.columns)}: expected the TED schema, "
            "translations: {language: [...], translation: [...]}"
        ) from error
    pairs = sentences.filter(pl.col("language") != source_language).join(
        source.select("row", source="translation"), on="row", maintain_order="left"
    )
    return pairs.select("source", "language", target="translation")


def aligned_pairs(lines: dict[str, list[str]], spec: str, source_language: str) -> pl.DataFrame:
    """Line-aligned sentences by language: line i of each is the same sentence."""
    if source_language not in lines:
        raise UserError(f"{spec} lacks the source language {source_language!r}: add it to the braces")
    source = pl.Series(lines[source_language], dtype=pl.String)
    return pl.concat(
        pl.DataFrame({"source": source, "target": pl.Series(target, dtype=pl.String)}).select(
            "source", pl.lit(language).alias("language"), "target"
        )
        for language, target in lines.items()
        if language != source_language
    )


def tsv_pairs(spec: str, source_language: str) -> pl.DataFrame:
    """Two columns, source TAB target, no header; the file's name says the languages, as in talks-en-it.tsv.gz."""
    match = re.search(rf"\b{source_language}-([a-zA-Z]{{2,3}})\b", Path(spec).name)
    if match is None:
        raise UserError(f"{spec}: the name must say the two languages, as in talks-{source_language}-it.tsv.gz")
    rows = []
    for number, line in enumerate(read_lines(spec), 1):
        columns = line.split("\t")
        if len(columns) != 2:
            raise UserError(f"{spec}, line {number}: expected source TAB target, found {len(columns)} columns")
        rows.append((columns[0], match[1], columns[1]))
    return pl.DataFrame(rows, schema={"source": pl.String, "language": pl.String, "target": pl.String}, orient="row")


# ---------------------------------------------------------------- selection


def select(pairs: pl.DataFrame, max_sentence_length: int, max_per_language: int, seed: int) -> pl.DataFrame:
    """Judge every pair: adds `dropped` (the reason, null for a pair that is kept) and `hash` of the source.

    The rows come back in the order of a seeded hash of their source sentence. That order is random yet the same
    on every machine; the first `max_per_language` pairs of a language in it are a fair sample.
    """
    text = pl.col("source", "target")
    pairs = pairs.with_columns(text.fill_null("").str.strip_chars())
    sources = pairs["source"].unique()
    hashes = pl.Series([xxhash.xxh3_64_intdigest(source.encode(), seed) for source in sources], dtype=pl.UInt64)
    pairs = pairs.join(pl.DataFrame({"source": sources, "hash": hashes}), on="source", maintain_order="left")
    pairs = pairs.sort("hash", maintain_order=True)
    pairs = pairs.with_columns(dropped=pl.lit(None, pl.String))
    for reason, applies in (
        ("empty", pl.any_horizontal(text == "")),
        ("too_long", pl.any_horizontal(text.str.len_chars() > max_sentence_length)),
        ("duplicate", ~pl.struct("source", "language", "target").is_first_distinct()),
        ("over_limit", pl.col("dropped").is_null().cum_sum().over("language") > max_per_language),
    ):
        pairs = pairs.with_columns(
            dropped=pl.when(pl.col("dropped").is_null() & applies).then(pl.lit(reason)).otherwise("dropped")
        )
    return pairs


def account(pairs: pl.DataFrame, corpora: list[str]) -> list[dict]:
    """Per corpus and language: pairs read, kept, and dropped by reason (read = kept + dropped)."""
    counts = pairs.group_by("corpus", "language", "dropped").len().sort("corpus", "language", "dropped")
    report = [{"corpus": spec, "languages": {}} for spec in corpora]
    for corpus, language, reason, count in counts.iter_rows():
        entry = report[corpus]["languages"].setdefault(language, {"read": 0, "kept": 0, "dropped": {}})
        entry["read"] += count
        if reason is None:
            entry["kept"] = count
        else:
            entry["dropped"][reason] = count
    return report


def sizes(split: pl.DataFrame) -> dict:
    """Number of rows (source sentences) of a split, and of its pairs by language."""
    pairs = split.group_by("language").len().sort("language")
    return {"rows": split["source"].n_unique(), "pairs": dict(pairs.iter_rows())}


def rows(pairs: pl.DataFrame) -> datasets.Dataset:
    """One row per source sentence, with its translations in all languages."""
    target = pl.struct("language", sentence="target")
    table = pairs.group_by("source", maintain_order=True).agg(targets=target).to_arrow().cast(SCHEMA)
    return datasets.Dataset(table)


def main(args: argparse.Namespace) -> None:
    datasets.disable_progress_bars()
    corpora = [read_corpus(spec, args.source_language) for spec in args.corpus]
    pairs = pl.concat(frame.with_columns(corpus=pl.lit(i)) for i, frame in enumerate(corpora))
    there = pairs["language"].unique().sort().to_list()
    lacking = [language for language in args.target_languages if language not in there]
    if lacking:
        raise UserError(f"no corpus holds {' '.join(lacking)}: the target languages there are {' '.join(there)}")
    pairs = pairs.filter(pl.col("language").is_in(args.target_languages))
    pairs = select(pairs, args.max_sentence_length, args.max_sentences_per_language, args.seed)
    kept = pairs.filter(pl.col("dropped").is_null())
    # The hash decides the split, so a source sentence is never on both sides, whatever the other corpora hold.
    is_dev = pl.col("hash") < int(args.dev_fraction * 2**64)
    splits = {"train": kept.filter(~is_dev), "dev": kept.filter(is_dev)}
    for name, split in splits.items():
        if split.is_empty():
            raise UserError(f"the {name} split would be empty: {len(kept)} pairs are left, see --dev_fraction")

    report = {"splits": {name: sizes(split) for name, split in splits.items()}}
    report["corpora"] = account(pairs, args.corpus)
    with replaced_folder(args.output_dir, args) as folder:
        datasets.DatasetDict({name: rows(split) for name, split in splits.items()}).save_to_disk(folder)
        write_json(folder / "report.json", report)
    print_report(report, args.output_dir)


def print_report(report: dict, output_dir: str) -> None:
    """The account as a table, one line per corpus and language."""
    table = [
        {
            "corpus": Path(corpus["corpus"]).name,
            "language": language,
            "read": entry["read"],
            "kept": entry["kept"],
        }
        | entry["dropped"]
        for corpus in report["corpora"]
        for language, entry in corpus["languages"].items()
    ]
    print(tabulate(table, headers="keys", missingval="0"))
    sizes = ", ".join(f"{name} {split['rows']} rows" for name, split in report["splits"].items())
    print(f"{output_dir}: {sizes}")


if __name__ == "__main__":
    run(main, build_parser().parse_args())
