"""The parts of a sentence-transformers folder, of any of its versions: where it is, its pooling, its Dense layers."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding
from transformers.utils import logging

from distill.command import UserError
from distill.folders import read_json, write_json

logging.disable_progress_bar()  # of loading and saving weights; long work has bars of its own

# The keys of 1_Pooling/config.json, in the order in which sentence-transformers concatenates poolings.
POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
OLD_POOLINGS = ("cls", "mean", "max", "mean_sqrt_len_tokens")  # the keys that every version reads


def find_folder(name_or_path: str) -> Path:
    """A local model folder as it is; a hub id as its snapshot in the local cache."""
    if Path(name_or_path).exists():
        if not list(Path(name_or_path).glob("**/config.json")):
            raise UserError(f"{name_or_path} is no model: it has no config.json")
        return Path(name_or_path)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name_or_path) or name_or_path.startswith("."):
        raise UserError(f"{name_or_path} does not exist: give a model folder or a hub id")
    patterns = ["*.json", "*.txt", "*.model", "*.safetensors", "*_Dense/*.bin"]
    try:
        folder = Path(snapshot_download(name_or_path, allow_patterns=patterns))
        if not list(folder.glob("**/*.safetensors")):  # published before there was that format
            snapshot_download(name_or_path, allow_patterns=["*.bin"])
        return folder
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]  # not the library's advice
        raise UserError(f"{name_or_path} is neither a model folder nor a hub id within reach: {reason}") from error


@contextmanager
def loading(failure: str) -> Iterator[None]:
    """Turn whatever the libraries raise on damaged files into a UserError: the failure, and why."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".: ")
        raise UserError(f"{failure}: {reason}") from error


def read_transformer(folder: Path) -> nn.Module:
    """A transformer in fp32; of T5 and its kin the encoder.

    UserError where the folder lacks weights, which transformers would make up. A pooler's are not needed: no
    sentence vector comes from it.
    """
    t5 = AutoConfig.from_pretrained(folder).model_type in ("t5", "mt5", "umt5")
    automatic = AutoModelForTextEncoding if t5 else AutoModel
    transformer, found = automatic.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(name for name in found["missing_keys"] if not name.startswith("pooler.")):
        raise UserError(f"{folder} lacks {len(missing)} of the model's weights, such as {missing[0]}: save it anew")
    return transformer


def layer_list(transformer) -> tuple[str, nn.ModuleList] | None:
    """Name and list of the layers, None where a model has none: ALBERT's share the weights of one."""
    lists = ((name, module) for name, module in transformer.named_modules() if isinstance(module, nn.ModuleList))
    count = transformer.config.num_hidden_layers
    return next(((name, layers) for name, layers in lists if len(layers) == count), None)


def position_table(transformer) -> tuple[str, nn.Embedding] | None:
    """Name and table of learned positions, None where a model has none."""
    tables = ((name, module) for name, module in transformer.named_modules() if name.endswith("position_embeddings"))
    return next(((name, table) for name, table in tables if isinstance(table, nn.Embedding)), None)


def longest_input(transformer) -> int:
    """The most tokens that a model has positions for. RoBERTa and its kin number them from behind the padding's id."""
    longest = getattr(transformer.config, "max_position_embeddings", 10**6)
    _, table = position_table(transformer) or (None, None)
    if table is None:
        return longest
    return min(longest, table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1))


def read_pooling(path: Path) -> str:
    """The pooling of 1_Pooling, several joined by '+': `pooling_mode` since version 6, one key per mode before."""
    config = read_json(path / "config.json", {})
    modes = config.get("pooling_mode") or [mode for mode, key in POOLING_KEYS.items() if config.get(key)]
    modes = [modes] if isinstance(modes, str) else modes
    if not modes or not set(modes) <= set(POOLING_KEYS):
        raise UserError(f"{path}: the pooling must be one of {', '.join(POOLING_KEYS)}, found {modes or config}")
    if config.get("include_prompt") is False:
        raise UserError(f"{path}: a pooling that leaves out the prompt (include_prompt) is not supported")
    return "+".join(modes)


def write_pooling(path: Path, pooling: str, width: int) -> None:
    """1_Pooling for a transformer of this width, with the keys that every version reads."""
    modes = pooling.split("+")
    keys = {mode: key for mode, key in POOLING_KEYS.items() if mode in (*OLD_POOLINGS, *modes)}
    path.mkdir()
    config = {"word_embedding_dimension": width} | {key: mode in modes for mode, key in keys.items()}
    write_json(path / "config.json", config)


def read_dense(path: Path) -> nn.Sequential:
    """A Dense module: its linear layer, then its activation."""
    config = read_json(path / "config.json", {})
    if config.get("use_residual") or config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise UserError(f"{path}: a Dense layer with a residual or on tokens is not supported")
    linear = nn.Linear(config["in_features"], config["out_features"], bias=config["bias"])
    new, old = path / "model.safetensors", path / "pytorch_model.bin"
    weights = load_file(new) if new.exists() else torch.load(old, weights_only=True)
    linear.load_state_dict({name.removeprefix("linear."): weight for name, weight in weights.items()})
    return nn.Sequential(linear, getattr(nn, config["activation_function"].rsplit(".", 1)[-1])())


def write_dense(path: Path, layer: nn.Sequential, dtype: torch.dtype) -> None:
    """A Dense module, its weights in both formats: versions before 3.0 know no safetensors here."""
    linear, activation = layer
    path.mkdir()
    config = {
        "in_features": linear.in_features,
        "out_features": linear.out_features,
        "bias": linear.bias is not None,
        "activation_function": f"{type(activation).__module__}.{type(activation).__name__}",
    }
    write_json(path / "config.json", config)
    weights = {f"linear.{name}": weight.to("cpu", dtype) for name, weight in linear.state_dict().items()}
    save_file(weights, path / "model.safetensors")
    torch.save(weights, path / "pytorch_model.bin")
