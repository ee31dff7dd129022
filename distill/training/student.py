"""What training makes of a student: which of its weights it trains, its dropout, how it lies on several ranks."""

import numpy as np
import torch
from accelerate import Accelerator
from transformers import get_linear_schedule_with_warmup

from distill.command import UserError
from distill.encoder.model_folder import layer_list
from distill.encoder.packing import out_of_memory
from distill.encoder.sentence_encoder import SentenceEncoder, encode_on_all_ranks
from distill.pairs.pairs_folder import evenly_spaced
from distill.ranks import on_first_rank

START_SAMPLE = 4000  # rows whose sentences a projection starts from


def start_projection(student: SentenceEncoder, dataset, labels: np.ndarray, accelerator: Accelerator) -> None:
    """Start the student's last layer where the loss is least for a student that is otherwise as it is.

    By linear least squares over both sides of a sample of pairs. A layer of random numbers would spoil at first what
    a pretrained student knows, since its gradients go through that layer. `labels`: (rows, dimension).
    """
    rows = evenly_spaced(len(dataset), START_SAMPLE)
    sample = dataset[rows]
    translations = [[target["sentence"] for target in targets] for targets in sample["targets"]]
    sides = [[source, *texts] for source, texts in zip(sample["source"], translations, strict=True)]
    linear, activation = student.dense.pop(-1)
    vector = encode_on_all_ranks(
        student, (sentence for texts in sides for sentence in texts), accelerator, "projection"
    )
    student.dense.append(torch.nn.Sequential(linear, activation))

    def least_squares() -> dict[str, torch.Tensor]:
        x = np.stack([vector[sentence] for texts in sides for sentence in texts]).astype(np.float64)
        y = labels[np.repeat(rows, [len(texts) for texts in sides])].astype(np.float64)
        x_mean, y_mean = x.mean(0), y.mean(0)
        # A last LayerNorm leaves a direction in which vectors differ by rounding alone.
        weight = np.linalg.lstsq(x - x_mean, y - y_mean, rcond=1e-4)[0].T
        return {"weight": torch.tensor(weight).float(), "bias": torch.tensor(y_mean - weight @ x_mean).float()}

    linear.load_state_dict(on_first_rank(least_squares, accelerator))


def freeze(student: SentenceEncoder, embeddings: bool, layers: int) -> None:
    """Exclude the token embeddings or the first layers from training; UserError when there are fewer."""
    transformer, have = student.transformer, student.transformer.config.num_hidden_layers
    if layers > have:
        raise UserError(f"--freeze_layers {layers}: the student has {have}")
    if layers:
        _, found = layer_list(transformer) or (None, None)
        if found is None:
            name = type(transformer).__name__
            raise UserError(f"--freeze_layers {layers}: {name} has no list of separate layers: leave it out")
        found[:layers].requires_grad_(False)
    if embeddings:
        transformer.get_input_embeddings().requires_grad_(False)


def set_dropout(student: SentenceEncoder, rate: float) -> None:
    """Set every rate of dropout: of layers, and those that modules hand to functions (attention, T5).

    The configuration, which is saved, keeps its own.
    """
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
        for name, value in vars(module).items():
            if "dropout" in name and type(value) in (int, float):
                setattr(module, name, rate)


def checkpoint_gradients(transformer) -> None:
    """Have activations computed anew in the backward; UserError where a transformer knows no way to."""
    if not transformer.supports_gradient_checkpointing:
        raise UserError(f"--gradient_checkpointing: {type(transformer).__name__} has none, leave it out")
    # transformers 5.23 calls it activation checkpointing; Python 3.10 has an earlier version.
    name = "activation_checkpointing_enable"
    enable = getattr(transformer, name, None) or transformer.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def shape_student(
    student: SentenceEncoder,
    freeze_embeddings: bool,
    freeze_layers: int,
    compiled: bool,
    checkpointed: bool,
    rate: float,
) -> None:
    """Make of a student what training is told to; UserError where it cannot be made. `rate`: of dropout."""
    freeze(student, freeze_embeddings, freeze_layers)
    if compiled:
        student.compile_transformer()
    if checkpointed:
        checkpoint_gradients(student.transformer)
    set_dropout(student, rate)


def optimizer_and_schedule(
    student: SentenceEncoder, steps: int, learning_rate: float, warmup_ratio: float, epsilon: float, weight_decay: float
) -> tuple:
    """AdamW, and a learning rate that rises to its peak and then falls to 0, in straight lines."""
    groups = parameter_groups(student, weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, eps=epsilon, fused=True)
    return optimizer, get_linear_schedule_with_warmup(optimizer, round(warmup_ratio * steps), steps)


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; biases and norms, which have one dimension, do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def update(optimizer) -> None:
    """A step of the optimizer; UserError where there is no memory for its state, which the first step makes."""
    try:
        optimizer.step()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise UserError(
            "out of memory for the optimizer, which keeps two numbers for each trained weight: train fewer "
            "(--freeze_embeddings, build_student.py trim) or spread them over GPUs (accelerate_configs/fsdp2.yaml)"
        ) from error


def gathered(whole: SentenceEncoder, student: SentenceEncoder) -> SentenceEncoder:
    """The student whole: `whole`, to which the weights are copied that FSDP has spread over the ranks.

    Without FSDP the two are one.
    """
    if whole is not student:
        with torch.no_grad():
            for copy, part in zip(whole.parameters(), student.parameters(), strict=True):
                copy.copy_(part.full_tensor())
    return whole


def settle_gradient_order(model, inputs: dict) -> None:
    """Let DDP order the gradients for their exchange, by a backward whose result is thrown away.

    It does so once, after its first backward. Sums over three ranks or more depend on that order in their last
    digit, and a resumed run is to have the order of the run that it continues.
    """
    model.eval()  # dropout takes no random numbers
    model(**inputs).sum().backward()
