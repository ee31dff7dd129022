"""Turn parallel corpora into an Arrow dataset with one row per source sentence and its translations.

    python build_pairs.py --corpus ted_multi.parquet 'train.{en,de,fr}.gz' talks-en-it.tsv.gz europarl.tmx \\
        --source_language en --target_languages it es ar fr de --exclude 'stsb-{en,it}-test.csv' --output_dir pairs/
    python build_pairs.py --corpus Helsinki-NLP/opus-100:en-it:train --source_language en --target_languages all \\
        --max_translations 2 --export_tsv --output_dir pairs/
    # In parts, by ranges of the source sentences' hash; the shards are then a corpus like any other.
    python build_pairs.py --corpus big.jsonl --target_languages it --shard 0/8 --output_dir shards/0
    python build_pairs.py --corpus shards/* --target_languages it --output_dir pairs/

The result opens with `datasets.load_from_disk`: a DatasetDict (train, dev, perhaps test) with the columns `source`
(string) and `targets` (list of {language, sentence}). `report.json` beside it says what was read, kept and dropped,
`dropped_samples.jsonl` shows a few pairs of each kind of drop.
"""

import argparse
import re
import shutil
import textwrap
from collections import Counter, defaultdict
from pathlib import Path

import datasets
import numpy as np
import polars as pl
from tabulate import tabulate
from tqdm import tqdm

from distill.command import Parser, UserError, at_least, between, run, share
from distill.folders import check_output, read_json, replaced_folder, write_json, writing
from distill.languages import covers, required_tag, standard_tag
from distill.pairs.cleaning import (
    FILTERS,
    MENDING,
    drop_other_languages,
    first_reason,
    inspect,
    pair_faults,
    read_excluded,
)
from distill.pairs.hash_order import HashOrder, hash_range, source_hash, starts_run
from distill.pairs.pairs_folder import FLAT, GROUPED, ArrowFolder, TsvFolder, flat, grouped
from distill.pairs.readers import languages_of_spec, read_corpus
from distill.pairs.schemas import ALONE
from distill.pairs.selection import Account, select, split_of
from distill.pairs.tables import FORMATS
from distill.text_files import expand_globs

CORPUS_HELP = (
    "Parquet, JSON lines, CSV, TSV, TMX (also .gz, .xz, .zst), a .zip of OPUS, a saved Arrow folder, one of "
    "mine_pairs.py, a hub id[:config[:split]], or line-aligned text in quoted braces ('train.{en,de}.gz'); patterns of "
    "files in quotes ('*.tsv'), URLs; en+it=SPEC says the languages of two columns; en=FILE is text of the source "
    "language alone"
)
EXCLUDE_HELP = "evaluation files whose sentences to drop, whatever holds them; braces allowed"

SKIP_HELP = f"leave out steps that mend ({', '.join(MENDING)}) or drop ({', '.join(FILTERS)})"


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, script=__file__)
    # fmt: off
    data = parser.add_argument_group("corpora")
    data.add_argument("--corpus", nargs="+", required=True, metavar="SPEC", help=CORPUS_HELP)
    data.add_argument("--format", choices=FORMATS, help="read every corpus as this, whatever its name")
    data.add_argument("--source_column", help="column of the source sentences in tables, with --target_column")
    data.add_argument("--target_column", help="column of the target sentences in tables, with --source_column")
    data.add_argument("--source_language", default="en", help="language the teacher reads")
    data.add_argument("--target_languages", nargs="+", required=True, help="languages to keep, or all that are there")
    data.add_argument("--keep_untranslated", action="store_true", help="also source sentences without translations")
    data.add_argument("--output_dir", required=True, help="folder to write, replaced when whole")
    cleaning = parser.add_argument_group("cleaning")
    cleaning.add_argument("--skip", nargs="+", default=[], metavar="STEP", choices=[*MENDING, *FILTERS], help=SKIP_HELP)
    cleaning.add_argument("--max_sentence_length", type=at_least(1), default=250, help="longest sentence (characters)")
    cleaning.add_argument("--max_length_ratio", type=between(1), default=4, help="of the sides, each 10 longer")
    cleaning.add_argument("--max_translations", type=at_least(1), default=3, help="most translations in one language")
    cleaning.add_argument("--exclude", nargs="+", default=[], metavar="FILE", help=EXCLUDE_HELP)
    selection = parser.add_argument_group("selection")
    selection.add_argument("--max_sentences_per_language", type=at_least(1), default=500_000, help="most of a language")
    selection.add_argument("--dev_fraction", type=share, default=0.01, help="share of the sources held out")
    selection.add_argument("--test_fraction", type=share, default=0.0, help="share held out a second time")
    selection.add_argument("--seed", type=at_least(0), default=42, help="decides which sentences are held out")
    selection.add_argument("--shard", metavar="I/N", help="do only part I (from 0) of N of the source sentences")
    views = parser.add_argument_group("views")
    views.add_argument("--export_tsv", action="store_true", help="also write tsv/en-it-train.tsv.gz and the like")
    views.add_argument("--export_pairs", action="store_true", help="also write pairs_view/, one Arrow row per pair")
    # fmt: on
    return parser


# ---------------------------------------------------------------- the call


def check(args: argparse.Namespace) -> None:
    """UserError for options that do not go together, or are out of range."""
    if (args.source_column is None) != (args.target_column is None):
        raise UserError("--source_column and --target_column go together: give both")
    if args.dev_fraction + args.test_fraction >= 1:
        raise UserError("--dev_fraction and --test_fraction must together be below 1")
    if "all" in args.target_languages and len(args.target_languages) > 1:
        raise UserError("--target_languages all stands alone: leave the others out, or name all that are wanted")
    for corpus in args.corpus:
        if len(languages_of_spec(corpus)[1] or ()) == 1 and not args.keep_untranslated:
            raise UserError(f"{corpus} holds no translations: add --keep_untranslated to keep its sentences")
    check_output(args.output_dir, args, "pairs")
    made = {corpus: made_with(corpus) for corpus in args.corpus}
    for corpus, options in made.items():
        if options and options["source_language"] != args.source_language:
            raise UserError(
                f"{corpus} has the source language {options['source_language']}, not {args.source_language}"
            )
    sharded = {corpus: options for corpus, options in made.items() if options.get("shard")}
    for corpus, options in sharded.items():
        for name in sorted(vars(args).keys() - NOT_OF_THE_WHOLE):
            if options.get(name) != getattr(args, name):
                had = f"{corpus} was made with --{name} {options.get(name)}"
                raise UserError(
                    f"{had}, not {getattr(args, name)}: make all shards and their merge with the same options"
                )
        first = next(iter(sharded))
        if options["corpus"] != sharded[first]["corpus"]:
            raise UserError(f"{corpus} and {first} are shards of different corpora: merge those of the same --corpus")
    parts = [parse_shard(options["shard"]) for options in sharded.values()]
    shards = max((shards for _, shards in parts), default=0)
    if sorted(parts) != [(i, shards) for i in range(shards)]:
        given = " ".join(f"{i}/{n}" for i, n in sorted(parts))
        raise UserError(f"the corpora hold the shards {given}: give all of one whole, each once")


def parse_shard(shard: str) -> tuple[int, int]:
    """'0/8' -> (0, 8)."""
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if match is None or int(match[1]) >= int(match[2]):
        raise UserError(f"--shard {shard}: expected I/N with I from 0 to N-1, as in 0/8")
    return int(match[1]), int(match[2])


# Options in which a merge may differ from its shards.
NOT_OF_THE_WHOLE = {"corpus", "output_dir", "shard", "export_tsv", "export_pairs", "command_line", "called_from"}


def made_with(corpus: str) -> dict:
    """The options that this script or mine_pairs.py wrote a folder with; none for any other corpus."""
    options = read_json(Path(corpus) / "args.json", {})
    return options if "source_language" in options else {}


def language_taken(tag: str, wanted: set[str] | None, source_language: str) -> str | None:
    """The language that pairs of a tag are taken as: 'zh-CN' as 'zh' where that was asked for; None where none was."""
    if tag == ALONE:
        return tag
    if wanted is None:
        return tag if standard_tag(tag) and not covers(source_language, tag) else None
    return max((language for language in wanted if covers(language, tag)), key=len, default=None)


def cleaned(chunk: pl.DataFrame, args: argparse.Namespace, excluded: np.ndarray | None) -> pl.DataFrame:
    """A chunk of a corpus with mended sentences, `hash`, `dropped`, and per mending step whether it changed the pair.

    Of a shard, only its own pairs come back.
    """
    steps = [step for step in MENDING if step not in args.skip]
    filters = [name for name in FILTERS if name not in args.skip]
    # A corpus of many languages repeats a source once per language in a row: look at each run of it once.
    is_new = starts_run(chunk, "source")
    sources = chunk["source"].filter(is_new)
    language = pl.repeat(args.source_language, len(sources), eager=True)
    sources = inspect(sources, language, steps, filters, args.max_sentence_length, excluded)
    sources = sources.with_columns(hash=source_hash(sources["sentence"], args.seed))
    sources = sources.select(pl.all().name.prefix("source_"))
    chunk = chunk.select("language", "target").hstack(sources[is_new.cast(pl.UInt32).cum_sum() - 1])
    chunk = chunk.rename({"source_sentence": "source", "source_hash": "hash"})
    if args.shard:
        chunk = chunk.filter(pl.col("hash").is_between(*hash_range(*parse_shard(args.shard))))
    # Whether a target is in its language is asked of pairs that have no other fault.
    cheap = [name for name in filters if name != "wrong_language"]
    targets = inspect(chunk["target"], chunk["language"], steps, cheap, args.max_sentence_length, excluded)
    chunk = chunk.drop("target").hstack(targets.select(pl.all().name.prefix("target_")))
    chunk = chunk.rename({"target_sentence": "target"})
    target_fault = pl.when(pl.col("language") != ALONE).then("target_fault")
    reason = pl.coalesce("source_fault", target_fault, first_reason(pair_faults(filters, args.max_length_ratio)))
    changed = [(pl.col(f"source_{step}") | pl.col(f"target_{step}")).alias(step) for step in steps]
    chunk = chunk.select("hash", "source", "language", "target", *changed, dropped=reason)
    return drop_other_languages(chunk, "target", "dropped", filters)


def collect(
    args: argparse.Namespace, wanted: set[str] | None, excluded: np.ndarray | None, account: Account, order: HashOrder
) -> None:
    """Read and clean every corpus into `order`. UserError for one without pairs, or for a language that none has."""
    columns = (args.source_column, args.target_column) if args.source_column else None
    there = set()
    with tqdm(desc="reading", unit=" pairs", unit_scale=True, disable=None, dynamic_ncols=True) as bar:
        for corpus, spec in enumerate(args.corpus):
            has_source = False
            for chunk in read_corpus(spec, args.source_language, args.format, columns, args.keep_untranslated):
                tags = chunk["language"].unique().to_list()
                there.update(tags)
                has_source = has_source or chunk["source"].null_count() < len(chunk)
                bar.update(len(chunk))
                taken = {tag: language_taken(tag, wanted, args.source_language) for tag in tags}
                chunk = account.taken(chunk, corpus, taken)
                if not chunk.is_empty():
                    order.add(account.cleaned(cleaned(chunk, args, excluded), corpus))
            if not has_source and not made_with(spec).get("shard"):  # few sentences leave some shards without any
                raise UserError(f"{spec} holds no sentence pair with source language {args.source_language!r}")
    lacking = [language for language in sorted(wanted or ()) if not any(covers(language, tag) for tag in there)]
    if lacking:
        found = " ".join(sorted(there - {ALONE})) or "none"
        raise UserError(f"no corpus holds {' '.join(lacking)}: the target languages there are {found}")


def write_pairs(args: argparse.Namespace, folder: Path, order: HashOrder, account: Account) -> dict[str, dict]:
    """Select and write the pairs, in hash order; rows, pairs by language and rows without any of each split."""
    fractions = {"train": 1, "dev": args.dev_fraction, "test": args.test_fraction}
    sizes = {name: Counter() for name, fraction in fractions.items() if fraction}
    pairs_folder = ArrowFolder(folder, list(sizes), GROUPED, grouped)
    views = []
    if args.export_pairs:
        views.append(ArrowFolder(folder / "pairs_view", list(sizes), FLAT, flat))
    if args.export_tsv:
        views.append(TsvFolder(folder / "tsv", args.source_language))
    room = defaultdict(lambda: args.max_sentences_per_language)
    for part in tqdm(order, desc="writing", unit=" parts", disable=None, dynamic_ncols=True):
        limits = {language: room[language] for language in part["language"].unique()}
        part = account.dropped(select(part, args.skip, args.max_translations, limits))
        part = part.with_columns(split=split_of(args.dev_fraction, args.test_fraction))
        for corpus, language, split, number in part.group_by("corpus", "language", "split").len().iter_rows():
            account.counts[corpus, language, "kept"] += number
            sizes[split][language] += number
            room[language] -= number
        for name in sizes:
            of_split = part.filter(split=name)
            pairs_folder.write(name, of_split)
            for view in views:
                view.write(name, of_split.filter(pl.col("language") != ALONE))
    for writer in (pairs_folder, *views):
        writer.close()
    rows = pairs_folder.rows
    for name in sizes:
        if rows[name] == 0 and not args.shard:
            left = sum(rows.values())
            if left == 0:
                raise UserError(f"no pair is left: {account.summary()}")
            option = "--dev_fraction" if name == "train" else f"--{name}_fraction"
            raise UserError(f"the {name} split would be empty: {left} source sentences are left: see {option}")
    alone = {name: pairs.pop(ALONE, 0) for name, pairs in sizes.items()}
    report = {name: {"rows": rows[name], "pairs": dict(sorted(pairs.items()))} for name, pairs in sizes.items()}
    if args.keep_untranslated:
        report["train"]["untranslated"] = alone["train"]
    return report


def main(args: argparse.Namespace) -> None:
    datasets.disable_progress_bars()
    args.source_language = required_tag(args.source_language, "--source_language")
    args.corpus = [path for spec in args.corpus for path in expand_globs(spec)]
    check(args)
    wanted = None
    if args.target_languages != ["all"]:
        wanted = {required_tag(tag, "--target_languages") for tag in args.target_languages}
    excluded = read_excluded(args.exclude) if args.exclude else None
    account = Account(args.source_language)
    with writing(args.output_dir), replaced_folder(args.output_dir, args, "pairs") as folder:
        order = HashOrder(folder / "runs")
        collect(args, wanted, excluded, account, order)
        report = {"splits": write_pairs(args, folder, order, account), "corpora": account.report(args.corpus)}
        shutil.rmtree(order.folder, ignore_errors=True)
        write_json(folder / "report.json", report)
        account.write_samples(folder / "dropped_samples.jsonl", args.corpus)
    print_report(report, args.output_dir)


def print_report(report: dict, output_dir: str) -> None:
    """The account as a table per corpus, one line per language, as wide as the terminal."""
    width = shutil.get_terminal_size().columns

    def listed(numbers: dict[str, int], mark: str = " ") -> str:
        return ", ".join(f"{name}{mark}{number}" for name, number in numbers.items())

    for corpus in report["corpora"]:
        # A no-break space keeps a reason and its number on one line of a wrapped cell.
        rows = [
            [tag, found["read"], found["kept"], listed(found["dropped"], "\u00a0")]
            for tag, found in corpus["languages"].items()
        ]
        headers = ["language", "read", "kept", "dropped"]
        left = len(tabulate([row[:3] for row in rows], headers[:3]).splitlines()[1]) + 2
        print(corpus["corpus"])
        table = tabulate(rows, headers, maxcolwidths=[None, None, None, max(width - left, 22)])
        print(table.replace("\u00a0", " "))
        lines = [
            f"{tag} is {listed(found['variants'])}" for tag, found in corpus["languages"].items() if "variants" in found
        ]
        if corpus["not_taken"]:
            lines.append(f"not taken: {listed(corpus['not_taken'])}")
        print("".join(f"{textwrap.fill(line, width, subsequent_indent='  ')}\n" for line in lines), end="")
    sizes = ", ".join(f"{name} {split['rows']} rows" for name, split in report["splits"].items())
    print(f"{output_dir}: {sizes}")


if __name__ == "__main__":
    run(main, build_parser().parse_args())
