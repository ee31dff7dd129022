"""Mine new sentence pairs from text in two languages or more that is not aligned.

    accelerate launch mine_pairs.py --text 'news.{en,it}.txt.zst' --source_language en \\
        --model_name_or_path run/student --output_dir mined/
    python build_pairs.py --corpus talks.jsonl mined/ --target_languages it --output_dir pairs/

Of the sentences of each side those are pairs that are nearer to each other than to their neighbours: by the ratio
margin of Artetxe & Schwenk 2019, arXiv 1811.01136. `mined/pairs.parquet` has the columns `source`, `language`,
`target` and `margin`, the best of each language first; `report.json` and `margins.png` beside it say what was read and
found. Sentences, vectors and neighbours stay in the cache, where the same command finds them again after a kill, or
with another threshold.
"""

import argparse
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import Accelerator

from distill.command import Parser, UserError, at_least, between, run
from distill.encoder.sentence_encoder import set_matmul_precision
from distill.folders import check_output, replaced_folder, write_json, writing
from distill.languages import required_tag
from distill.mining.margins import Mined, mined_pairs
from distill.mining.neighbours import is_exact, searcher, write_neighbours, write_vectors
from distill.mining.report import SHOWN, counts_table, draw_margins, histogram, last_pairs, pairs_table
from distill.mining.text import FAULTS, Rules, Text, files_by_language, read_text
from distill.pairs.tables import MINED, MINED_FILE
from distill.ranks import launched, listening, on_first_rank
from distill.training.cache import fingerprint
from distill.training.teachers import ModelTeacher

SCHEMA = pa.schema({"source": pa.string(), "language": pa.string(), "target": pa.string(), "margin": pa.float32()})
BATCH = 10_000  # pairs that are written at a time
SKIP_HELP = f"keep sentences with this fault: {', '.join(FAULTS[1:])}"


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, "accelerate launch", __file__)
    # fmt: off
    data = parser.add_argument_group("text and model")
    data.add_argument("--text", nargs="+", required=True, metavar="SPEC", help="text files: 'news.{en,it}.txt.gz'")
    data.add_argument("--source_language", default="en", help="language the teacher reads")
    data.add_argument("--split_sentences", action="store_true", help="a line holds many sentences, not one: split it")
    data.add_argument("--max_sentence_length", type=at_least(1), default=250, help="longest sentence (characters)")
    data.add_argument("--skip", nargs="+", default=[], metavar="FAULT", choices=FAULTS[1:], help=SKIP_HELP)
    data.add_argument("--model_name_or_path", required=True, help="multilingual model, folder or hub id")
    prompts = data.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", type=str, metavar="TEXT", help="put before each sentence ('': nothing)")
    prompts.add_argument("--prompt_name", metavar="NAME", help="the folder's (if not given: the default)")
    data.add_argument("--max_tokens_per_batch", type=at_least(1), help="tokens of a forward (CPU 4096, GPU 16384)")
    data.add_argument("--output_dir", required=True, help="folder to write, replaced when whole")
    data.add_argument("--cache_dir", help="folder for sentences, vectors, neighbours (if not given: OUTPUT_DIR.cache)")
    search = parser.add_argument_group("search")
    search.add_argument("--index", choices=["auto", "exact", "lists"], default="auto", help="lists: approximate, FAISS")
    search.add_argument("--k", type=at_least(2), default=4, help="neighbours that a margin is measured by")
    which = search.add_mutually_exclusive_group()
    which.add_argument("--min_margin", type=between(0), default=1.04, help="lowest margin of a pair")
    which.add_argument("--number_of_pairs", type=at_least(1), metavar="N", help="the N best pairs of each language")
    # fmt: on
    return parser


def encode(
    text: Text, model: ModelTeacher, name: str, max_tokens: int | None, cache_dir: Path, accelerator: Accelerator
) -> np.ndarray:
    """The vectors of a text's sentences (n, dimension), on disk; `name` names what decides them."""
    folder, sentences = cache_dir / f"vectors-{fingerprint(text.name, name)}", text.sentences
    given = len(sentences), lambda start, stop: sentences[start:stop]["sentence"]
    return write_vectors(folder, *given, partial(model.vectors, max_tokens=max_tokens), accelerator)


Neighbours = tuple[np.ndarray, np.ndarray]  # cosines and rows (n, k) of the k nearest sentences of the other side


def find_neighbours(
    sides: list[Text], vectors: list[np.ndarray], name: str, args: argparse.Namespace, cache_dir: Path, accelerator
) -> list[Neighbours]:
    """Of each sentence of two texts, in the other text; `name` names what decides the vectors."""
    found = []
    exact = is_exact(args.index, *map(len, vectors), accelerator.device)
    for one, other in ((0, 1), (1, 0)):
        index = cache_dir / f"index-{fingerprint(name, sides[other].name)}"
        search = searcher(vectors[other], exact, index, accelerator)
        folder = cache_dir / f"neighbours-{fingerprint(name, sides[one].name, sides[other].name, args.k, exact)}"
        found.append(write_neighbours(folder, vectors[one], search, args.k, accelerator))
    return found


def rows_of(source: Text, target: Text, mined: Mined, rows: slice) -> list[dict]:
    """Some of the pairs, as pairs.parquet has them."""
    taken = ((source, mined.sources), (target, mined.targets))
    sides = (text.sentences[places[rows]]["sentence"] for text, places in taken)
    pairs = zip(*sides, mined.margins[rows].tolist(), strict=True)
    return [{"source": s, "language": target.language, "target": t, "margin": margin} for s, t, margin in pairs]


def write_pairs(folder: Path, texts: dict[str, Text], neighbours: dict[str, list[Neighbours]], args) -> dict[str, dict]:
    """Write pairs.parquet; what report.json says of each language. UserError where no pair is found in any."""
    source, report, highest = texts[args.source_language], {}, {}
    lowest = 0.0 if args.number_of_pairs else args.min_margin
    with pq.ParquetWriter(folder / MINED_FILE, SCHEMA, compression="zstd") as writer:
        for language, found in neighbours.items():
            target = texts[language]
            mined, margins = mined_pairs(*found, (source.contents, target.contents), lowest)
            count = min(args.number_of_pairs or len(mined.margins), len(mined.margins))
            highest[language] = float(margins.max())
            for start in range(0, count, BATCH):
                rows = rows_of(source, target, mined, slice(start, min(start + BATCH, count)))
                writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
            report[language] = {
                "pairs": count,
                "lowest_margin": float(mined.margins[count - 1]) if count else None,
                "last": rows_of(source, target, mined, slice(max(0, count - SHOWN), count)),
                "margins": histogram(margins),
            }
    if not any(about["pairs"] for about in report.values()):
        best = ", ".join(f"of {language} {margin:.3f}" for language, margin in highest.items())
        raise UserError(
            f"no two sentences have a margin of {lowest}, the highest is {best}: give other text, another model, or a "
            "lower --min_margin"
        )
    return report


def main(args: argparse.Namespace) -> None:
    datasets.disable_progress_bars()
    accelerator = launched()
    set_matmul_precision(accelerator.device)
    say = accelerator.on_main_process(print)

    # What is asked for
    args.source_language = required_tag(args.source_language, "--source_language")
    files = files_by_language(args.text)
    if args.source_language not in files or len(files) < 2:
        raise UserError(f"--text must name {args.source_language} and another language, found {' '.join(files)}")
    on_first_rank(partial(check_output, args.output_dir, args, MINED), accelerator)
    output_dir, cache_dir = Path(args.output_dir), Path(args.cache_dir or f"{Path(args.output_dir)}.cache")
    if output_dir.resolve() in (cache_dir.resolve(), *cache_dir.resolve().parents):
        raise UserError(f"{cache_dir} would be replaced with {output_dir}: name another --cache_dir")
    model = ModelTeacher(args.model_name_or_path, accelerator, prompt=args.prompt, prompt_name=args.prompt_name)
    name = fingerprint(model.name, accelerator.mixed_precision)

    # Sentences and their vectors, once
    faults = [fault for fault in FAULTS if fault not in args.skip]
    rules = Rules(args.split_sentences, faults, args.max_sentence_length)
    texts = {language: read_text(language, paths, rules, cache_dir, accelerator) for language, paths in files.items()}
    say(counts_table([*texts.values()]))
    for language, text in texts.items():
        if len(text.sentences) < args.k:
            raise UserError(
                f"{len(text.sentences)} sentences of {language} are fewer than --k {args.k}: give more text"
            )
    by = model, name, args.max_tokens_per_batch, cache_dir, accelerator
    vectors = {language: encode(text, *by) for language, text in texts.items()}

    # Neighbours in both directions
    neighbours, source = {}, args.source_language
    for language in [one for one in texts if one != source]:
        both = [texts[source], texts[language]], [vectors[source], vectors[language]]
        neighbours[language] = find_neighbours(*both, name, args, cache_dir, accelerator)

    # Margins, pairs, report
    def write() -> None:
        with writing(args.output_dir), replaced_folder(args.output_dir, args, MINED) as folder:
            report = write_pairs(folder, texts, neighbours, args)
            counts = {language: text.counts for language, text in texts.items()}
            write_json(folder / "report.json", {"texts": counts, "mined": report})
            draw_margins(folder / "margins.png", report, source)
        print(f"\n{pairs_table(report, source)}\n\n{last_pairs(report)}\n")
        print(f"pairs: {output_dir} (pairs.parquet, report.json, margins.png); {cache_dir} can be removed")

    on_first_rank(write, accelerator)
    accelerator.end_training()


if __name__ == "__main__":
    with listening("the same command goes on"):
        run(main, build_parser().parse_args())
