"""A model as ONNX graphs: from token ids to sentence vectors, in fp32 and int8, where sentence-transformers looks.

onnx, onnxruntime and onnxscript are imported where they are used: nothing else needs them.
"""

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from distill.command import UserError
from distill.encoder.model_folder import loading
from distill.encoder.sentence_encoder import SentenceEncoder

# As sentence-transformers names them, int8 as its "avx2" has it: unsigned weights, with a scale for each column. Signed
# ones overflow on CPUs without VNNI.
FILES = {"fp32": "onnx/model.onnx", "int8": "onnx/model_quint8_avx2.onnx"}
TOLERANCE = 1e-4  # between the vectors of the fp32 graph and those of the model
LARGEST = 2**31 - 2**24  # bytes of weights: a file holds 2 GiB, the graph itself takes some


def check_onnx() -> None:
    """UserError where a package that --export_onnx needs is not installed."""
    if missing := [name for name in ("onnx", "onnxruntime", "onnxscript") if not find_spec(name)]:
        raise UserError(f"--export_onnx needs more than is installed: pip install {' '.join(missing)}")


class _Graph(nn.Module):
    """What a graph computes: vectors of tokens, which sentence-transformers pools itself, and of sentences."""

    def __init__(self, encoder: SentenceEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(sentences, longest) int64 each to (sentences, longest, width) and (sentences, dimension)."""
        tokens = self.encoder.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return tokens, self.encoder.sentence_vectors(tokens, attention_mask)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without warnings: the exporter's are about its own parts, the quantizer's ask for what the exporter has done."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


class OnnxEncoder:
    """Sentences to vectors by a graph; the tokenizer, the prompt and the limit of tokens are an encoder's."""

    def __init__(self, encoder: SentenceEncoder, path: Path, threads: int):
        import onnxruntime

        self.encoder, options = encoder, onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def encode(self, sentences: list[str], max_tokens: int = 4096) -> np.ndarray:
        """Vectors (len(sentences), dimension) float32, in the order given."""
        ids = self.encoder.token_ids(sentences)
        vectors = np.empty((len(ids), self.encoder.dimension), dtype=np.float32)
        for batch in self.encoder.cut(np.array([len(i) for i in ids]), max_tokens, packed=False):
            inputs = self.encoder.inputs([ids[i] for i in batch])
            inputs = {name: tensor.numpy() for name, tensor in inputs.items()}
            (vectors[batch],) = self.session.run(["sentence_embedding"], inputs)
        return vectors


def write_graph(encoder: SentenceEncoder, path: Path) -> None:
    """The fp32 graph of an encoder, for any number of sentences of any length; UserError where it has none."""
    name = encoder.transformer.config.model_type
    if (size := 4 * sum(weight.numel() for weight in encoder.parameters())) > LARGEST:
        raise UserError(f"weights of {size / 1e9:.1f} GB do not fit in one ONNX file: leave --export_onnx out")
    inputs = encoder.inputs(encoder.token_ids(["a", "a longer one"]))
    axes = {0: "batch", 1: "sequence"}
    encoder.transformer.config._attn_implementation = "eager"  # written out: the other ways leave more nodes
    failure = f"a model of type {name} cannot be written as an ONNX graph, leave --export_onnx out"
    with loading(failure), _quietly():
        program = torch.onnx.export(
            _Graph(encoder).eval(),
            (inputs["input_ids"], inputs["attention_mask"]),
            input_names=["input_ids", "attention_mask"],
            output_names=["last_hidden_state", "sentence_embedding"],
            dynamic_shapes=(axes, axes),
            verbose=False,
        )
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # the exporter notes the lines of source, with the paths of this machine
    program.save(path, external_data=False)


def quantize(path: Path, output: Path) -> None:
    """A graph with its matrices and embeddings in int8; what they are multiplied by is rounded as it comes."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quietly():
        quantize_dynamic(path, output, per_channel=True, weight_type=QuantType.QUInt8)


def write_graphs(folder: Path, kinds: list[str], sample: list[str]) -> tuple[dict[str, dict], dict[str, OnnxEncoder]]:
    """Write the graphs of an export into it; what its card says of each, and what encodes by each, on all threads.

    RuntimeError where vectors of the sample sentences by the fp32 graph differ by more than TOLERANCE from the model's.
    """
    encoder = SentenceEncoder.from_pretrained(str(folder))
    expected = encoder.encode(sample)
    paths = {kind: folder / file for kind, file in FILES.items()}
    paths["fp32"].parent.mkdir()
    write_graph(encoder, paths["fp32"])
    graphs = {"fp32": OnnxEncoder(encoder, paths["fp32"], torch.get_num_threads())}
    difference = np.abs(graphs["fp32"].encode(sample) - expected).max()
    if not difference <= TOLERANCE:
        raise RuntimeError(f"the ONNX graph's vectors differ from the model's by {difference:.1e}: it is not written")
    if "int8" in kinds:
        quantize(paths["fp32"], paths["int8"])
        graphs["int8"] = OnnxEncoder(encoder, paths["int8"], torch.get_num_threads())
    about = {}
    for kind in kinds:
        alone = OnnxEncoder(encoder, paths[kind], threads=1)
        about[kind] = {"file": FILES[kind], "bytes": paths[kind].stat().st_size}
        about[kind]["sentences_per_cpu_second"] = speed(alone, sample)
    if "fp32" not in kinds:
        paths["fp32"].unlink()
    return about, graphs


def speed(encoder: OnnxEncoder, sentences: list[str], times: int = 3) -> float:
    """Sentences per CPU-second, tokenizer included: the best of some passes after a first."""
    spent = []
    for _ in range(1 + times):
        start = time.process_time()
        encoder.encode(sentences)
        spent.append(time.process_time() - start)
    return len(sentences) / min(spent[1:])
