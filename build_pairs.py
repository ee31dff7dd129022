"""Turn parallel corpora into an Arrow dataset with one row per source sentence and its translations.

    python build_pairs.py --corpus ted_multi.parquet 'train.{en,de,fr}.gz' talks-en-it.tsv.gz europarl.tmx \\
        --source_language en --target_languages it es ar fr de --exclude 'stsb-{en,it}-test.csv' --output_dir pairs/
    python build_pairs.py --corpus Helsinki-NLP/opus-100:en-it:train --source_language en --target_languages all \\
        --max_translations 2 --export_tsv --output_dir pairs/
    # By all cores of a machine; slurm/build_pairs.slurm does it on many
    python build_pairs.py --corpus big.jsonl --target_languages it --workers 8 --output_dir pairs/

The result opens with `datasets.load_from_disk`: a DatasetDict (train, dev, perhaps test) with the columns `source`
(string) and `targets` (list of {language, sentence}). `report.json` beside it says what was read, kept and dropped,
`dropped_samples.jsonl` shows a few pairs of each kind of drop. Corpora are cleaned in parts, sorted by a hash of the
source sentence; ranges of the hash are then judged and written in parts. The same bytes come of any number of workers,
and of a command that was killed and is given again.
"""

import argparse
from collections import Counter
from collections.abc import Collection
from functools import partial
from itertools import groupby
from multiprocessing import current_process
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import polars as pl
from tqdm import tqdm

from distill.command import Parser, UserError, at_least, between, run, share
from distill.folders import check_output, replaced_folder, write_json, writing
from distill.languages import covers, required_tag
from distill.pairs.cleaning import (
    FILTERS,
    MENDING,
    drop_other_languages,
    first_reason,
    inspect,
    letters,
    pair_faults,
    read_excluded,
)
from distill.pairs.hash_order import Runs, parts_of_order, read_part, source_hash, starts_run
from distill.pairs.pairs_folder import (
    FLAT,
    GROUPED,
    SCORED,
    flat,
    grouped,
    save_splits,
    source_language_of,
    tsv_lines,
    write_rows,
)
from distill.pairs.quality import length_steps, of_unusual_length, usual_lengths
from distill.pairs.readers import languages_of_spec, parts_of, read_corpus
from distill.pairs.report import print_report
from distill.pairs.schemas import ALONE
from distill.pairs.selection import Account, held_out, language_taken, limited, marked, select, split_of
from distill.pairs.tables import FORMATS
from distill.pairs.workers import Each, once, work_folder, workers
from distill.text_files import Part, expand_globs

CORPUS_HELP = (
    "Parquet, JSON lines, CSV, TSV, TMX (also .gz, .xz, .zst), a .zip of OPUS, a saved Arrow folder, one of "
    "mine_pairs.py, a hub id[:config[:split]], or line-aligned text in quoted braces ('train.{en,de}.gz'); patterns of "
    "files in quotes ('*.tsv'), URLs; en+it=SPEC says the languages of two columns; en=FILE is text of the source "
    "language alone"
)
EXCLUDE_HELP = "evaluation files whose sentences to drop, whatever holds them; braces allowed"

PAIRS, VIEW = "pairs", "pairs_view"  # what is written of each split: rows by source, rows by pair
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
    cleaning.add_argument("--score_model", metavar="M", help="folder or hub id whose cosines judge the pairs too")
    cleaning.add_argument("--min_similarity", type=between(-1, 1), metavar="X", help="lowest cosine of a pair")
    cleaning.add_argument("--exclude", nargs="+", default=[], metavar="FILE", help=EXCLUDE_HELP)
    selection = parser.add_argument_group("selection")
    selection.add_argument("--max_sentences_per_language", type=at_least(1), default=500_000, help="most of a language")
    dev = selection.add_mutually_exclusive_group()
    dev.add_argument("--dev_fraction", type=share, default=0.01, help="share of the sources held out")
    dev.add_argument("--dev_size", type=at_least(1), metavar="N", help="hold out N pairs of each language instead")
    selection.add_argument("--test_fraction", type=share, default=0.0, help="share held out a second time")
    selection.add_argument("--seed", type=at_least(0), default=42, help="decides which sentences are held out")
    views = parser.add_argument_group("views")
    views.add_argument("--export_tsv", action="store_true", help="also write tsv/en-it-train.tsv.gz and the like")
    views.add_argument("--export_pairs", action="store_true", help="also write pairs_view/, one Arrow row per pair")
    machines = parser.add_argument_group("cores and machines")
    machines.add_argument("--workers", type=at_least(1), default=1, metavar="N", help="processes of this machine")
    machines.add_argument("--scheduler", metavar="WHERE", help="of a Dask cluster instead: its address or file")
    # fmt: on
    return parser


# ---------------------------------------------------------------- the call


def check(args: argparse.Namespace) -> None:
    """UserError for options that do not go together, or are out of range."""
    if (args.source_column is None) != (args.target_column is None):
        raise UserError("--source_column and --target_column go together: give both")
    if args.dev_size and args.test_fraction >= 0.5:
        raise UserError("--test_fraction must be below 0.5 beside --dev_size, which takes up to half of a language")
    if not args.dev_size and args.dev_fraction + args.test_fraction >= 1:
        raise UserError("--dev_fraction and --test_fraction must together be below 1")
    if args.score_model:
        from distill.encoder.model_folder import find_folder  # and torch, for this alone

        find_folder(args.score_model)
    if args.min_similarity is not None and not args.score_model:
        raise UserError("--min_similarity is that of a --score_model: give both, or leave it out")
    if args.scheduler and args.workers > 1:
        raise UserError("--workers are of this machine, --scheduler has its own: give one of them")
    if "all" in args.target_languages and len(args.target_languages) > 1:
        raise UserError("--target_languages all stands alone: leave the others out, or name all that are wanted")
    for corpus in args.corpus:
        if len(languages_of_spec(corpus)[1] or ()) == 1 and not args.keep_untranslated:
            raise UserError(f"{corpus} holds no translations: add --keep_untranslated to keep its sentences")
    check_output(args.output_dir, args, "pairs")
    for corpus in args.corpus:
        made_in = source_language_of(corpus, args.source_language)
        if made_in != args.source_language:
            raise UserError(f"{corpus} has the source language {made_in}, not {args.source_language}")


def cleaned(chunk: pl.DataFrame, args: argparse.Namespace, excluded: np.ndarray | None) -> pl.DataFrame:
    """A chunk of a corpus with mended sentences, `hash`, `dropped`, and per mending step if it changed the pair."""
    steps = [step for step in MENDING if step not in args.skip]
    filters = [name for name in FILTERS if name not in args.skip]
    # A corpus of many languages repeats a source once per language in a row: look at each run of it once.
    is_new = starts_run(chunk, "source")
    sources = chunk["source"].filter(is_new)
    language = pl.repeat(args.source_language, len(sources), eager=True)
    sources = inspect(sources, language, steps, filters, args.max_sentence_length, excluded)
    sources = sources.with_columns(hash=source_hash(letters(sources["sentence"]), args.seed))
    sources = sources.select(pl.all().name.prefix("source_"))
    chunk = chunk.select("language", "target").hstack(sources[is_new.cast(pl.UInt32).cum_sum() - 1])
    chunk = chunk.rename({"source_sentence": "source", "source_hash": "hash"})
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


# ---------------------------------------------------------------- the tasks, whichever process does them


class Task(NamedTuple):
    """What is cleaned at a time: which of all tasks it is, the number and spec of a corpus, which part of its file."""

    number: int
    corpus: int
    spec: str
    part: Part | None


class Cleaned(NamedTuple):
    """Of a task: the account, the tags that were met, whether any pair had a source, the lengths, the pairs' files."""

    account: Account
    tags: set[str]
    has_source: bool
    lengths: dict[str, Counter]  # pairs of each language by `length_steps`
    runs: list[Path]


def clean(task: Task, args: argparse.Namespace, wanted: set[str] | None, work: Path) -> Cleaned:
    """Read and clean a part of a corpus into runs on disk."""
    account, runs = Account(args.source_language), Runs(work / f"run-{task.number}")
    excluded = find_excluded(args, work)
    columns = (args.source_column, args.target_column) if args.source_column else None
    read = args.source_language, args.format, columns, args.keep_untranslated
    tags, has_source, lengths = set(), False, {}
    hidden = None if current_process().name == "MainProcess" else True
    with tqdm(desc=task.spec, unit=" pairs", unit_scale=True, disable=hidden, dynamic_ncols=True) as bar:
        for chunk in read_corpus(task.spec, *read, task.part):
            there = chunk["language"].unique().to_list()
            tags.update(there)
            has_source = has_source or chunk["source"].null_count() < len(chunk)
            bar.update(len(chunk))
            taken = {tag: language_taken(tag, wanted, args.source_language) for tag in there}
            chunk = account.taken(chunk, task.corpus, taken)
            if not chunk.is_empty():
                chunk = account.cleaned(cleaned(chunk, args, excluded), task.corpus)
                runs.add(chunk)
                for language, step, count in chunk.group_by("language", length_steps().alias("step")).len().iter_rows():
                    lengths.setdefault(language, Counter())[step] += count
    runs.close()
    return Cleaned(account, tags, has_source, lengths, runs.paths)


def find_excluded(args: argparse.Namespace, work: Path) -> np.ndarray | None:
    """What --exclude names; read once."""
    return once(work / "excluded.done", read_excluded, args.exclude) if args.exclude else None


def judge(
    part: int, parts: int, runs: list[Path], usual: dict[str, tuple[int, int]], args: argparse.Namespace, work: Path
) -> tuple[Account, Counter]:
    """Judge the pairs of a range of the hash against each other: what was dropped, and what is left by language."""
    account = Account(args.source_language)
    pairs = account.dropped(marked(read_part(runs, part, parts), "unusual_length", of_unusual_length(usual)))
    if args.score_model:
        from distill.mining.similarity import similarities

        lowest = -1 if args.min_similarity is None else args.min_similarity
        pairs = pairs.with_columns(similarity=similarities(pairs, args.score_model))
        pairs = account.dropped(marked(pairs, "dissimilar", pl.col("similarity") < lowest))
    pairs = account.dropped(select(pairs, args.skip, args.max_translations))
    pairs.write_ipc(work / f"judged-{part}.arrow", compression="lz4")
    return account, Counter(dict(pairs.group_by("language").len().iter_rows()))


class Written(NamedTuple):
    """Of a split of a part: its pairs by language, its rows, and the hashes of its files of Arrow by view."""

    pairs: Counter
    rows: int
    hashes: dict[str, str]


def write(
    part: tuple[int, dict[str, int]], dev_fractions: dict[str, float], args: argparse.Namespace, work: Path
) -> tuple[Account, dict[str, Written]]:
    """Write the pairs of a range of the hash that their languages have room for: what was dropped, and the splits."""
    number, room = part
    account, written = Account(args.source_language), {}
    pairs = account.dropped(limited(pl.read_ipc(work / f"judged-{number}.arrow"), room))
    pairs = pairs.with_columns(split=split_of(dev_fractions, args.test_fraction))
    pairs = pairs.sort("hash", "source", maintain_order=True)  # sources of the same letters lie between one another
    for corpus, language, count in pairs.group_by("corpus", "language").len().iter_rows():
        account.counts[corpus, language, "kept"] += count
    for name in splits_of(args):
        of_split = pairs.filter(split=name)
        rows, translated = grouped(of_split), of_split.filter(pl.col("language") != ALONE)
        hashes = {PAIRS: write_rows(work / f"{PAIRS}-{name}-{number}", rows)}
        if args.export_pairs:
            hashes[VIEW] = write_rows(work / f"{VIEW}-{name}-{number}", flat(translated))
        if args.export_tsv:
            for (language,), of_language in translated.group_by("language", maintain_order=True):
                (work / f"{language}-{name}-{number}").write_bytes(tsv_lines(of_language))
        written[name] = Written(Counter(dict(of_split.group_by("language").len().iter_rows())), len(rows), hashes)
    return account, written


def splits_of(args: argparse.Namespace) -> list[str]:
    """The splits that are asked for."""
    fractions = {"train": 1, "dev": args.dev_size or args.dev_fraction, "test": args.test_fraction}
    return [name for name, fraction in fractions.items() if fraction]


# ---------------------------------------------------------------- the call, which hands them out


def clean_corpora(
    args: argparse.Namespace, account: Account, work: Path, each: Each
) -> tuple[list[Path], dict[str, Counter]]:
    """Read and clean every corpus: the runs, and the pairs in them by language and length.

    UserError for a corpus without pairs, or for a language that none has.
    """
    wanted = None
    if args.target_languages != ["all"]:
        wanted = {required_tag(tag, "--target_languages") for tag in args.target_languages}
    find_excluded(args, work)  # before all workers want it at once
    parts = [(corpus, spec, part) for corpus, spec in enumerate(args.corpus) for part in parts_of(spec, args.format)]
    tasks = [Task(number, *part) for number, part in enumerate(parts)]
    results = each("cleaning", partial(clean, args=args, wanted=wanted, work=work), tasks)
    runs, lengths, tags = [], {}, set()
    for (_, spec), of_corpus in groupby(zip(tasks, results, strict=True), lambda both: both[0][1:3]):
        has_source = False
        for _, found in of_corpus:
            account.add(found.account)
            runs += found.runs
            for language, counts in found.lengths.items():
                lengths.setdefault(language, Counter()).update(counts)
            tags |= found.tags
            has_source = has_source or found.has_source
        if not has_source:
            raise UserError(f"{spec} holds no sentence pair with source language {args.source_language!r}")
    lacking = [language for language in sorted(wanted or ()) if not any(covers(language, tag) for tag in tags)]
    if lacking:
        found = " ".join(sorted(tags - {ALONE})) or "none"
        raise UserError(f"no corpus holds {' '.join(lacking)}: the target languages there are {found}")
    return runs, lengths


def select_pairs(
    args: argparse.Namespace, runs: list[Path], lengths: dict[str, Counter], account: Account, work: Path, each: Each
) -> dict[int, dict[str, Written]]:
    """Judge and write all pairs, in parts of the hash's range: what was written of each split, by part."""
    parts = parts_of_order(sum(map(Counter.total, lengths.values()))) if runs else 0
    usual = {} if "unusual_length" in args.skip else usual_lengths(lengths)
    taken, rooms = Counter(), []
    judging = partial(judge, parts=parts, runs=runs, usual=usual, args=args, work=work)
    judged = each("judging", judging, range(parts))
    for part, (dropped, left) in enumerate(judged):
        account.add(dropped)
        if left:
            rooms.append((part, {language: args.max_sentences_per_language - taken[language] for language in left}))
        taken.update(left)
    results = {}
    most = {language: min(count, args.max_sentences_per_language) for language, count in taken.items()}
    shares = held_out(args.dev_fraction, args.dev_size, most)
    written = each("writing", partial(write, dev_fractions=shares, args=args, work=work), rooms)
    for (part, _), (dropped, splits) in zip(rooms, written, strict=True):
        account.add(dropped)
        results[part] = splits
    return results


def gather(args: argparse.Namespace, results: dict[int, dict[str, Written]], work: Path, folder: Path) -> None:
    """Make the folder of pairs, and its views, of the files that the parts have left."""
    splits = splits_of(args)
    views = (PAIRS, GROUPED, folder), (VIEW, SCORED if args.score_model else FLAT, folder / VIEW)
    for view, schema, path in views[: 1 + args.export_pairs]:
        files = {name: [work / f"{view}-{name}-{part}" for part in results] for name in splits}
        hashes = {name: [written[name].hashes[view] for written in results.values()] for name in splits}
        save_splits(path, schema, files, hashes)
    if args.export_tsv:
        (folder / "tsv").mkdir()
        for name in splits:
            for part, written in results.items():
                for language in written[name].pairs.keys() - {ALONE}:
                    with (folder / f"tsv/{args.source_language}-{language}-{name}.tsv.gz").open("ab") as file:
                        file.write((work / f"{language}-{name}-{part}").read_bytes())


def sizes_of(args: argparse.Namespace, results: Collection[dict[str, Written]], account: Account) -> dict[str, dict]:
    """Rows, pairs by language and rows without any of each split. UserError where one is empty."""
    report, left = {}, sum(of_split.rows for written in results for of_split in written.values())
    if left == 0:
        raise UserError(f"no pair is left: {account.summary()}")
    for name in splits_of(args):
        rows, pairs = sum(written[name].rows for written in results), Counter()
        if rows == 0:
            option = "--test_fraction" if name == "test" else "--dev_size" if args.dev_size else "--dev_fraction"
            raise UserError(f"the {name} split would be empty: {left} source sentences are left: see {option}")
        for written in results:
            pairs.update(written[name].pairs)
        alone = pairs.pop(ALONE, 0)
        report[name] = {"rows": rows, "pairs": dict(sorted(pairs.items()))}
        if name == "train" and args.keep_untranslated:
            report[name]["untranslated"] = alone
    return report


def main(args: argparse.Namespace) -> None:
    datasets.disable_progress_bars()
    args.source_language = required_tag(args.source_language, "--source_language")
    args.corpus = [path for spec in args.corpus for path in expand_globs(spec)]
    check(args)
    account = Account(args.source_language)
    with (
        writing(args.output_dir),
        replaced_folder(args.output_dir, args, "pairs") as folder,
        work_folder(args.output_dir, args) as work,
        workers(args.workers, args.scheduler, work) as each,
    ):
        runs, lengths = clean_corpora(args, account, work, each)
        results = select_pairs(args, runs, lengths, account, work, each)
        report = {"splits": sizes_of(args, results.values(), account), "corpora": account.report(args.corpus)}
        gather(args, results, work, folder)
        write_json(folder / "report.json", report)
        account.write_samples(folder / "dropped_samples.jsonl", args.corpus)
    print_report(report, args.output_dir)


if __name__ == "__main__":
    run(main, build_parser().parse_args())
