"""Peak memory and speed of build_pairs.py on generated corpora of 0.1, 1 and 10 million pairs, as a table and a plot.

    python benchmarks/build_pairs_scale.py --plot benchmarks/build_pairs_scale.png
    python benchmarks/build_pairs_scale.py --pairs 3000000 --workers 1 2

The corpora are two-column TSV in two languages that share half their source sentences; one pair in twenty is a
duplicate. They are written in chunks and seeded, so every run measures the same bytes. Each build is a process of its
own, without `wrong_language`, since made-up words are in no language; the kernel says its peak of resident memory and
its CPU time.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import polars as pl
import pyarrow as pa
from tabulate import tabulate

ROOT = Path(__file__).parent.parent
CHUNK = 100_000
LIMIT_GIB = 3


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1], help="processes; memory is that of the largest")
    parser.add_argument("--work_dir", help="folder for the generated corpora, 5 GB at 10 million pairs")
    parser.add_argument("--plot", help="PNG file to write")
    return parser


def sentences(words: pl.Series, generator: np.random.Generator, n: int) -> pl.Series:
    """Sentences of 3 to 20 made-up words."""
    ends = np.cumsum(generator.integers(3, 21, n))
    picked = words.gather(generator.integers(0, len(words), int(ends[-1])))
    offsets = pa.array(np.concatenate([[0], ends]), pa.int64())
    lists = pa.LargeListArray.from_arrays(offsets, picked.to_arrow(compat_level=pl.CompatLevel.oldest()))
    return pl.Series(pl.from_arrow(lists)).list.join(" ")


def generate(path: Path, pairs: int, seed: int, source_seed: int) -> None:
    """Write `source TAB target` lines; the first half of the sources depends on `source_seed` alone."""
    generator = np.random.default_rng(seed)
    letters = np.array(list("abcdefghilmnoprstuvz"))
    lengths = np.random.default_rng(0).integers(2, 10, 20_000)
    vocabulary = np.random.default_rng(1)
    words = pl.Series(["".join(vocabulary.choice(letters, length)) for length in lengths])
    shared = np.random.default_rng(source_seed)
    with path.open("wb") as file:
        for start in range(0, pairs, CHUNK):
            n = min(CHUNK, pairs - start)
            source = sentences(words, shared if start < pairs // 2 else generator, n)
            lines = source + "\t" + sentences(words, generator, n) + "\n"
            lines = lines.gather(np.where(generator.random(n) < 0.05, 0, np.arange(n)))
            file.write("".join(lines.to_list()).encode())


def measure(corpora: list[Path], workers: int, output: Path) -> dict:
    """Build in a process of its own; seconds, CPU seconds and peak memory (GiB) of it."""
    call = [sys.executable, ROOT / "build_pairs.py", "--corpus", *corpora, "--target_languages", "it", "de"]
    call += ["--skip", "wrong_language", "--max_sentences_per_language", 10**9, "--output_dir", output]
    call += ["--workers", workers]
    start = time.perf_counter()
    process = subprocess.Popen([*map(str, call)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, "build_pairs.py failed"
    return {
        "seconds": time.perf_counter() - start,
        "cpu": usage.ru_utime + usage.ru_stime,
        "gib": usage.ru_maxrss / 2**20,
    }


def main(args: argparse.Namespace) -> None:
    rows = []
    for pairs in args.pairs:
        with tempfile.TemporaryDirectory(dir=args.work_dir) as temporary:
            corpora = [Path(temporary) / f"scale-en-{language}.tsv" for language in ("it", "de")]
            for seed, path in enumerate(corpora, 2):
                generate(path, pairs // 2, seed, source_seed=9)
            size = sum(path.stat().st_size for path in corpora) / 2**20
            for workers in args.workers:
                found = measure(corpora, workers, Path(temporary) / "pairs")
                speeds = pairs / found["seconds"], pairs / found["cpu"]
                rows.append([pairs, size, found["gib"], found["seconds"], *speeds, workers])
                print(f"{pairs} pairs: {found['gib']:.2f} GiB, {found['seconds']:.1f} s", flush=True)
    headers = ["pairs", "MiB", "peak GiB", "seconds", "pairs/s", "pairs/CPU-s", "workers"]
    print(tabulate(rows, headers, floatfmt=("", ".0f", ".2f", ".1f", ",.0f", ",.0f"), intfmt=","))
    if args.plot:
        plot(rows, args.plot)
    peak = max(row[2] for row in rows)
    print(f"peak: {peak:.2f} GiB of {LIMIT_GIB} allowed")
    assert peak <= LIMIT_GIB


def plot(rows: list[list], path: str) -> None:
    pairs = [row[0] for row in rows]
    figure, (memory, speed) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    memory.plot(pairs, [row[2] for row in rows], "o-", label="peak")
    memory.plot(pairs, [row[1] / 1024 for row in rows], "s--", color="grey", label="corpus on disk")
    memory.axhline(LIMIT_GIB, color="firebrick", linewidth=1, label="allowed")
    memory.set(xscale="log", xlabel="pairs", ylabel="resident memory, GiB", ylim=(0, LIMIT_GIB * 1.1))
    memory.legend(frameon=False)
    speed.plot(pairs, [row[4] / 1000 for row in rows], "o-")
    speed.set(xscale="log", xlabel="pairs", ylabel="thousand pairs per second", ylim=(0, None))
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main(build_parser().parse_args())
