"""Sentences in the wrong column and in the right one: how many of them build_pairs.py drops as wrong_language.

    DATA=data python benchmarks/identification.py

20 languages, up to 1,000 sentences each of the TED-schema sample; of five, 300 are Tatoeba's, which are short. Wrong is
a column of another of the languages, by chance.
"""

import argparse
import os
import random
import sys
import time
from pathlib import Path

import polars as pl
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parent.parent))

from distill.pairs.cleaning import FILTERS, MENDING, inspect

DATA = Path(os.environ.get("DATA", "data"))
LANGUAGES = [*("ar", "cs", "de", "el", "en", "es", "fa", "fr", "he", "hi"), *("id", "it", "nl", "pl", "pt")]
LANGUAGES += ["ru", "sv", "tr", "uk", "vi"]
TATOEBA = {"ar": "ara", "de": "deu", "es": "spa", "fr": "fra", "it": "ita"}
SENTENCES, SHORT = 1000, 300
ASKED = [name for name in FILTERS if name in ("no_letters", "wrong_script", "wrong_language")]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="decides the sentences, and the columns that are wrong")
    return parser


def sentences(draw: random.Random) -> pl.DataFrame:
    """The columns `language` and `sentence`."""
    rows = pl.read_parquet(DATA / "ted_multi_sample.parquet")["translations"].struct.unnest()
    rows = rows.explode("language", "translation").filter(pl.col("translation").str.strip_chars() != "")
    found = []
    for language in LANGUAGES:
        of = rows.filter(language=language)["translation"].unique(maintain_order=True).to_list()
        draw.shuffle(of)
        short = []
        if language in TATOEBA:
            name = f"tatoeba/tatoeba.{TATOEBA[language]}-eng.{TATOEBA[language]}"
            short = (DATA / name).read_text(encoding="utf-8").splitlines()[:SHORT]
        found += [(language, sentence) for sentence in [*short, *of][:SENTENCES]]
    return pl.DataFrame(found, schema=["language", "sentence"], orient="row")


def dropped(frame: pl.DataFrame) -> tuple[pl.Series, float]:
    """Why each sentence is dropped, null where it is not; CPU-seconds."""
    start = time.process_time()
    faults = inspect(frame["sentence"], frame["language"], MENDING, ASKED, 10_000, None)["fault"]
    return faults, time.process_time() - start


def main(args: argparse.Namespace) -> None:
    draw = random.Random(args.seed)
    right = sentences(draw)
    others = [draw.choice([one for one in LANGUAGES if one != language]) for language in right["language"]]
    dropped(right[:10])  # loads the models
    rows = []
    for name, frame in (("right", right), ("wrong", right.with_columns(language=pl.Series(others)))):
        faults, seconds = dropped(frame)
        share, script = (100 * where.mean() for where in (faults.is_not_null(), faults == "wrong_script"))
        rows.append(
            [name, f"{len(frame):,}", f"{share:.2f}%", f"{script or 0:.2f}%", f"{1e6 * seconds / len(frame):.1f}"]
        )
        worst = frame.with_columns(fault=faults).group_by("language").agg(pl.col("fault").is_not_null().mean())
        print(name, *(f"{tag} {100 * value:.1f}" for tag, value in worst.sort("language").iter_rows()))
    headers = ["column", "sentences", "dropped", "of these by script", "microseconds a sentence"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main(build_parser().parse_args())
