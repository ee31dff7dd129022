"""Labels: the teacher's vector of every source sentence, computed once by all ranks and kept on disk."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from distill.encoder.sentence_encoder import SentenceEncoder
from distill.encoder.tokenizer import tokenizer_text
from distill.ranks import on_first_rank
from distill.training.cache import fill, fingerprint, mapped

PCA_SAMPLE = 20_000  # source sentences whose vectors the principal components are those of


def teacher_fingerprint(teacher: SentenceEncoder) -> str:
    """A name for the vectors that a teacher gives: its weights, tokenizer and settings, and whether they are TF32's."""
    # As bytes: numpy knows no bf16
    weights = [weight.cpu().reshape(-1).view(torch.uint8).numpy() for weight in teacher.state_dict().values()]
    tf32 = torch.cuda.is_available() and torch.get_float32_matmul_precision() == "high"
    return fingerprint(*weights, tokenizer_text(teacher.tokenizer), teacher.settings, tf32)


def teacher_labels(
    teacher: SentenceEncoder,
    splits,
    contents: dict[str, str],
    dtype: str,
    pca_width: int | None,
    cache_dir: Path,
    accelerator: Accelerator,
) -> tuple[dict[str, np.ndarray], str]:
    """The labels of each split, (rows, dimension) float32 or float16 (`dtype`), memory-mapped; and their fingerprint.

    The teacher's last Normalize is taken off. `contents`: the fingerprint of each split. `pca_width`: narrow the
    vectors to so many principal components of those of the train split.
    """
    if teacher.normalize:  # the article's teachers have no such layer
        say = accelerator.on_main_process(print)
        say("the teacher ends in Normalize: its labels are the vectors before that layer")
    teacher.before_normalize = True
    name = on_first_rank(partial(teacher_fingerprint, teacher), accelerator)
    if pca_width:
        append_pca(teacher, fingerprint(name, contents["train"]), splits["train"], pca_width, cache_dir, accelerator)
        name = fingerprint(name, contents["train"], pca_width)
    labels = {}
    for split, dataset in splits.items():
        folder = cache_dir / f"labels-{fingerprint(name, contents[split], dtype)}"

        def vectors(start: int, stop: int, dataset=dataset) -> dict[str, np.ndarray]:
            return {"labels": teacher.encode(dataset[start:stop]["source"]).astype(dtype)}

        # The teacher sorts a chunk by length: in a big one its batches hold hardly any padding.
        fill(folder, len(dataset), vectors, accelerator, "teacher's labels", 4096)
        labels[split] = mapped(folder / "labels.bin", dtype).reshape(len(dataset), teacher.dimension)
    return labels, fingerprint(name, contents, dtype)


def append_pca(
    teacher: SentenceEncoder, name: str, dataset, width: int, cache_dir: Path, accelerator: Accelerator
) -> None:
    """Narrow a teacher's vectors to their first `width` principal components, by a layer at its end.

    Fitted on the vectors of a sample of the sources; both are kept beside the labels, under `name`. The components are
    those of the centred vectors but the layer does not centre, as in sentence-transformers: cosines depend on the
    origin.
    """
    rows = np.linspace(0, len(dataset) - 1, min(PCA_SAMPLE, len(dataset))).astype(int)
    sample_folder, folder = cache_dir / f"sample-{name}", cache_dir / f"pca-{name}-{width}"

    def vectors(start: int, stop: int) -> dict[str, np.ndarray]:
        return {"vectors": teacher.encode(dataset[rows[start:stop]]["source"])}

    def directions(start: int, stop: int) -> dict[str, np.ndarray]:
        found = mapped(sample_folder / "vectors.bin", np.float32).reshape(len(rows), teacher.dimension)
        _, rising = np.linalg.eigh(np.cov(found.astype(np.float64), rowvar=False))  # sorted by variance
        return {"directions": rising.T[::-1][start:stop].astype(np.float32, order="C").ravel()}

    fill(sample_folder, len(rows), vectors, accelerator, "sample for the PCA", 1024)
    fill(folder, width, directions, accelerator, "principal components", width)
    linear = torch.nn.Linear(teacher.dimension, width, bias=False)
    found = mapped(folder / "directions.bin", np.float32).reshape(width, teacher.dimension)
    linear.weight.data = torch.from_numpy(found.copy()).to(accelerator.device)
    teacher.dense.append(torch.nn.Sequential(linear, torch.nn.Identity()))
