"""The graft: its tokenizer, where its embeddings come from, its folder, bad input."""

import json

import pytest
import torch
from conftest import saved, tiny_encoder
from transformers import AutoModel, AutoTokenizer

from build_student import build_parser, main, sentences, start_embeddings, train_tokenizer
from distill_utils import load_pairs, run
from encoder import SentenceEncoder


def graft(teacher, pairs, output, *more):
    command = ["graft", "--encoder_model_name_or_path", teacher, "--pairs_dir", pairs, "--vocab_size", "400"]
    run(main, build_parser().parse_args([*command, "--output_dir", str(output), *more]))
    return AutoModel.from_pretrained(output), AutoTokenizer.from_pretrained(output)


def test_graft_is_the_teachers_encoder_under_a_tokenizer_that_reads_every_language(pairs, teacher, tmp_path):
    model, tokenizer = graft(teacher, pairs, tmp_path / "student")
    old = SentenceEncoder.from_pretrained(teacher)
    new_weights, old_weights = model.state_dict(), old.transformer.state_dict()
    assert set(new_weights) == set(old_weights)
    for name in set(new_weights) - {"embeddings.word_embeddings.weight"}:
        assert torch.equal(new_weights[name], old_weights[name]), name
    embeddings = new_weights["embeddings.word_embeddings.weight"]
    assert embeddings.shape == (len(tokenizer), 32) and model.config.vocab_size == len(tokenizer) == 400
    assert model.config.pad_token_id == tokenizer.pad_token_id == 0
    readable = []
    for sentence in sentences(load_pairs(pairs)["train"]):
        ids = tokenizer(sentence)["input_ids"]
        assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        # The teacher reads no capitals, so neither does its student.
        readable.append(tokenizer.decode(ids, skip_special_tokens=True) == sentence.lower())
    assert sum(readable) > 0.98 * len(readable), "all but the sentences with one of the rarest letters"


def test_embeddings_start_from_the_teachers_pieces(pairs, teacher, tmp_path):
    model, tokenizer = graft(teacher, pairs, tmp_path / "student")
    old = SentenceEncoder.from_pretrained(teacher)
    before, after = (m.get_input_embeddings().weight.detach() for m in (old.transformer, model))
    vocabulary = old.tokenizer.get_vocab()
    for name in ("pad", "unk", "cls", "sep", "mask"):
        new_id, old_id = (getattr(t, f"{name}_token_id") for t in (tokenizer, old.tokenizer))
        assert torch.equal(after[new_id], before[old_id])
    # A word that both vocabularies hold, and a piece that the teacher spells out.
    shared = next(t for t in tokenizer.get_vocab() if t.startswith("▁") and len(t) > 3 and t[1:] in vocabulary)
    torch.testing.assert_close(after[tokenizer.convert_tokens_to_ids(shared)], before[vocabulary[shared[1:]]])
    spelled = next(t for t in tokenizer.get_vocab() if t[0] == "▁" and len(old.tokenizer.tokenize(t[1:])) == 3)
    pieces = [vocabulary[piece] for piece in old.tokenizer.tokenize(spelled[1:])]
    torch.testing.assert_close(after[tokenizer.convert_tokens_to_ids(spelled)], before[pieces].mean(0))


def test_a_token_unknown_to_the_teacher_starts_at_the_mean():
    encoder = tiny_encoder()
    tokenizer = train_tokenizer(iter(["日本 日本 語 語", "I love plants", "日本"] * 50), 40, lowercase=True)
    old = encoder.transformer.get_input_embeddings().weight.detach()
    new = start_embeddings(old, encoder.tokenizer, tokenizer)
    assert encoder.tokenizer.tokenize("語") == ["[UNK]"]
    torch.testing.assert_close(new[tokenizer.convert_tokens_to_ids("語")], old.mean(0))


def test_the_same_call_gives_the_same_bytes(pairs, teacher, tmp_path):
    for name in ("one", "two"):
        graft(teacher, pairs, tmp_path / name)
    for file in ("tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    config = json.loads((tmp_path / "one/tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast", "the name that transformers 4 knows"


def test_capitals_stay_where_the_teacher_reads_them():
    tokenizer = train_tokenizer(iter(["Ein Hund", "ein Hund"] * 20), 30, lowercase=False)
    assert tokenizer.decode(tokenizer("Ein Hund")["input_ids"], skip_special_tokens=True) == "Ein Hund"


@pytest.mark.parametrize(
    "more, message",
    [
        (["--pairs_dir", "nowhere"], "nowhere is no folder of build_pairs.py"),
        (["--encoder_model_name_or_path", "./nowhere"], "nowhere does not exist"),
        (["--vocab_size", "20"], "--vocab_size 20 is too small for"),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_leaves_nothing(pairs, teacher, tmp_path, capfd, more, message):
    with pytest.raises(SystemExit) as end:
        graft(teacher, pairs, tmp_path / "student", *more)
    assert end.value.code == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]
    assert not list(tmp_path.iterdir())


def test_an_encoder_without_the_special_tokens_is_refused(pairs, tmp_path, capsys):
    encoder = tiny_encoder()
    encoder.tokenizer.mask_token = None
    with pytest.raises(SystemExit):
        graft(saved(encoder, tmp_path / "teacher"), pairs, tmp_path / "student")
    assert "its tokenizer has no mask token to graft from" in capsys.readouterr().err
