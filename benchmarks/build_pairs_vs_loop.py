"""Rows per CPU-second of build_pairs.py and of the article's Python loop, on a corpus in the TED schema.

    python benchmarks/build_pairs_vs_loop.py --corpus ted_multi.parquet --target_languages it es ar fr de

Both read the file and write pairs to disk, several times in turn, in one process; CPU time is that of all its
threads, and the best of each counts. First it is proved that both keep the same pairs when no filter is on; then
build_pairs.py runs with every default filter.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import polars as pl
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent.parent))
import build_pairs
from cleaning import FILTERS, MENDING


def article_loop(corpus: str, source_language: str, target_languages: list[str], output: Path) -> dict[str, list[str]]:
    """The plain loop: find the source language's position in each row, append `source TAB translation`."""
    rows = datasets.Dataset.from_parquet(corpus, cache_dir=str(output.parent / "cache"))
    lines = {language: [] for language in target_languages}
    for row in rows:
        languages = row["translations"]["language"]
        sentences = row["translations"]["translation"]
        if source_language not in languages:
            continue
        source = sentences[languages.index(source_language)]
        for language, sentence in zip(languages, sentences, strict=True):
            if language in lines:
                lines[language].append(f"{source}\t{sentence}\n")
    output.mkdir(exist_ok=True)
    for language, texts in lines.items():
        with (output / f"{source_language}-{language}.tsv").open("w", encoding="utf-8") as file:
            file.writelines(texts)
    return lines


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
    call = ["--corpus", args.corpus, "--source_language", args.source_language]
    call += ["--target_languages", *args.target_languages]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def loop():
            return article_loop(args.corpus, args.source_language, args.target_languages, folder / "loop")

        loop_lines = loop()  # also fills the datasets cache, which the timed loops find
        off = ["--skip", *MENDING, *FILTERS, "--max_translations", str(10**9)]
        off += ["--max_sentences_per_language", str(10**9), "--export_pairs"]
        splits = datasets.load_from_disk(built([*call, *off], folder / "off") / "pairs_view")
        kept = pl.concat(split.to_polars() for split in splits.values())
        for language, lines in loop_lines.items():
            pairs = kept.filter(language=language).select(pl.format("{}\t{}\n", "source", "target")).to_series()
            assert sorted(pairs) == sorted(lines), f"{language}: the pairs differ"
            print(f"{args.source_language}-{language}: {len(lines)} pairs, the same without filters")

        seconds = {"the article's loop": [], "build_pairs.py, default filters": []}
        for _ in range(args.repeats):
            for name, work in zip(seconds, (loop, lambda: built(call, folder / "on")), strict=True):
                seconds[name].append(cpu_seconds(work))
    rows = pq.read_metadata(args.corpus).num_rows
    speeds = {name: rows / min(times) for name, times in seconds.items()}
    for name, speed in speeds.items():
        print(f"{name}: {rows} rows, {speed:,.0f} rows per CPU-second (best of {args.repeats})")
    loop_speed, build_speed = speeds.values()
    print(f"ratio: {build_speed / loop_speed:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="../shared/data/ted_multi_sample.parquet", help="Parquet, TED schema")
    parser.add_argument("--source_language", default="en")
    parser.add_argument("--target_languages", nargs="+", default=["it", "es", "ar", "fr", "de"])
    parser.add_argument("--repeats", type=int, default=5)
    main(parser.parse_args())
