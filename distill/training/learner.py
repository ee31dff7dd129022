"""The student as the optimizer sees it: what of it is trained, with which dropout, in which groups."""

import re

import torch

from distill.command import UserError
from distill.encoder.sentence_encoder import SentenceEncoder


def freeze(student: SentenceEncoder, embeddings: bool, layers: int) -> None:
    """Exclude the token embeddings or the first layers from training; UserError when there are fewer."""
    for name, parameter in student.transformer.named_parameters():
        layer = re.search(r"\blayers?\.(\d+)\.", name)
        if layer is not None and int(layer[1]) < layers:
            parameter.requires_grad_(False)
    if layers > student.transformer.config.num_hidden_layers:
        raise UserError(f"--freeze_layers {layers}: the student has {student.transformer.config.num_hidden_layers}")
    if embeddings:
        student.transformer.get_input_embeddings().requires_grad_(False)


def set_dropout(model: torch.nn.Module, rate: float) -> None:
    """Give every dropout layer this rate; the configuration that is saved keeps its own."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; biases and norms, which have one dimension, do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def gathered(whole: SentenceEncoder, student: SentenceEncoder) -> SentenceEncoder:
    """The student whole: `whole`, to which the weights are copied that FSDP has spread over the ranks.

    Without FSDP the two are one.
    """
    if whole is not student:
        with torch.no_grad():
            for copy, part in zip(whole.parameters(), student.parameters(), strict=True):
                copy.copy_(part.full_tensor())
    return whole
