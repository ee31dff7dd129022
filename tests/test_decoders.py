"""Decoders as sentence encoders: folders such as those of Qwen3-Embedding and e5-mistral, against the peer."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import SAMPLES, folders, train
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import MistralConfig, MistralModel, Qwen3Config, Qwen3Model

from distill.command import UserError
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.folders import write_json
from distill.pairs.pairs_folder import load_pairs

SENTENCES = [
    "I love plants.",
    "a",
    "Der Hund schläft unter dem Tisch im Garten. " * 9,
    "Amo le piante, anche in inverno.",
]
LIMIT = 40
SIZES = {
    "vocab_size": 700,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def byte_level(texts: list[str]) -> tuple[Tokenizer, dict]:
    """Qwen's: no token at the beginning; at the end `<|endoftext|>`, which pads too and is not the eos token."""
    tokenizer, byte_level = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer, tokenizer.decoder = byte_level, decoders.ByteLevel()
    end, alphabet = "<|endoftext|>", byte_level.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[end, "<|im_end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ending = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), ending])
    return tokenizer, {"tokenizer_class": "Qwen2Tokenizer", "pad_token": end, "eos_token": "<|im_end|>"}


def byte_fallback(texts: list[str]) -> tuple[Tokenizer, dict]:
    """Mistral's: `<s>` at the beginning, `</s>` at the end, no token to pad with."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    )
    both = [("<s>", 1), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=both)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "add_eos_token": True}
    return tokenizer, {"tokenizer_class": "LlamaTokenizer"} | names


KINDS = {
    "qwen3": (byte_level, lambda: Qwen3Model(Qwen3Config(**SIZES)), 0),
    "mistral": (byte_fallback, lambda: MistralModel(MistralConfig(**SIZES, sliding_window=None)), 2),
}


@pytest.fixture(scope="module", params=KINDS)
def decoder(request, tmp_path_factory) -> tuple[str, int]:
    """The folder of a tiny random decoder as its authors publish it, and the id of its end token."""
    make_tokenizer, make_model, end = KINDS[request.param]
    rows = [json.loads(line) for line in (SAMPLES / "talks.jsonl").open(encoding="utf-8")][:200]
    tokenizer, about = make_tokenizer([text for row in rows for text in row["translations"]["translation"]])
    folder = tmp_path_factory.mktemp(request.param) / "model"
    torch.manual_seed(0)
    make_model().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", about | {"padding_side": "left", "model_max_length": 131072})
    parts = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in parts.items()]
    write_json(folder / "modules.json", [{"idx": i, "name": str(i)} | module for i, module in enumerate(modules)])
    for path in (folder / "1_Pooling", folder / "2_Normalize"):
        path.mkdir()
    keys = {f"pooling_mode_{key}": key == "lasttoken" for key in ("cls_token", "mean_tokens", "lasttoken")}
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": 32, "include_prompt": True} | keys)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": LIMIT, "do_lower_case": False})
    prompts = {"query": "Instruct: find such sentences\nQuery:"}
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None})
    return str(folder), end


def peer_of(path: str) -> SentenceTransformer:
    """The peer, which cannot take the end token to pad with by itself."""
    peer = SentenceTransformer(path, device="cpu")
    if peer.tokenizer.pad_token is None:
        peer.tokenizer.pad_token = peer.tokenizer.eos_token
    return peer


@pytest.mark.parametrize("prompt", [{}, {"prompt_name": "query"}, {"prompt": "amo le: "}])
def test_a_decoder_gives_the_vectors_of_sentence_transformers(decoder, tmp_path, prompt):
    path, end = decoder
    ours = SentenceEncoder.from_pretrained(path, **prompt)
    ids, peer = ours.token_ids(SENTENCES), peer_of(path)
    assert len(ids[2]) == LIMIT and all(one[-1] == end for one in ids), "the end token of a sentence that is cut"
    text = [ours.prompt + sentence for sentence in SENTENCES]
    assert peer.tokenizer(text, truncation=True, max_length=LIMIT)["input_ids"] == ids
    assert peer.tokenizer.padding_side == "left"
    expected = peer.encode(SENTENCES, **prompt)
    np.testing.assert_allclose(ours.encode(SENTENCES), expected, atol=1e-5)
    (tmp_path / "again").mkdir()
    ours.save(tmp_path / "again")
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert again.tokenizer.padding_side == "left"
    np.testing.assert_allclose(again.encode(SENTENCES), expected, atol=1e-5)


def test_a_decoder_keeps_no_keys_and_values(decoder):
    encoder = SentenceEncoder.from_pretrained(decoder[0])
    assert encoder.transformer(input_ids=torch.tensor([[3, 4]])).past_key_values is None
    assert "use_cache" not in encoder.settings, "it says nothing about vectors"


def test_a_decoder_teaches_and_learns(decoder, pairs, tmp_path):
    """Its labels are the peer's vectors before Normalize, its student opens there with those of training."""
    path, _ = decoder
    models = ("--teacher_model_name_or_path", path, "--student_model_name_or_path", path)
    given = ("--student_prompt_name", "query", "--max_train_steps", "2", "--gradient_checkpointing")
    assert train("--pairs_dir", pairs, *models, *given, *folders(tmp_path)) == 0
    rows = load_pairs(pairs)["dev"]
    found = [np.fromfile(file, np.float32).reshape(-1, 32) for file in tmp_path.glob("cache/labels-*/labels.bin")]
    labels = next(vectors for vectors in found if len(vectors) == len(rows))
    unit = labels / np.linalg.norm(labels, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, peer_of(path).encode(rows["source"]), atol=1e-5)
    student = str(tmp_path / "run/student")
    peer = SentenceTransformer(student, device="cpu")
    np.testing.assert_allclose(
        SentenceEncoder.from_pretrained(student).encode(SENTENCES), peer.encode(SENTENCES), atol=1e-5
    )


@pytest.mark.parametrize("decoder", ["mistral"], indirect=True)
def test_a_tokenizer_with_neither_padding_nor_end_token_is_refused(decoder, tmp_path):
    folder = shutil.copytree(decoder[0], tmp_path / "model")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    with pytest.raises(UserError, match="model: its tokenizer has neither a padding nor an end token: give it one"):
        SentenceEncoder.from_pretrained(str(folder))
