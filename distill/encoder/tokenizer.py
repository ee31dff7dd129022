"""Tokenizers: read, saved for every version, sentences to token ids."""

import json
from pathlib import Path

from transformers import AutoTokenizer

from distill.command import UserError
from distill.folders import read_json, write_json

SPECIAL_TOKENS = ("pad", "unk", "cls", "sep", "mask")


def read_tokenizer(name_or_path: str | Path):
    """A tokenizer; UserError where a folder has none, for which transformers makes up an empty one."""
    tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise UserError(f"{name_or_path} has no tokenizer: save the one that it was trained with beside it")
    tokenizer("\ue000")  # for private use, so unknown to all: without a token for the unknown some fail there
    return tokenizer


def save_tokenizer(tokenizer, folder: Path, max_seq_length: int) -> None:
    """Save a tokenizer so that transformers 4 opens it too.

    It refuses the class name that 5 writes, and before 4.45 the merges of BPE as lists of two.
    """
    tokenizer.save_pretrained(folder)
    content = read_json(folder / "tokenizer.json", {"model": {}})
    merges = content["model"].get("merges", [])
    if merges and not any(" " in token for merge in merges for token in merge):
        content["model"]["merges"] = [" ".join(merge) for merge in merges]
        write_json(folder / "tokenizer.json", content)
    path = folder / "tokenizer_config.json"
    config = read_json(path, {})
    config.pop("backend", None)
    config["model_max_length"] = max_seq_length
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(path, config)


def tokenize(tokenizer, sentences: list[str], max_seq_length: int) -> list[list[int]]:
    """Token ids of each sentence with its special tokens, cut at `max_seq_length`, not padded."""
    if not sentences:
        return []
    ids_only = {"return_attention_mask": False, "return_token_type_ids": False}
    return tokenizer(sentences, truncation=True, max_length=max_seq_length, **ids_only)["input_ids"]


def token_ids(tokenizer, sentences: list[str]) -> list[list[int]]:
    """Token ids of each sentence without special tokens, cut by no length limit."""
    if not sentences:
        return []
    return tokenizer(sentences, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _content(tokenizer) -> dict:
    """What tokenizer.json holds, without the truncation and padding that the last call left behind."""
    return json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}


def tokenizer_text(tokenizer) -> str:
    """A tokenizer as JSON, the same before and after it was called."""
    return json.dumps(_content(tokenizer))


def tokenizer_content(tokenizer) -> dict:
    """What tokenizer.json holds of a Unigram, BPE or WordPiece tokenizer; UserError for other kinds."""
    content = _content(tokenizer) if tokenizer.is_fast else {"model": {"type": "slow"}}
    if content["model"]["type"] not in ("Unigram", "BPE", "WordPiece"):
        raise UserError(
            f"{tokenizer.name_or_path} has a tokenizer of kind {content['model']['type']}: only fast Unigram, BPE and "
            "WordPiece tokenizers are supported"
        )
    return content


def set_token_ids(config, tokenizer) -> None:
    """Have a model's configuration name the tokenizer's special tokens.

    The begin and the end of a text have two names each; where a model asks for the one and a tokenizer has the other,
    that is meant.
    """
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "cls", "sep", "mask")}
    for name, index in ids.items():
        other = ids.get({"bos": "cls", "cls": "bos", "eos": "sep", "sep": "eos"}.get(name))
        if hasattr(config, key := f"{name}_token_id"):
            lacking = index is None and getattr(config, key) is not None
            setattr(config, key, other if lacking else index)
