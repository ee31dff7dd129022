"""Rebuild the folder `DATA` of the published measurements from public repositories (46 MB to download).

    python runs/get_data.py --output_dir data/

Of three repositories it takes a folder as it is; `ted_multi_sample.parquet` is made from two of these and NTREX-128.
"""

import argparse
import csv
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

sys.path.insert(0, str(Path(__file__).parent.parent))
from distill.command import Parser, UserError, run
from distill.folders import replaced_folder, writing
from distill.text_files import read_aligned_lines, read_lines

STSB = "PhilipMay/stsb-multi-mt"
LASER = "facebookresearch/LASER"
MULTI30K = "multi30k/dataset"
NTREX = "MicrosoftTranslator/NTREX"
# A commit's name is a hash of its files: what git brings is what was measured.
COMMITS = {
    STSB: "30de0dec4ee199b7f42351d3f1a0b19592955385",
    LASER: "74bc6ae7ffb7cba670fe0f428d0ede9f666fb821",
    MULTI30K: "a3d2e0d26b56f3846f66a952536ffed4e401d05a",
    NTREX: "8561f6a622db9edad1217683e5c83daefd8bb2bf",
}

# Missing sentences are drawn row by row in this order of the languages: another order is another sample.
SEED = 7
KEPT, KEPT_ENGLISH = 0.9, 0.995
STSB_LANGUAGES = ["de", "es", "fr", "it", "ja", "nl", "pl", "pt", "ru", "zh", "en"]
MULTI30K_LANGUAGES = "de,fr,cs,en"
NTREX_FILES = {
    "ar": "ref.arb", "it": "ref.ita", "es": "ref.spa", "fr": "ref.fra", "de": "ref.deu", "nl": "ref.nld",
    "pt": "ref.por", "ru": "ref.rus", "pl": "ref.pol", "tr": "ref.tur", "fa": "ref.fas", "he": "ref.heb",
    "hi": "ref.hin", "ja": "ref.jpn", "ko": "ref.kor", "vi": "ref.vie", "id": "ref.ind", "zh-cn": "ref.zho-CN",
    "el": "ref.ell", "ka": "ref.kat", "uk": "ref.ukr", "cs": "ref.ces", "sv": "ref.swe", "en": "src.eng",
}  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, script=__file__)
    parser.add_argument("--output_dir", required=True, help="folder to write, replaced when whole")
    return parser


def checkout(repository: str, folder: Path) -> None:
    """Put the files of a repository on GitHub, as they are in its commit and without history, into a new folder."""
    commands = (
        ["init"],
        ["fetch", "--depth=1", f"https://github.com/{repository}", COMMITS[repository]],
        ["checkout", COMMITS[repository]],
    )
    folder.mkdir(parents=True)
    try:
        for command in commands:
            subprocess.run(["git", *command, "--quiet"], cwd=folder, check=True, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError:
        raise UserError("git is not there, by which the corpora are fetched: install it") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.partition("\n")[0]
        raise UserError(f"{repository} cannot be fetched ({reason}): try again when GitHub can be reached") from None


def stsb(folder: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Talk names, and sentences by language: both of a pair, one after the other."""
    sentences = {}
    for language in STSB_LANGUAGES:
        with open(folder / f"stsb-{language}-train.csv", encoding="utf-8", newline="") as file:
            sentences[language] = [sentence for pair in csv.reader(file) for sentence in pair[:2]]
    return [f"stsb_train_{i // 200:03}" for i in range(len(sentences["en"]))], sentences


def multi30k(folder: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Talk names, and captions by language."""
    sentences = read_aligned_lines(f"{folder}/train.{{{MULTI30K_LANGUAGES}}}.gz")
    return [f"multi30k_train_{i // 250:03}" for i in range(len(sentences["en"]))], sentences


def ntrex(folder: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Talk names, which are the news documents', and the first 1,000 sentences by language."""
    files = {language: f"{folder}/NTREX-128/newstest2019-{name}.txt" for language, name in NTREX_FILES.items()}
    documents = read_lines(f"{folder}/DOCUMENT_IDS.tsv")[:1000]
    sentences = {language: read_lines(file)[:1000] for language, file in files.items()}
    return [f"ntrex_{document.replace('.', '_')}" for document in documents], sentences


def ragged_rows(talks: list[str], sentences: dict[str, list[str]], chance: random.Random) -> Iterator[dict]:
    """Rows in the schema of TED, with languages missing at random as they are there, now and then the English too."""
    for talk, *row in zip(talks, *sentences.values(), strict=True):
        kept = [
            (language, sentence)
            for language, sentence in zip(sentences, row, strict=True)
            if chance.random() <= (KEPT_ENGLISH if language == "en" else KEPT)
        ]
        languages, translations = zip(*sorted(kept), strict=True)
        yield {"translations": {"language": languages, "translation": translations}, "talk_name": talk}


def main(args) -> None:
    with (
        writing(args.output_dir),
        replaced_folder(args.output_dir, args, "data") as folder,
        tempfile.TemporaryDirectory(dir=folder) as work,
    ):
        for repository, commit in COMMITS.items():
            print(f"https://github.com/{repository}/tree/{commit}", flush=True)
            checkout(repository, Path(work, repository))
        Path(work, STSB, "data").rename(folder / "stsb_multi_mt")
        Path(work, LASER, "data/tatoeba/v1").rename(folder / "tatoeba")
        Path(work, MULTI30K, "data/task1/raw").rename(folder / "multi30k")
        corpora = stsb(folder / "stsb_multi_mt"), multi30k(folder / "multi30k"), ntrex(Path(work, NTREX))
        chance = random.Random(SEED)
        rows = [row for talks, sentences in corpora for row in ragged_rows(talks, sentences, chance)]
        parquet.write_table(pa.Table.from_pylist(rows), folder / "ted_multi_sample.parquet", compression="zstd")
    print(f"{args.output_dir}: {len(rows):,} rows in ted_multi_sample.parquet")


if __name__ == "__main__":
    run(main, build_parser().parse_args())
