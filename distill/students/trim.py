"""Trim: a vocabulary cut to the tokens that corpora use, and the rows of a model that go with them."""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterable

import numpy as np
import torch
from tabulate import tabulate
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast

from distill.command import UserError
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.encoder.tokenizer import set_token_ids, token_ids, tokenizer_content

# ---------------------------------------------------------------- fewer tokens


def count_tokens(tokenizer, batches: Iterable[tuple[str, list[str]]]) -> dict[str, np.ndarray]:
    """How often each token occurs by language, (vocabulary,) int64; special tokens are not added."""
    size, counts = max(tokenizer.get_vocab().values()) + 1, {}
    for language, sentences in batches:
        ids = np.fromiter(itertools.chain.from_iterable(token_ids(tokenizer, sentences)), np.int64)
        counts[language] = counts.get(language, 0) + np.bincount(ids, minlength=size)
    return counts


def _pieces(model: dict) -> dict[str, int]:
    """Token to id of a model in tokenizer.json."""
    return {piece: i for i, (piece, _) in enumerate(model["vocab"])} if model["type"] == "Unigram" else model["vocab"]


def _merged(model: dict, left: str, right: str) -> str:
    """The token that a merge of BPE forms."""
    return left + right.removeprefix(model["continuing_subword_prefix"] or "")


def indispensable_tokens(content: dict) -> set[int]:
    """Ids of the special tokens, and of what text outside of the corpora falls back to: characters and bytes.

    In Unigram also of the piece with the least score, because the score of an unknown token is reckoned from it.
    """
    model, pieces = content["model"], _pieces(content["model"])
    prefix = re.escape(model.get("continuing_subword_prefix") or "")
    suffix = re.escape(model.get("end_of_word_suffix") or "")
    smallest = re.compile(rf"(?:{prefix})?.(?:{suffix})?|<0x[0-9A-F]{{2}}>", re.DOTALL)
    kept = {i for piece, i in pieces.items() if smallest.fullmatch(piece)}
    kept |= {token["id"] for token in content["added_tokens"]}
    if model["type"] == "Unigram":
        kept |= {model["unk_id"], min(range(len(pieces)), key=lambda i: model["vocab"][i][1])} - {None}
    elif model["unk_token"] is not None:
        kept.add(pieces[model["unk_token"]])
    return kept


def kept_tokens(content: dict, counts: dict[str, np.ndarray], coverage: float, vocab_size: int | None) -> np.ndarray:
    """Ids of the tokens to keep, rising: the fewest that make up `coverage` of each language's text, most frequent
    first, but at most `vocab_size` with those that must stay. A language counts as much as any other.

    In BPE a token stays with all tokens that it is merged from. UserError when what must stay is too much.
    """
    model, pieces, parts = content["model"], _pieces(content["model"]), {}
    for left, right in model.get("merges", []):
        parts.setdefault(pieces[_merged(model, left, right)], set()).update((pieces[left], pieces[right]))
    kept = indispensable_tokens(content)
    if len(kept) > (vocab_size or math.inf):
        raise UserError(f"--vocab_size {vocab_size} is too small: special tokens and characters alone are {len(kept)}")
    wanted = set()
    for of_language in counts.values():
        order = np.argsort(-of_language, kind="stable")
        needed = np.searchsorted(np.cumsum(of_language[order]), coverage * of_language.sum()) + 1
        wanted.update(order[:needed].tolist())
    share = sum(of_language / of_language.sum() for of_language in counts.values())
    for token in sorted(wanted - kept, key=lambda token: (-share[token], token)):
        family = new = {token} - kept  # which some other token may have brought along
        while new := set().union(*(parts.get(part, ()) for part in new)) - kept - family:
            family = family | new
        if len(kept) + len(family) > (vocab_size or math.inf):
            break
        kept |= family
    return np.array(sorted(kept))


def trimmed_tokenizer(tokenizer, content: dict, kept: np.ndarray) -> PreTrainedTokenizerFast:
    """The tokenizer with the tokens `kept` alone, in the same order; `content` is its tokenizer.json.

    Text whose tokens are all kept is cut into the same tokens: of the paths through a Unigram lattice, or of the
    prefixes in WordPiece, the best is still there and none is new; in BPE all merges that were applied are still
    there, in the same order of rank.
    """
    number, content = {old: new for new, old in enumerate(kept.tolist())}, json.loads(json.dumps(content))
    model = content["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [piece for i, piece in enumerate(model["vocab"]) if i in number]
        model["unk_id"] = number.get(model["unk_id"])
    else:
        model["vocab"] = {piece: number[i] for piece, i in model["vocab"].items() if i in number}
    if model["type"] == "BPE":
        model["merges"] = [
            [left, right]
            for left, right in model["merges"]
            if {left, right, _merged(model, left, right)} <= set(model["vocab"])
        ]
    for token in content["added_tokens"]:
        token["id"] = number[token["id"]]
    _renumber(content["post_processor"], number)
    names = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        model_input_names=tokenizer.model_input_names,
        padding_side=tokenizer.padding_side,
        **names,
    )


def _renumber(node, number: dict[int, int]) -> None:
    """Give the special tokens in a post-processor of tokenizer.json their new ids."""
    if isinstance(node, list):
        for child in node:
            _renumber(child, number)
    elif isinstance(node, dict):
        for key, child in node.items():
            if key == "ids":
                node[key] = [number[i] for i in child]
            elif key in ("cls", "sep"):  # of BertProcessing and RobertaProcessing: [token, id]
                node[key] = [child[0], number[child[1]]]
            else:
                _renumber(child, number)


@torch.no_grad()
def keep_rows(model, kept: np.ndarray) -> None:
    """Cut a model's token embeddings, and its head where it has one, to the rows `kept`, in that order."""
    rows = model.get_input_embeddings().num_embeddings
    weights = [layer.weight[kept] for layer in _token_layers(model)]
    biases = {
        name: bias[kept] for name, bias in model.named_parameters() if name.endswith("bias") and len(bias) == rows
    }
    model.resize_token_embeddings(len(kept))
    for layer, weight in zip(_token_layers(model), weights, strict=True):
        layer.weight.copy_(weight)
    for name, bias in biases.items():  # a head's own, which is not always cut with its layer
        model.get_submodule(name.rpartition(".")[0]).bias = nn.Parameter(bias)
    model.tie_weights()


def _token_layers(model) -> list[nn.Module]:
    """The layers with a row for each token: embeddings, and a head's where there is one."""
    return [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]


def model_with_head(encoder: SentenceEncoder):
    """The encoder's transformer, or, where its folder holds one, the masked language model around it."""
    architectures = encoder.transformer.config.architectures or [""]
    if not architectures[0].endswith("ForMaskedLM"):
        return encoder.transformer
    model, found = AutoModelForMaskedLM.from_pretrained(
        encoder.transformer.name_or_path, dtype=encoder.transformer.dtype, output_loading_info=True
    )
    if found["missing_keys"]:  # of a head that config.json alone knows of, and transformers makes up
        return encoder.transformer
    encoder.transformer = model.base_model
    return model


def size(model) -> dict[str, int]:
    parameters = list(model.parameters())  # tied ones once
    return {
        "tokens": len(model.get_input_embeddings().weight),
        "parameters": sum(p.numel() for p in parameters),
        "bytes": sum(p.numel() * p.element_size() for p in parameters),
    }


def coverage_by_language(before: dict, after: dict, kept: np.ndarray, unknown: tuple[int | None, int | None]) -> dict:
    """What trimming does to each language, from its token counts before and after.

    `kept_share`: of the tokens that stood in the text before, those that are kept; `known_before`, `known_after`:
    tokens that are not unknown; `tokens_ratio`: tokens after by tokens before.
    """
    report = {}
    for language in before:
        old, new = before[language], after[language]
        unknown_old, unknown_new = (
            0 if i is None else int(counts[i]) for i, counts in zip(unknown, (old, new), strict=True)
        )
        report[language] = {
            "tokens": int(old.sum()),
            "kept_share": float(old[kept].sum() / old.sum()),
            "known_before": float(1 - unknown_old / old.sum()),
            "known_after": float(1 - unknown_new / new.sum()),
            "tokens_ratio": float(new.sum() / old.sum()),
        }
    return report


def trim(
    encoder: SentenceEncoder, corpora: Callable[[], Iterable[tuple[str, list]]], coverage: float, vocab_size: int | None
) -> tuple[nn.Module, dict]:
    """Cut an encoder's vocabulary to the tokens of the corpora, which are read twice.

    Returns its transformer, in the masked language model that it has around it if any, and a report: sizes `before`
    and `after`, `coverage_by_language`. UserError when what must stay is more than `vocab_size`.
    """
    model, full = model_with_head(encoder), encoder.tokenizer
    content, before = tokenizer_content(full), count_tokens(full, corpora())
    kept = kept_tokens(content, before, coverage, vocab_size)
    encoder.tokenizer, report = trimmed_tokenizer(full, content, kept), {"before": size(model)}
    keep_rows(model, kept)
    set_token_ids(model.config, encoder.tokenizer)
    after = count_tokens(encoder.tokenizer, corpora())
    unknown = full.unk_token_id, encoder.tokenizer.unk_token_id
    return model, report | {"after": size(model), "languages": coverage_by_language(before, after, kept, unknown)}


def trim_table(languages: dict, form: str) -> str:
    """What trimming does to each language, as a table in one of tabulate's forms."""
    rows = [
        (language, *(row if isinstance(row, int) else f"{row:.2%}" for row in entry.values()))
        for language, entry in languages.items()
    ]
    headers = ["language", "tokens", "kept", "known before", "known after", "tokens after"]
    return tabulate(rows, headers, tablefmt=form, colalign=["left", *["right"] * 5])
