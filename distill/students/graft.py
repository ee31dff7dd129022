"""Graft: an encoder under a new tokenizer, whose tokens' embeddings start from the encoder's own."""

import io
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable

import numpy as np
import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from distill.command import UserError
from distill.encoder.model_folder import layer_list, longest_input, position_table
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.encoder.tokenizer import SPECIAL_TOKENS, set_token_ids, token_ids, tokenizer_content
from distill.students.alignment import start_from_alignments
from distill.students.audit import SYLLABLES

MOST_TRAINED = 400_000  # sentences that a tokenizer is trained on: 40 seconds and 1.3 GB; twice as many, 2 minutes
MOST_ALIGNED = 50_000  # pairs of a language that alignment is counted over: more take memory and change little
FEW = 2  # a letter that occurs more often has a token, however rare it is


def equal_share(counts: Iterable[int], most: int) -> int:
    """How many of each language to take, so that they are `most` in all where there are more."""
    counts = sorted(counts)
    for languages, count in zip(range(len(counts), 0, -1), counts, strict=True):
        if count > most // languages:
            return most // languages
        most -= count
    return counts[-1]


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, lowercase: bool, special_tokens: tuple[str, ...] = SPECIAL_TOKENS
) -> PreTrainedTokenizerFast:
    """A Unigram tokenizer (Kudo 2018) over all languages, framed as BERT frames: [CLS] ... [SEP].

    The special tokens have the first ids, in the order given. UserError where `vocab_size` does not hold the letters.
    """
    steps = [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    normalizer = normalizers.Sequence(steps + [normalizers.Lowercase()] * lowercase)
    number = {name: i for i, name in enumerate(special_tokens)}
    texts, model, characters = [normalizer.normalize_str(text) for text in texts], io.BytesIO(), Counter()
    for text in texts:
        characters.update(text)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size,
            hard_vocab_limit=False,  # a small corpus has fewer pieces to give
            character_coverage=0.9999,
            required_chars="".join(sorted(sign for sign in characters if is_letter(sign) and characters[sign] > FEW)),
            max_sentence_length=1 << 24,  # bytes; a longer one would be left out without a word
            normalization_rule_name="identity",
            pad_id=number["pad"],
            pad_piece="[PAD]",
            unk_id=number["unk"],
            unk_piece="[UNK]",
            bos_id=number["cls"],
            bos_piece="[CLS]",
            eos_id=number["sep"],
            eos_piece="[SEP]",
            control_symbols="[MASK]",
            num_threads=1,  # more would make the result depend on their number
            minloglevel=2,
        )
    except RuntimeError as error:  # sentencepiece's, about its own source and options
        raise UserError(
            f"--vocab_size {vocab_size} is too small for the pairs: they have {len(characters)} different characters, "
            "nearly all of which need a token"
        ) from error
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=number["unk"]))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", number["sep"]), ("[CLS]", number["cls"]))
    names = {f"{name}_token": f"[{name.upper()}]" for name in SPECIAL_TOKENS}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def is_letter(sign: str) -> bool:
    """Whether a character is of an alphabet, or a mark on its letters; of Han, kana and Hangul there are too many."""
    return unicodedata.category(sign)[0] in "LM" and not SYLLABLES.match(sign)


def keep_layers(model, number: int) -> None:
    """Keep `number` of the encoder's layers, evenly spaced from first to last (as distil-whisper does)."""
    count = model.config.num_hidden_layers
    if not 1 <= number <= count:
        raise UserError(f"--num_layers {number}: the encoder has {count}")
    name, layers = layer_list(model) or (None, None)
    if layers is None:
        raise UserError(f"--num_layers {number}: {type(model).__name__} has no list of layers, leave it out")
    kept = np.linspace(0, count - 1, number).round().astype(int)
    model.set_submodule(name, nn.ModuleList(layers[i] for i in kept))
    for name in ("layer_types", "attention_window"):  # settings that each layer has its own of
        if of_layers := getattr(model.config, name, None):
            setattr(model.config, name, [of_layers[i] for i in kept])
    model.config.num_hidden_layers = number


def cut_positions(model, length: int) -> None:
    """Keep the positions of inputs of up to `length` tokens."""
    name, table = position_table(model) or (None, None)
    longest = longest_input(model)
    if table is None or not 3 <= length <= longest:
        have = "no table of positions" if table is None else f"positions for {longest} tokens"
        raise UserError(f"--max_position_embeddings {length}: the encoder has {have}")
    before = table.num_embeddings - longest  # positions that no token has
    weight = table.weight.detach()[: before + length].clone()
    model.set_submodule(name, nn.Embedding.from_pretrained(weight, padding_idx=table.padding_idx))
    model.config.max_position_embeddings = len(weight)


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


def new_tokenizer(old_tokenizer, texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer trained on texts, to graft in place of an encoder's own."""
    # A teacher that reads no capitals knows nothing to start capitalised tokens from.
    lowercase = old_tokenizer.tokenize("Plants") == old_tokenizer.tokenize("plants")
    # In their old order, so that the padding token's id, from which RoBERTa numbers positions, is the same.
    order = tuple(sorted(SPECIAL_TOKENS, key=special_ids(old_tokenizer).get))
    return train_tokenizer(texts, vocab_size, lowercase, order)


def special_ids(tokenizer) -> dict[str, int]:
    """The id of each special token; UserError where one is lacking."""
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in SPECIAL_TOKENS}
    if lacking := [name for name, index in ids.items() if index is None]:
        raise UserError(f"{tokenizer.name_or_path}: its tokenizer has no {lacking[0]} token to graft from")
    return ids


def graft(encoder: SentenceEncoder, tokenizer, sources: list[str], pairs: Iterable[tuple[list, list]]) -> None:
    """Put an encoder under another tokenizer; its pooling, Dense, Normalize and prompts stay.

    Its token embeddings start from `start_embeddings`, and from `start_from_alignments` over `sources` and `pairs` if
    there are sources. UserError where the transformer's positions depend on another padding token.
    """
    model, old_tokenizer = encoder.transformer, encoder.tokenizer
    special_ids(old_tokenizer)
    _, positions = position_table(model) or (None, None)
    if positions is not None and positions.padding_idx not in (None, tokenizer.pad_token_id):
        raise UserError(
            f"{old_tokenizer.name_or_path} numbers positions from its padding token, {positions.padding_idx}, "
            f"which in the tokenizer is {tokenizer.pad_token_id}: choose another tokenizer, or train one"
        )
    old = model.get_input_embeddings().weight.detach()
    embeddings = start_embeddings(old, old_tokenizer, tokenizer)
    if sources:
        embeddings = start_from_alignments(embeddings, old, old_tokenizer, tokenizer, sources, pairs)
    model.set_input_embeddings(nn.Embedding.from_pretrained(embeddings, padding_idx=tokenizer.pad_token_id))
    model.config.vocab_size = len(embeddings)
    set_token_ids(model.config, tokenizer)
    encoder.tokenizer = tokenizer
