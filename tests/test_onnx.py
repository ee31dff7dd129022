"""ONNX graphs of an export: whole, for any batch, as the folder's default prompt needs it; and what int8 costs."""

import json
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import SAMPLES, saved, tiny_encoder
from sentence_transformers.backend.utils import backend_should_export
from tokenizers import Tokenizer
from torch import nn

from distill.command import UserError
from distill.scoring import onnx_graphs
from eval_sts import build_parser, main

SENTENCES = ["I love plants.", "a", "Amo le piante, anche in inverno, e non solo quelle che hanno i fiori."]
GRAPHS = ["onnx/model.onnx", "onnx/model_quint8_avx2.onnx"]


def export_of(tmp_path, model, *more) -> dict:
    """Score and export a model to tmp_path/export; its entry in the export's scores.json."""
    command = ["--model_name_or_path", f"good={model}", "--sts", str(SAMPLES / "sts-{en,it}.csv")]
    command += ["--output_dir", str(tmp_path / "scores"), "--bootstrap_samples", "20"]
    main(build_parser().parse_args([*command, "--export_dir", str(tmp_path / "export"), *more]))
    (entry,) = json.loads((tmp_path / "export/scores.json").read_text())["models"]
    return entry


def run_alone(folder, graph: str, sentences: list[str], limit: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of tokens and of sentences by the graph and tokenizer.json, and nothing else of the folder."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(limit)
    tokenizer.enable_padding()
    found = tokenizer.encode_batch(sentences)
    inputs = {"input_ids": [one.ids for one in found], "attention_mask": [one.attention_mask for one in found]}
    inputs = {name: np.array(rows, dtype=np.int64) for name, rows in inputs.items()}
    session = onnxruntime.InferenceSession(folder / graph, providers=["CPUExecutionProvider"])
    return session.run(["last_hidden_state", "sentence_embedding"], inputs)


def least_cosine(vectors: np.ndarray, expected: np.ndarray) -> float:
    """Of any vector to the one expected."""
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    return ((vectors * expected).sum(1) / norms).min()


@pytest.mark.parametrize("top", ["dense and normalize", "prompt not pooled"])
def test_one_graph_gives_the_models_vectors(tmp_path, top):
    prompt = ""
    if top == "dense and normalize":
        settings = {"dense": nn.Sequential(nn.Sequential(nn.Linear(32, 8), nn.Tanh())), "normalize": True}
    else:
        prompt = "I love "
        settings = {"prompts": {"query": prompt}, "default_prompt_name": "query", "pooling": "cls+mean+lasttoken"}
        settings["include_prompt"] = False
    model = tiny_encoder(**settings)
    entry = export_of(tmp_path, saved(model, tmp_path / "model"), "--export_onnx", "fp32", "int8")
    folder, expected = tmp_path / "export", model.encode(SENTENCES)
    read = [prompt + sentence for sentence in SENTENCES]
    for texts, vectors in ((read, expected), (read[:1], expected[:1]), (read[2:], expected[2:])):
        tokens, found = run_alone(folder, GRAPHS[0], texts)
        np.testing.assert_allclose(found, vectors, atol=1e-5)
        assert tokens.shape[0] == len(texts) and tokens.shape[2] == 32
        assert least_cosine(run_alone(folder, GRAPHS[1], texts)[1], vectors) > 0.99
    whole, small = ((folder / graph).read_bytes() for graph in GRAPHS)
    assert len(small) < 0.5 * len(whole)
    assert b".py" not in whole + small, "no paths of the machine that made them"

    card = (folder / "README.md").read_text()
    assert ("so put 'I love ' before each" in card) == bool(prompt)
    lost = entry["onnx"]["int8"]["compared_with"]["fp32"]["summary"]["within"]["difference"]
    assert f"within {100 * lost + 0:+.2f}".replace("-0.00", "+0.00") in card and abs(lost) < 0.05
    assert [one["file"] for one in entry["onnx"].values()] == GRAPHS
    assert all(f"| `{one['file']}`" in card and one["sentences_per_cpu_second"] > 0 for one in entry["onnx"].values())

    # sentence-transformers' own look-up; what comes after it is optimum's, which has no version for transformers 5
    for given, file in (({}, "model.onnx"), ({"file_name": "model_quint8_avx2.onnx"}, "model_quint8_avx2.onnx")):
        found = backend_should_export(folder, True, given, "model.onnx", "*.onnx", "ONNX")
        assert found == (False, {"subfolder": "onnx", "file_name": file})


def test_int8_alone(tmp_path, student):
    entry = export_of(tmp_path, student, "--export_onnx", "int8")
    found = [path.relative_to(tmp_path / "export").as_posix() for path in tmp_path.glob("export/onnx/*")]
    assert found == GRAPHS[1:] and [*entry["onnx"]] == ["int8"]
    card = (tmp_path / "export/README.md").read_text()
    assert '"file_name": "model_quint8_avx2.onnx"' in card and card.count("| `onnx/") == 1


class OtherVectors(onnx_graphs.OnnxEncoder):
    """In the place of a graph, vectors that are not the model's."""

    def __init__(self, encoder, path, threads):
        self.encoder = encoder

    def encode(self, sentences):
        return self.encoder.encode(sentences) + 0.001


def broken(*arguments, **settings):
    raise RuntimeError("no such operator.\nmore")


@pytest.mark.parametrize(
    "change, error, said",
    [
        ([(onnx_graphs, "LARGEST", 1000)], UserError, r"weights of 0\.0 GB do not fit in one ONNX file"),
        ([(torch.onnx, "export", broken)], UserError, "bert cannot be written as an ONNX graph.*: no such operator$"),
        (
            [(onnx_graphs, "write_graph", lambda encoder, path: None), (onnx_graphs, "OnnxEncoder", OtherVectors)],
            RuntimeError,
            r"the ONNX graph's vectors differ from the model's by 1\.0e-03",
        ),
    ],
)
def test_an_old_export_stays_where_a_graph_cannot_be_had(tmp_path, teacher, student, monkeypatch, change, error, said):
    export_of(tmp_path, teacher)
    before = {path: path.read_bytes() for path in (tmp_path / "export").rglob("*") if path.is_file()}
    for where, name, value in change:
        monkeypatch.setattr(where, name, value)
    with pytest.raises(error, match=said):
        export_of(tmp_path, student, "--export_onnx", "fp32")
    assert before == {path: path.read_bytes() for path in (tmp_path / "export").rglob("*") if path.is_file()}
    assert {path.name for path in tmp_path.iterdir()} == {"scores", "export"}, "no temporary folder is left"


def test_what_is_not_installed_is_named_before_anything_is_scored(tmp_path, teacher, monkeypatch):
    monkeypatch.setattr(onnx_graphs, "find_spec", lambda name: name == "onnx")
    with pytest.raises(UserError, match="pip install onnxruntime onnxscript"):
        export_of(tmp_path, teacher, "--export_onnx", "fp32")
    assert not (tmp_path / "scores").exists()


def test_without_the_option_nothing_of_onnx_is_needed(tmp_path, teacher, monkeypatch):
    for name in ("onnx", "onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    export_of(tmp_path, teacher)
    assert not (tmp_path / "export/onnx").exists()
