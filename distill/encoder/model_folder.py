"""The parts of a sentence-transformers folder, of any of its versions: where it is, its pooling, its Dense layers."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForTextEncoding
from transformers.utils import logging

from distill.command import UserError
from distill.folders import read_json, write_json

logging.disable_progress_bar()  # of loading and saving weights; long work has bars of its own
# No table of the weights that were found: read_transformer judges them.
logging.get_logger("transformers.modeling_utils").addFilter(lambda record: "LOAD REPORT" not in record.getMessage())

# The keys of 1_Pooling/config.json, in the order in which sentence-transformers concatenates poolings.
POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
# How models call their table of positions: BERT and its kin, CLIP, GPT-2, BART.
POSITION_TABLES = ("position_embeddings", "position_embedding", "wpe", "embed_positions")
FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*.bin"]  # that a model may be read from
WRITTEN_BESIDE = ("args.json", "scores.json")  # by this project's scripts, into a model's folder
OLD_POOLINGS = ("cls", "mean", "max", "mean_sqrt_len_tokens")  # the keys that every version reads


def find_folder(name_or_path: str) -> Path:
    """A local model folder as it is; a hub id as its snapshot in the local cache."""
    folder = Path(name_or_path)
    if folder.exists():
        if not any((folder / name).is_file() for name in ("config.json", "modules.json")):
            # A run holds its last student, and the best one, student/
            models = sorted((path.parent for path in folder.glob("*/config.json")), reverse=True)
            found = f", give the model in it, {models[0]}" if models else ""
            raise UserError(f"{name_or_path} is no model: it has no config.json{found}")
        return folder
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name_or_path) or name_or_path.startswith("."):
        raise UserError(f"{name_or_path} does not exist: give a model folder or a hub id")
    try:
        folder = Path(snapshot_download(name_or_path, allow_patterns=[*FILES[:-1], "*_Dense/*.bin"]))
        if not list(folder.glob("**/*.safetensors")):  # published before there was that format
            snapshot_download(name_or_path, allow_patterns=["*.bin"])
        return folder
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]  # not the library's advice
        raise UserError(f"{name_or_path} is neither a model folder nor a hub id within reach: {reason}") from error


def model_files(folder: Path) -> list[Path]:
    """The files of a model's folder that decide its vectors; of weights in two formats those that are read."""
    files = {path for pattern in FILES for path in folder.rglob(pattern) if path.name not in WRITTEN_BESIDE}
    packed = {path.parent for path in files if path.suffix == ".safetensors"}
    return sorted(path for path in files if path.suffix != ".bin" or path.parent not in packed)


def ends_in_normalize(folder: Path) -> bool:
    """Whether a model's vectors are brought to length 1, as its modules.json says."""
    return "Normalize" in dict(listed_modules(folder))


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


def read_config(folder: Path) -> dict:
    """A module's configuration; UserError where it has none."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no config.json: save the model anew")
    return read_json(path, {})


def read_modules(folder: Path) -> tuple[Path, str, bool, nn.Sequential, bool]:
    """The folder of a model's transformer, its pooling, whether that includes a prompt, its Dense layers, and whether
    Normalize follows them.

    Without modules.json it is a plain transformer, and pooled by the mean.
    """
    modules = listed_modules(folder)
    if not modules:
        return folder, "mean", True, nn.Sequential(), False
    (_, root), (_, pooling), *others = modules
    dense = nn.Sequential(*(read_dense(path) for kind, path in others if kind == "Dense"))
    return root, *read_pooling(pooling), dense, modules[-1][0] == "Normalize"


def listed_modules(folder: Path) -> list[tuple[str, Path]]:
    """Kind and folder of each module that modules.json lists, none where there is no such file.

    UserError for any sequence but Transformer, Pooling, then Dense layers if any and Normalize or not.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return []
    try:
        modules = [(str(module["type"]).rpartition(".")[2], folder / module["path"]) for module in read_json(path, [])]
    except (TypeError, KeyError):
        raise UserError(f"{path} is no list of modules, each with its type and path: save the model anew") from None
    kinds = " ".join(kind for kind, _ in modules)
    if not re.fullmatch(r"Transformer Pooling( Dense)*( Normalize)?", kinds):
        raise UserError(
            f"{path} lists {kinds or 'nothing'}, which is not supported: only Transformer, Pooling, then Dense layers "
            "if any and Normalize or not"
        )
    return modules


def read_transformer(folder: Path, dtype: torch.dtype) -> nn.Module:
    """A transformer; of T5 and its kin the encoder.

    UserError where the weights are not those of the configuration: transformers would make up what they lack, and
    leave out what is too many. A pooler's are not needed, no sentence vector comes from it; and what is too many
    outside of the layers is of a head.
    """
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} holds an adapter (adapter_config.json): merge it into the model and save that")
    t5 = read_config(folder).get("model_type") in ("t5", "mt5", "umt5")
    automatic = AutoModelForTextEncoding if t5 else AutoModel
    transformer, found = automatic.from_pretrained(
        folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    if mismatched := sorted(found["mismatched_keys"]):
        name, shape, expected = mismatched[0]
        raise UserError(
            f"{folder}: the weight {name} is of shape {(*shape,)}, by its config.json of {(*expected,)}: put the "
            "config.json there that it was saved with"
        )
    if missing := sorted(name for name in found["missing_keys"] if not name.startswith("pooler.")):
        raise UserError(f"{folder} lacks {len(missing)} of the model's weights, such as {missing[0]}: save it anew")
    layers, _ = layer_list(transformer) or (None, None)
    if more := sorted(name for name in found["unexpected_keys"] if layers and f".{layers}." in f".{name}"):
        raise UserError(
            f"{folder} has {len(more)} weights more than by its config.json, such as {more[0]}: put the config.json "
            "there that they were saved with"
        )
    return transformer


def read_prompts(folder: Path, text: str | None = None, name: str | None = None) -> tuple[dict[str, str], str | None]:
    """A model's prompts, and the name of the one that is put before every sentence, or of none.

    That is the folder's default, if neither `text` (an empty one: no prompt) nor the `name` of one is given. UserError
    where the folder has no prompt of that name.
    """
    about = read_json(folder / "config_sentence_transformers.json", {})
    prompts, default = about.get("prompts") or {}, about.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise UserError(f"{folder}: its prompts are no names with a text each, but {prompts}: mend them")
    if default not in (None, "query", "document", *prompts):  # two names that stand for no prompt, if not given
        raise UserError(f"{folder}: its default prompt {default!r} is not among its prompts {[*prompts]}")
    if text:
        free = next(name for name in ("default", "given", "given_too") if name not in prompts)
        name = {prompt: known for known, prompt in prompts.items()}.get(text, free)
        return prompts | {name: text}, name
    if name is not None and name not in prompts:
        have = f"has the prompts {', '.join(prompts)}" if prompts else "has no prompts"
        raise UserError(f"{folder} {have}, none is called {name!r}: give one's text")
    return prompts, default if text is None and name is None else name


def behind(prompt: str) -> str:
    """What a model reads of a sentence, for people."""
    return f"{prompt!r} + sentence" if prompt else "sentence"


def layer_list(transformer) -> tuple[str, nn.ModuleList] | None:
    """Name and list of the layers, None where a model has no such list.

    ALBERT's layers share the weights of one; XLM has a list of each part of its layers.
    """
    lists = ((name, module) for name, module in transformer.named_modules() if isinstance(module, nn.ModuleList))
    count = getattr(transformer.config, "num_hidden_layers", None)
    found = [(name, layers) for name, layers in lists if len(layers) == count]
    beside = [name for name, _ in found if name.rpartition(".")[0] == found[0][0].rpartition(".")[0]]
    return found[0] if len(beside) == 1 else None


def position_table(transformer) -> tuple[str, nn.Embedding] | None:
    """Name and table of learned positions, None where a model has none."""
    tables = ((name, module) for name, module in transformer.named_modules() if name.endswith(POSITION_TABLES))
    return next(((name, table) for name, table in tables if isinstance(table, nn.Embedding)), None)


def longest_input(transformer) -> int:
    """The most tokens that a model has positions for. RoBERTa and its kin number them from behind the padding's id."""
    longest = getattr(transformer.config, "max_position_embeddings", -1)
    if longest == -1:  # XLNet's way to say that there is no limit
        longest = 10**6
    _, table = position_table(transformer) or (None, None)
    if table is None:
        return longest
    return min(longest, table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1))


def read_pooling(path: Path) -> tuple[str, bool]:
    """The pooling of 1_Pooling, several joined by '+', and whether it includes a prompt's tokens.

    `pooling_mode` since version 6, one key per mode before.
    """
    config = read_config(path)
    modes = config.get("pooling_mode") or [mode for mode, key in POOLING_KEYS.items() if config.get(key)]
    modes = modes if isinstance(modes, list) else [modes]
    if not modes or not all(mode in [*POOLING_KEYS] for mode in modes):
        raise UserError(f"{path}: the pooling must be one of {', '.join(POOLING_KEYS)}, found {modes or config}")
    return "+".join(modes), bool(config.get("include_prompt", True))


def write_pooling(path: Path, pooling: str, include_prompt: bool, width: int) -> None:
    """1_Pooling for a transformer of this width, with the keys that every version reads.

    `include_prompt` only where it is not: the oldest versions know no such key.
    """
    modes = pooling.split("+")
    keys = {mode: key for mode, key in POOLING_KEYS.items() if mode in (*OLD_POOLINGS, *modes)}
    path.mkdir()
    config = {"word_embedding_dimension": width} | {key: mode in modes for mode, key in keys.items()}
    write_json(path / "config.json", config | ({} if include_prompt else {"include_prompt": False}))


def read_dense(path: Path) -> nn.Sequential:
    """A Dense module: its linear layer, then its activation."""
    config = read_config(path)
    needed = ("in_features", "out_features", "bias", "activation_function")
    if lacking := [name for name in needed if name not in config]:
        raise UserError(f"{path} is no Dense layer, its config.json lacks {', '.join(lacking)}: save the model anew")
    if config.get("use_residual") or config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise UserError(f"{path}: a Dense layer with a residual or on tokens is not supported")
    activation = str(config["activation_function"]).rpartition(".")[2]
    if activation not in [*nn.modules.activation.__all__, "Identity"]:
        raise UserError(f"{path}: the activation {config['activation_function']} is not supported, only torch's own")
    new, old = path / "model.safetensors", path / "pytorch_model.bin"
    with loading(f"{path} cannot be loaded as a Dense layer"):
        linear = nn.Linear(config["in_features"], config["out_features"], bias=config["bias"])
        weights = load_file(new) if new.exists() else torch.load(old, weights_only=True)
        weights = {name.removeprefix("linear."): weight for name, weight in weights.items()}
        shapes, expected = ({name: (*w.shape,) for name, w in of.items()} for of in (weights, linear.state_dict()))
        if shapes != expected:
            raise UserError(f"{path}: its weights are of the shapes {shapes}, by its config.json of {expected}")
        linear.load_state_dict(weights)
        return nn.Sequential(linear, getattr(nn, activation)())


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
