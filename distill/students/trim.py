"""Vocabularies: what a tokenizer makes of a language, fewer tokens of it, and where new tokens' embeddings start."""

import itertools
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

import numpy as np
import torch
from tabulate import tabulate
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from distill.folders import UserError

# Thai, Lao, Tibetan, Burmese, Khmer, kana and Han: written without spaces between words.
UNSPACED = re.compile("[\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")
# Kana, Han and Hangul: one sign is a syllable or a word.
SYLLABLES = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]")
PUNCTUATION = "".join(sign for sign in map(chr, range(1 << 16)) if unicodedata.category(sign)[0] == "P")
MAX_UNKNOWN = 0.05  # share of unknown tokens from which on a tokenizer does not read a language
# Tokens per sign from which on a tokenizer spells instead of reading: in letters, in syllables.
SPELLED = (0.6, 1.5)
SPECIAL_TOKENS = ("pad", "unk", "cls", "sep", "mask")


# ---------------------------------------------------------------- what a tokenizer makes of a language


def token_ids(tokenizer, sentences: list[str]) -> list[list[int]]:
    """Token ids of each sentence without special tokens, cut by no length limit."""
    if not sentences:
        return []
    return tokenizer(sentences, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def audit(tokenizer, sentences: list[str], max_seq_length: int = 128) -> dict[str, int | float | str | None]:
    """Figures of a tokenizer on sentences of one language, without special tokens and cut by no length limit.

    `unknown_share`: unknown tokens among all; `tokens_per_word`: a word is what stands between spaces, so None for
    text in a script without them; `tokens_per_character`: spaces are not counted; `cut_share`: sentences that have
    more than `max_seq_length` tokens, with the special ones; `vocabulary_share`: tokens that occur, of all there are.
    `verdict`: "reads"; "unknown" above `MAX_UNKNOWN`; "spells" above `SPELLED` tokens per character, the limit of
    a mixed text lying between the two.
    """
    ids = token_ids(tokenizer, sentences)
    text = " ".join(sentences)
    words, characters = len(text.split()), len("".join(text.split()))
    tokens = max(sum(map(len, ids)), 1)
    unknown_share = sum(sentence.count(tokenizer.unk_token_id) for sentence in ids) / tokens
    letters, syllables = SPELLED
    limit = letters + (syllables - letters) * len(SYLLABLES.findall(text)) / characters
    too_many = "spells" if tokens / characters > limit else "reads"
    room = max_seq_length - tokenizer.num_special_tokens_to_add()
    return {
        "sentences": len(sentences),
        "unknown_share": unknown_share,
        "tokens_per_word": None if len(UNSPACED.findall(text)) > characters / 2 else tokens / words,
        "tokens_per_character": tokens / characters,
        "cut_share": sum(len(sentence) > room for sentence in ids) / len(sentences),
        "vocabulary_share": len(set().union(*ids)) / len(tokenizer),
        "verdict": "unknown" if unknown_share > MAX_UNKNOWN else too_many,
    }


def worst_words(tokenizer, sentences: list[str], most: int = 20) -> list[dict]:
    """The words that cost most over all sentences: first by their unknown tokens, then by all tokens but one each.

    Words stand between spaces, punctuation left out; in scripts without spaces every character is one.
    """
    counts = Counter()
    for sentence in sentences:
        unspaced = len(UNSPACED.findall(sentence)) > len(sentence) / 2
        counts.update(word.strip(PUNCTUATION) for word in (sentence if unspaced else sentence.split()))
    del counts[""], counts[" "]
    # A space before it, because byte-level tokenizers tell a word at the beginning of a text from others.
    words = list(counts)
    ids = token_ids(tokenizer, [f" {word}" for word in words])
    found = [
        {
            "word": word,
            "occurrences": counts[word],
            "tokens": tokenizer.convert_ids_to_tokens(pieces),
            "unknown": pieces.count(tokenizer.unk_token_id),
        }
        for word, pieces in zip(words, ids, strict=True)
    ]
    found = [word for word in found if word["unknown"] or len(word["tokens"]) > 1]
    found.sort(key=lambda w: (-w["unknown"] * w["occurrences"], (1 - len(w["tokens"])) * w["occurrences"], w["word"]))
    return found[:most]


def check_tokenizer(tokenizer, dataset, pairs, allow_unknown: bool) -> str:
    """What the student's tokenizer makes of each language, as a table, from up to 1,000 sentences of each.

    `dataset` is a pairs split, `pairs` the same as TokenizedPairs. UserError when more than 5% of a language's tokens
    are unknown, unless `allow_unknown`.
    """
    table = {"source": audit(tokenizer, dataset[np.linspace(0, len(dataset) - 1, 1000).astype(int)]["source"])}
    for language, rows in zip(pairs.languages, pairs.evenly(1000), strict=True):
        listed = [target for targets in dataset[rows]["targets"] for target in targets]
        table[language] = audit(tokenizer, [t["sentence"] for t in listed if t["language"] == language])
    unread = [
        f"{name} ({row['unknown_share']:.0%})" for name, row in table.items() if row["unknown_share"] > MAX_UNKNOWN
    ]
    if unread and not allow_unknown:
        raise UserError(
            f"the student's tokenizer does not know {', '.join(unread)} of the tokens: choose a student that reads "
            "these languages, make one (build_student.py graft), or add --allow_unknown_tokens"
        )
    lines = [
        (name, f"{row['unknown_share']:.1%}", row["tokens_per_word"], row["tokens_per_character"])
        for name, row in table.items()
    ]
    headers = ["the student reads", "unknown", "tokens per word", "per character"]
    return tabulate(lines, headers, floatfmt=".2f", missingval="-", colalign=("left", "right", "right", "right"))


# ---------------------------------------------------------------- fewer tokens


def count_tokens(tokenizer, batches: Iterable[tuple[str, list[str]]]) -> dict[str, np.ndarray]:
    """How often each token occurs by language, (vocabulary,) int64; special tokens are not added."""
    size, counts = max(tokenizer.get_vocab().values()) + 1, {}
    for language, sentences in batches:
        ids = np.fromiter(itertools.chain.from_iterable(token_ids(tokenizer, sentences)), np.int64)
        counts[language] = counts.get(language, 0) + np.bincount(ids, minlength=size)
    return counts


def tokenizer_content(tokenizer) -> dict:
    """What tokenizer.json holds, without the truncation and padding of the last call; UserError for other kinds."""
    content = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {"model": {"type": "slow"}}
    if content["model"]["type"] not in ("Unigram", "BPE", "WordPiece"):
        raise UserError(
            f"{tokenizer.name_or_path} has a tokenizer of kind {content['model']['type']}: only fast Unigram, BPE and "
            "WordPiece tokenizers are supported"
        )
    return content | {"truncation": None, "padding": None}


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
        raise UserError(
            f"--vocab_size {vocab_size} is too small: special tokens and single characters alone are {len(kept)}"
        )
    wanted = set()
    for of_language in counts.values():
        order = np.argsort(-of_language, kind="stable")
        needed = np.searchsorted(np.cumsum(of_language[order]), coverage * of_language.sum()) + 1
        wanted.update(order[:needed].tolist())
    share = sum(of_language / of_language.sum() for of_language in counts.values())
    for token in sorted(wanted - kept, key=lambda token: (-share[token], token)):
        family, new = {token}, {token}
        while new := set().union(*(parts.get(part, ()) for part in new)) - kept - family:
            family |= new
        if len(kept | family) > (vocab_size or math.inf):
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


def set_token_ids(config, tokenizer) -> None:
    """Have a model's configuration name the tokenizer's special tokens."""
    for name in ("pad", "bos", "eos", "cls", "sep", "mask"):
        if hasattr(config, f"{name}_token_id"):
            setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))


# ---------------------------------------------------------------- where new tokens' embeddings start


def plain_texts(tokenizer) -> dict[int, str]:
    """What each token stands for in a text, with a space before it where it begins a word."""
    content = tokenizer_content(tokenizer)
    model, byte_level = content["model"], "ByteLevel" in json.dumps([content["pre_tokenizer"], content["decoder"]])
    texts = {}
    for token, index in tokenizer.get_vocab().items():
        if model["type"] == "WordPiece":
            prefix = model["continuing_subword_prefix"]
            texts[index] = token.removeprefix(prefix) if token.startswith(prefix) else f" {token}"
        else:
            texts[index] = tokenizer.convert_tokens_to_string([token]) if byte_level else token.replace("▁", " ")
    return texts


def start_embeddings(old: Tensor, old_tokenizer, new_tokenizer) -> Tensor:
    """Embeddings (new vocabulary, width) from the old ones (old vocabulary, width).

    A special token takes its old namesake's; any other the mean over its pieces in the old tokenizer, of which a
    token that both have is the only one; one that has no known piece there the mean over all old embeddings.
    """
    new = old.mean(0).repeat(max(new_tokenizer.get_vocab().values()) + 1, 1)
    texts = plain_texts(new_tokenizer)
    for index, pieces in zip(texts, token_ids(old_tokenizer, list(texts.values())), strict=True):
        if pieces := [piece for piece in pieces if piece != old_tokenizer.unk_token_id]:
            new[index] = old[pieces].mean(0)
    for name in SPECIAL_TOKENS:
        new_id, old_id = (getattr(t, f"{name}_token_id") for t in (new_tokenizer, old_tokenizer))
        if None not in (new_id, old_id):
            new[new_id] = old[old_id]
    return new
