"""Rows per CPU-second of build_pairs.py and of the article's Python loop, on a corpus in the TED schema.

    python benchmarks/build_pairs_vs_loop.py --corpus ted_multi.parquet --target_languages it es ar fr de

First it is proved that both keep the same pairs when no filter is on. Then the two are timed in turn, in one process,
build_pairs.py with every default filter that --skip does not name, twice over: in memory, from the table's rows to
pairs, which is the loop by itself; and from the Parquet file to files to train on, where the article loads the corpus
with `datasets`, loops, and writes a .tsv.gz per language. CPU time is that of all threads; the best of each counts. The
last line is the lower ratio.
"""

import argparse
import contextlib
import gzip
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import polars as pl

sys.path.insert(0, str(Path(__file__).parent.parent))
import build_pairs
from distill.pairs.cleaning import FILTERS, MENDING
from distill.pairs.hash_order import Runs, read_part
from distill.pairs.schemas import table_pairs
from distill.pairs.tables import parquet_tables


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="data/ted_multi_sample.parquet", help="Parquet, TED schema")
    parser.add_argument("--source_language", default="en")
    parser.add_argument("--target_languages", nargs="+", default=["it", "es", "ar", "fr", "de"])
    parser.add_argument("--skip", nargs="+", default=[], help="of build_pairs.py")
    parser.add_argument("--repeats", type=int, default=5)
    return parser


def article_rows(corpus: str, cache: Path) -> datasets.Dataset:
    return datasets.Dataset.from_parquet(corpus, cache_dir=str(cache))


def article_loop(rows: datasets.Dataset, source_language: str, target_languages: list[str]) -> dict[str, list[str]]:
    """Find the source language's position in each row, append `source TAB translation` for every language wanted."""
    lines = {language: [] for language in target_languages}
    for row in rows:
        languages = row["translations"]["language"]
        sentences = row["translations"]["translation"]
        if source_language not in languages:
            continue
        source = sentences[languages.index(source_language)]
        for language, sentence in zip(languages, sentences, strict=True):
            if language in lines:
                lines[language].append(source + "\t" + sentence)
    return lines


def article_files(lines: dict[str, list[str]], source_language: str, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for language, texts in lines.items():
        with gzip.open(folder / f"ted-train-{source_language}-{language}.tsv.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(texts))


def clean_pairs(tables: list[pl.DataFrame], args: argparse.Namespace, folder: Path) -> pl.DataFrame:
    """What build_pairs.py does between reading and writing: clean, selected and counted pairs in hash order."""
    account, runs = build_pairs.Account(args.source_language), Runs(folder / "run")
    for table in tables:
        for chunk in table_pairs(table, args.corpus[0], args.source_language):
            chunk = chunk.filter(pl.col("language").is_in(args.target_languages))
            runs.add(account.cleaned(build_pairs.cleaned(chunk, args, None), 0))
    runs.close()
    return account.dropped(build_pairs.select(read_part(runs.paths, 0, 1), args.skip, args.max_translations))


def built(arguments: list[str], output: Path) -> Path:
    """Run build_pairs.py's main in this process, its table unseen."""
    with contextlib.redirect_stdout(io.StringIO()):
        build_pairs.main(build_pairs.build_parser().parse_args([*arguments, "--output_dir", str(output)]))
    return output


def cpu_seconds(work: Callable) -> float:
    start = time.process_time()  # user and system time of all threads
    work()
    return time.process_time() - start


def main(args: argparse.Namespace) -> None:
    datasets.disable_progress_bars()
    source, targets = args.source_language, args.target_languages
    call = ["--corpus", args.corpus, "--source_language", source, "--target_languages", *targets]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = article_rows(args.corpus, folder / "cache")  # in the cache from here on
        off = ["--skip", *MENDING, *FILTERS, "--max_translations", str(10**9)]
        off += ["--max_sentences_per_language", str(10**9), "--export_pairs"]
        splits = datasets.load_from_disk(built([*call, *off], folder / "off") / "pairs_view")
        kept = pl.concat(split.to_polars() for split in splits.values())
        for language, lines in article_loop(rows, source, targets).items():
            pairs = kept.filter(language=language).select(pl.format("{}\t{}", "source", "target")).to_series()
            assert sorted(pairs) == sorted(lines), f"{language}: the pairs differ"
            print(f"{source}-{language}: {len(lines)} pairs, the same without filters")

        def article():
            rows = article_rows(args.corpus, folder / "cache")
            article_files(article_loop(rows, source, targets), source, folder / "article")

        tables = list(parquet_tables(args.corpus))
        on = [*call, "--skip", *args.skip] if args.skip else call
        options = build_pairs.build_parser().parse_args([*on, "--output_dir", str(folder / "on")])
        works = {
            "in memory": (
                lambda: article_loop(rows, source, targets),
                lambda: clean_pairs(tables, options, folder),
            ),
            "file to .tsv.gz": (article, lambda: built([*on, "--export_tsv"], folder / "on")),
            "file to Arrow": (article, lambda: built(on, folder / "on")),
        }
        seconds = {name: ([], []) for name in works}
        for _ in range(args.repeats):
            for name, pair in works.items():
                for times, work in zip(seconds[name], pair, strict=True):
                    times.append(cpu_seconds(work))
    ratios = []
    for name, pair in seconds.items():
        theirs, ours = (len(rows) / min(times) for times in pair)
        ratios.append(ours / theirs)
        print(f"{name}, rows per CPU-second: the article {theirs:,.0f}, build_pairs.py {ours:,.0f}: {ratios[-1]:.2f}")
    print(f"ratio: {min(ratios):.2f}")


if __name__ == "__main__":
    main(build_parser().parse_args())
