"""Options that both trainers have: of steps and learning rates, of speed and memory, of what a run shows and keeps."""

import argparse

from distill.command import at_least, between, not_negative, part, positive, share
from distill.training.student import SCHEDULES

# Of --sts_dev, of the dev split, of --eval_bitext, of --eval_retrieval; trackers take no @ in a name.
BEST = ["spearman_cosine", "mean_accuracy", "bitext_accuracy", "ndcg_at_10"]
TRACKERS = ["tensorboard", "trackio", "wandb"]
# Of these and of the data's, those that decide what is learned: a run goes on with those it began with.
DECIDING = (
    *("max_seq_length", "batch_size", "translations_per_source", "language_temperature", "seed"),
    *("learning_rate", "lr_scheduler_type", "decay_ratio"),
    *("warmup_ratio", "adam_epsilon", "weight_decay", "max_grad_norm", "dropout"),
    *("freeze_embeddings", "freeze_layers", "allow_tf32", "bf16_exchange"),
)


def add_common(parser: argparse.ArgumentParser, training) -> None:
    """Add them: to the group of training, and groups of their own."""
    # fmt: off
    training.add_argument("--translations_per_source", type=at_least(1), default=2, help="of a source, taken together")
    training.add_argument("--language_temperature", type=between(0.1), default=1.0, help="above 1 evens languages out")
    training.add_argument("--max_tokens_per_batch", type=at_least(1), help="tokens of a forward (CPU 2048, GPU 16384)")
    training.add_argument("--num_train_epochs", type=between(0, 1e6, above=True), default=1, help="over the pairs")
    training.add_argument("--max_train_steps", type=at_least(1), help="optimizer steps, instead of epochs")
    training.add_argument("--learning_rate", type=positive, default=2e-5, help="peak of the schedule")
    training.add_argument("--lr_scheduler_type", choices=SCHEDULES, default="linear", help="after the warm-up")
    training.add_argument("--decay_ratio", type=part, help="share of steps with falling learning rate, of wsd (0.2)")
    training.add_argument("--warmup_ratio", type=share, default=0.1, help="share of steps with rising learning rate")
    training.add_argument("--adam_epsilon", type=positive, default=1e-8, help="epsilon of AdamW")
    training.add_argument("--weight_decay", type=not_negative, default=0.01, help="not on biases and norms")
    training.add_argument("--max_grad_norm", type=positive, default=1.0, help="gradients are clipped to this norm")
    training.add_argument("--dropout", type=share, default=0.0, help="rate while training, in place of the student's")
    training.add_argument("--seed", type=at_least(0), default=42, help="decides the order of the pairs and dropout")
    memory = parser.add_argument_group("speed and memory (precision is the launcher's: --mixed_precision)")
    memory.add_argument("--allow_tf32", action="store_true", help="fp32 matrix products in TF32, on a GPU that has it")
    memory.add_argument("--attn_implementation", choices=["packed", "padded"], help="(packed where it can be)")
    memory.add_argument("--bf16_exchange", action="store_true", help="gradients go in bf16 from process to process")
    memory.add_argument("--torch_compile", action="store_true", help="compile the student: for long runs on a GPU")
    memory.add_argument("--gradient_checkpointing", action="store_true", help="less memory for a third more time")
    memory.add_argument("--dataloader_num_workers", type=int, choices=[0, 1], help="1 prepares steps ahead (GPU 1)")
    memory.add_argument("--freeze_embeddings", action="store_true", help="the student keeps its token embeddings")
    memory.add_argument("--freeze_layers", type=at_least(0), default=0, help="first layers that stay as they are")
    watching = parser.add_argument_group("evaluation and checkpoints")
    watching.add_argument("--sts_dev", metavar="SPEC", help="STS files whose mean Spearman chooses the best student")
    watching.add_argument("--eval_bitext", nargs="+", default=[], metavar="[NAME=]SPEC", help="more dev data: bitexts")
    watching.add_argument("--eval_retrieval", nargs="+", default=[], metavar="[NAME=]SPEC", help="in BEIR's layout")
    watching.add_argument("--metric_for_best_model", choices=BEST, help="if not given: STS, else accuracy")
    watching.add_argument("--skip_first_evaluation", action="store_true", help="not of the student as it starts")
    watching.add_argument("--early_stopping_patience", type=at_least(1), help="evaluations without a better one")
    watching.add_argument("--report_to", choices=TRACKERS, help="a tracker that gets what metrics.jsonl gets")
    watching.add_argument("--eval_steps", type=at_least(1), default=500, help="steps between dev evaluations")
    watching.add_argument("--logging_steps", type=at_least(1), default=10, help="steps between lines of metrics.jsonl")
    watching.add_argument("--checkpointing_steps", type=at_least(1), default=1000, help="steps between checkpoints")
    watching.add_argument("--checkpoints_total_limit", type=at_least(1), default=2, help="newest checkpoints to keep")
    watching.add_argument("--resume_from_checkpoint", metavar="latest|PATH", help="latest: if there is one")
    # fmt: on
