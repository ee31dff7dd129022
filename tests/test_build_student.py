"""The graft: its tokenizer, where its embeddings come from, its folder, bad input."""

import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_the_readme_names_its_command, saved, tiny_encoder
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    LongformerConfig,
    LongformerModel,
    LukeConfig,
    LukeModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedTokenizerFast,
    XLMConfig,
    XLMModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

import build_student
from build_student import build_parser, main
from distill.command import run
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.pairs.pairs_folder import load_pairs, sentence_counts, sentences
from distill.students.alignment import aligned_tokens, start_from_alignments
from distill.students.audit import short_names
from distill.students.graft import equal_share, plain_texts, start_embeddings, train_tokenizer


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
    assert sum(readable) > 0.99 * len(readable), "all but the sentences with one of the rarest letters"


def test_what_the_tokenizer_was_trained_on_and_lacks_is_said(pairs, teacher, tmp_path, capsys, monkeypatch):
    counts = sentence_counts(load_pairs(pairs)["train"])
    whole = list(sentences(load_pairs(pairs)["train"]))
    assert counts.total() == len(whole) and counts[""] == len(load_pairs(pairs)["train"])
    monkeypatch.setattr(build_student, "MOST_TRAINED", 101)
    graft(teacher, pairs, tmp_path / "student", "--start", "pieces", "--vocab_size", "20000")
    printed = capsys.readouterr().out
    said = re.search(
        r"Tokenizer trained on 100 of (\d+) sentences, .* no more pieces to give: (\S+) of the 20,000", printed
    )
    assert int(said[1]) == len(whole) and f"{len(AutoTokenizer.from_pretrained(tmp_path / 'student')):,}" == said[2]
    assert said[0] in (tmp_path / "student/README.md").read_text()


def test_of_too_many_sentences_every_language_gives_an_equal_share(pairs):
    train = load_pairs(pairs)["train"]
    first = {"": list(train["source"])}
    for target in (target for targets in train["targets"] for target in targets):
        first.setdefault(target["language"], []).append(target["sentence"])
    assert sorted(sentences(train, 30)) == sorted(one for listed in first.values() for one in listed[:30])
    assert equal_share([3, 50, 40], 93) == 50, "all fit"
    assert equal_share([3, 50, 40], 73) == 35, "the 70 that the smallest leaves, shared by two"
    assert equal_share([30, 50, 40], 60) == 20


def test_a_letter_that_occurs_more_than_twice_has_a_token():
    """Their share is below any that a coverage of characters would take in; of Han there are too many."""
    texts = ["I love plants and dogs"] * 3000 + ["ça"] * 3 + ["ì"] * 2 + ["語"] * 3
    vocabulary = "".join(train_tokenizer(texts, 60, lowercase=True).get_vocab())
    assert [sign in vocabulary for sign in "çì語"] == [True, False, False]


def test_no_sentence_is_too_long_to_train_on():
    assert "word" in "".join(train_tokenizer(["word " * 2000] * 3, 12, lowercase=True).get_vocab())


def test_a_graft_keeps_pooling_dense_normalize_and_prompts(pairs, tmp_path):
    """Once a student of CLS pooling became one of mean pooling, and lost what stood behind it, without a word."""
    top = {"dense": nn.Sequential(nn.Sequential(nn.Linear(32, 8), nn.Tanh())), "normalize": True, "pooling": "cls"}
    prompts = {"prompts": {"query": "I love ", "other": "x"}, "default_prompt_name": "query"}
    old = tiny_encoder(**top, **prompts, do_lower_case=True)
    graft(saved(old, tmp_path / "teacher"), pairs, tmp_path / "student", "--start", "pieces")
    new = SentenceEncoder.from_pretrained(str(tmp_path / "student"))
    for name in ("pooling", "normalize", "prompts", "prompt", "do_lower_case", "dimension", "max_seq_length"):
        assert getattr(new, name) == getattr(old, name), name
    assert torch.equal(new.dense[0][0].weight, old.dense[0][0].weight)


def test_embeddings_start_from_the_teachers_pieces(pairs, teacher):
    old = SentenceEncoder.from_pretrained(teacher)
    tokenizer = train_tokenizer(sentences(load_pairs(pairs)["train"]), 400, lowercase=True)
    before = old.transformer.get_input_embeddings().weight.detach()
    after = start_embeddings(before, old.tokenizer, tokenizer)
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


def test_alignments_are_those_of_ibm_model_1_counted_pair_by_pair():
    """Against the algorithm as its article states it, with loops; the book stands in two of three pairs."""
    source = [[0, 1], [0, 2], [3, 2], [3, 3, 1]]  # the house, the book, a book, a a house
    target = [[0, 1], [0, 2], [3, 2], [1, 3]]  # das Haus, das Buch, ein Buch, Haus ein
    none, probability = 4, {}
    for _ in range(3):
        counts = {}
        for s, t in zip(source, target, strict=True):
            for i in s:
                total = sum(probability.get((j, i), 1.0) for j in [*t, none])
                for j in [*t, none]:
                    counts[j, i] = counts.get((j, i), 0) + probability.get((j, i), 1.0) / total
        sums = {j: sum(count for (k, _), count in counts.items() if k == j) for j, _ in counts}
        probability = {(j, i): count / sums[j] for (j, i), count in counts.items()}
    expected = np.zeros((4, 5))
    for (j, i), count in counts.items():
        if j != none:
            expected[j, i] = count
    found = aligned_tokens(source, target, (4, 5), iterations=3).toarray()
    np.testing.assert_allclose(found, expected)
    assert found.argmax(1).tolist() == [0, 1, 2, 3]


def test_a_token_of_translations_starts_from_the_words_it_is_aligned_with(teacher):
    old = SentenceEncoder.from_pretrained(teacher)
    before = old.transformer.get_input_embeddings().weight.detach()
    nouns = [t for t in old.tokenizer.get_vocab() if t.isalpha() and t.isascii() and len(t) > 5][:8]
    translation = dict(zip(nouns, ["kubo", "limaz", "toruv", "sepi", "nagol", "wuxi", "ferad", "jymo"], strict=True))
    listed = [f"{a} {b} {c}" for a in nouns for b in nouns for c in nouns]
    translated = [" ".join(translation[word] for word in reversed(sentence.split())) for sentence in listed]
    tokenizer = train_tokenizer(iter(listed + translated), 90, lowercase=True)
    start = start_embeddings(before, old.tokenizer, tokenizer)
    after = start_from_alignments(start, before, old.tokenizer, tokenizer, listed, [(listed, translated)])
    whole = [word for word in nouns if len(tokenizer.tokenize(translation[word])) == 1]
    assert len(whole) > 3
    for word in whole:
        row = after[tokenizer.convert_tokens_to_ids(f"▁{translation[word]}")]
        near = torch.cosine_similarity(row[None], before[[old.tokenizer.convert_tokens_to_ids(w) for w in nouns]])
        assert near.argmax() == nouns.index(word) and near.max() > 0.99
        # What only source sentences have stays as it is.
        same = tokenizer.tokenize(word)
        if len(same) == 1:
            index = tokenizer.convert_tokens_to_ids(same[0])
            torch.testing.assert_close(after[index], start[index])
    for name in ("pad", "unk", "cls", "sep", "mask"):
        index = getattr(tokenizer, f"{name}_token_id")
        assert torch.equal(after[index], start[index])


def test_graft_starts_from_alignments_or_pieces_alone(pairs, teacher, tmp_path):
    model, tokenizer = graft(teacher, pairs, tmp_path / "student")
    from_pieces, _ = graft(teacher, pairs, tmp_path / "pieces", "--start", "pieces")
    old, train = SentenceEncoder.from_pretrained(teacher), load_pairs(pairs)["train"]
    before = old.transformer.get_input_embeddings().weight.detach()
    start = start_embeddings(before, old.tokenizer, tokenizer)
    by_language = {}
    for row in train:
        for target in row["targets"]:
            both = by_language.setdefault(target["language"], ([], []))
            both[0].append(row["source"])
            both[1].append(target["sentence"])
    given = start, before, old.tokenizer, tokenizer, list(train["source"])
    expected = start_from_alignments(*given, by_language.values())
    assert torch.equal(model.get_input_embeddings().weight, expected) and not torch.equal(expected, start)
    assert torch.equal(from_pieces.get_input_embeddings().weight, start)


@pytest.mark.parametrize("kind", ["WordPiece", "byte-level", "Unigram"])
def test_what_a_token_stands_for_in_a_text(kind):
    if kind == "WordPiece":
        tokenizer = tiny_encoder().tokenizer
        listed, expected = ["plants", "##z"], [" plants", "z"]
    elif kind == "byte-level":
        backend = Tokenizer(models.BPE({"Ġpi": 0, "Ã¹": 1, "a": 2}, []))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
        listed, expected = ["Ġpi", "Ã¹", "a"], [" pi", "ù", "a"]
    else:
        tokenizer = train_tokenizer(iter(["I love plants"] * 20), 40, lowercase=True)
        listed, expected = ["▁", "l"], [" ", "l"]
    texts = plain_texts(tokenizer)
    assert [texts[tokenizer.convert_tokens_to_ids(token)] for token in listed] == expected


def test_layers_are_kept_evenly_spaced_and_positions_cut(pairs, tmp_path):
    settings = tiny_encoder().transformer.config.to_dict() | {"num_hidden_layers": 6}
    full = tiny_encoder(transformer=BertModel(BertConfig(**settings)))
    teacher = saved(full, tmp_path / "teacher")
    model, tokenizer = graft(
        teacher, pairs, tmp_path / "student", "--num_layers", "4", "--max_position_embeddings", "24"
    )
    assert model.config.num_hidden_layers == len(model.encoder.layer) == 4
    for kept, number in zip(model.encoder.layer, (0, 2, 3, 5), strict=True):
        for mine, theirs in zip(kept.parameters(), full.transformer.encoder.layer[number].parameters(), strict=True):
            assert torch.equal(mine, theirs)
    positions = model.embeddings.position_embeddings.weight
    assert torch.equal(positions, full.transformer.embeddings.position_embeddings.weight[:24])
    assert tokenizer.model_max_length == 24
    assert SentenceEncoder.from_pretrained(str(tmp_path / "student")).encode(["plants " * 50]).shape == (1, 32)
    assert_the_readme_names_its_command(tmp_path / "student")


def test_layers_of_several_kinds_keep_theirs(pairs, tmp_path):
    """ModernBERT attends to the whole text in every third layer, to neighbours in the others."""
    settings = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 64}
    config = ModernBertConfig(vocab_size=3000, max_position_embeddings=64, pad_token_id=0, **settings)
    teacher = saved(tiny_encoder(transformer=ModernBertModel(config)), tmp_path / "teacher")
    kinds = SentenceEncoder.from_pretrained(teacher).transformer.config.layer_types
    model, _ = graft(teacher, pairs, tmp_path / "student", "--num_layers", "3")
    assert model.config.layer_types == [kinds[0], kinds[2], kinds[5]] and len(set(kinds)) == 2


def test_a_model_that_shares_one_layer_has_none_to_leave_out(pairs, tmp_path, capsys):
    settings = {"hidden_size": 32, "embedding_size": 16, "num_attention_heads": 2, "intermediate_size": 64}
    albert = AlbertModel(AlbertConfig(vocab_size=3000, max_position_embeddings=64, num_hidden_layers=4, **settings))
    teacher = saved(tiny_encoder(transformer=albert), tmp_path / "teacher")
    with pytest.raises(SystemExit):
        graft(teacher, pairs, tmp_path / "student", "--num_layers", "2")
    assert "--num_layers 2: AlbertModel has no list of layers, leave it out" in capsys.readouterr().err


def test_a_window_of_each_layer_stays_with_it(pairs, tmp_path):
    settings = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = LongformerConfig(vocab_size=3000, max_position_embeddings=64, attention_window=[4, 8, 16], **settings)
    config.pad_token_id = 0
    teacher = saved(tiny_encoder(transformer=LongformerModel(config)), tmp_path / "teacher")
    model, _ = graft(teacher, pairs, tmp_path / "student", "--num_layers", "2")
    assert model.config.attention_window == [4, 16]


def test_an_end_of_text_that_the_tokenizer_calls_otherwise(pairs, tmp_path):
    """CLIP looks for its eos token; where a text ends the new tokenizer has [SEP]."""
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = CLIPTextConfig(vocab_size=3000, max_position_embeddings=64, **settings)
    teacher = saved(tiny_encoder(transformer=CLIPTextModel(config)), tmp_path / "teacher")
    model, tokenizer = graft(teacher, pairs, tmp_path / "student")
    assert (model.config.bos_token_id, model.config.eos_token_id) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert SentenceEncoder.from_pretrained(str(tmp_path / "student")).encode(["I love plants"]).shape == (1, 32)


def test_a_student_that_would_not_open_is_not_written(pairs, tmp_path, capsys):
    """LUKE has a second table of positions, for entities."""
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = LukeConfig(
        vocab_size=3000, max_position_embeddings=64, entity_vocab_size=10, entity_emb_size=8, **settings
    )
    config.pad_token_id = 0
    teacher = saved(tiny_encoder(transformer=LukeModel(config)), tmp_path / "teacher")
    with pytest.raises(SystemExit) as end:
        graft(teacher, pairs, tmp_path / "student", "--max_position_embeddings", "24")
    assert end.value.code == 2 and not (tmp_path / "student").exists()
    error = capsys.readouterr().err
    assert "teacher cannot be grafted so: the student: the weight entity_embeddings.position_embeddings" in error


@pytest.mark.parametrize(
    "command",
    ["audit --tokenizer_name_or_path", "trim --model_name_or_path", "graft --encoder_model_name_or_path"],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(pairs, tmp_path, capsys, command):
    """Before it is seen that the model is not there."""
    (tmp_path / "output").mkdir()
    (tmp_path / "output/letter.txt").write_text("mine")
    words = [*command.split(), "./nowhere", "--pairs_dir", pairs, "--output_dir", str(tmp_path / "output")]
    with pytest.raises(SystemExit) as end:
        run(main, build_parser().parse_args(words))
    assert end.value.code == 2 and "output holds letter.txt, which no script wrote" in capsys.readouterr().err


def test_pairs_without_a_pair_are_named(pairs, teacher, tmp_path, capsys):
    splits = load_pairs(pairs)
    splits["train"] = Dataset.from_dict({"source": [], "targets": []}, splits["train"].features)
    splits.save_to_disk(tmp_path / "empty", num_shards=dict.fromkeys(splits, 1))
    with pytest.raises(SystemExit):
        graft(teacher, pairs, tmp_path / "student", "--pairs_dir", str(tmp_path / "empty"))
    assert "empty holds no pair in its split train: build it anew" in capsys.readouterr().err


def test_a_model_with_a_list_of_each_part_of_its_layers_leaves_none_out(pairs, tmp_path, capsys):
    """Of XLM the attentions would be chosen alone, and stand before other layers' feed-forward parts."""
    xlm = XLMModel(XLMConfig(vocab_size=3000, emb_dim=32, n_layers=4, n_heads=2, max_position_embeddings=64))
    teacher = saved(tiny_encoder(transformer=xlm), tmp_path / "teacher")
    with pytest.raises(SystemExit):
        graft(teacher, pairs, tmp_path / "student", "--num_layers", "2")
    assert "--num_layers 2: XLMModel has no list of layers, leave it out" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_ends_in_one_sentence(pairs, teacher, tmp_path):
    """As on a full disk: no file may have more than 20 KB."""
    words = ["graft", "--encoder_model_name_or_path", teacher, "--pairs_dir", pairs, "--vocab_size", "400"]
    command = shlex.join([sys.executable, "build_student.py", *words, "--output_dir", str(tmp_path / "student")])
    command = f"ulimit -f 20; trap '' XFSZ; {command}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "student cannot be written (" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def xlm_roberta(folder) -> str:
    """A random XLM-R under the tiny tokenizer, whose padding token is 1 as XLM-R's is."""
    encoder = tiny_encoder()
    content = json.loads(encoder.tokenizer.backend_tokenizer.to_str())
    order = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    vocabulary = [*order, *(t for t in content["model"]["vocab"] if t not in order)]
    content["model"]["vocab"] = {token: i for i, token in enumerate(vocabulary)}
    content["added_tokens"] = []
    content["post_processor"] |= {"cls": ["[CLS]", 0], "sep": ["[SEP]", 2]}
    names = {f"{token[1:-1].lower()}_token": token for token in order}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), **names)
    settings = encoder.transformer.config.to_dict() | {"type_vocab_size": 1, "pad_token_id": 1}
    encoder = tiny_encoder(transformer=XLMRobertaModel(XLMRobertaConfig(**settings)))
    encoder.tokenizer = tokenizer
    return saved(encoder, folder)


def test_an_encoder_that_numbers_positions_from_its_padding_token_keeps_its_id(pairs, tmp_path):
    teacher = xlm_roberta(tmp_path / "teacher")
    model, tokenizer = graft(teacher, pairs, tmp_path / "student", "--max_position_embeddings", "24")
    assert (tokenizer.cls_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id) == (0, 1, 2)
    assert tokenizer("plants")["input_ids"][0] == 0 and model.config.pad_token_id == 1
    assert model.config.max_position_embeddings == 26
    old = SentenceEncoder.from_pretrained(teacher).transformer.embeddings.position_embeddings.weight
    assert torch.equal(model.embeddings.position_embeddings.weight[2:], old[2:26])


def test_the_longest_input_is_what_there_are_positions_for(pairs, tmp_path, capsys):
    """XLM-R's first two positions are not for tokens; the folder itself names no limit."""
    teacher = xlm_roberta(tmp_path / "teacher")
    for path in ("teacher/sentence_bert_config.json", "teacher/tokenizer_config.json"):
        content = json.loads((tmp_path / path).read_text())
        (tmp_path / path).write_text(json.dumps({k: v for k, v in content.items() if not k.endswith("_length")}))
    assert SentenceEncoder.from_pretrained(teacher).max_seq_length == 62
    _, tokenizer = graft(teacher, pairs, tmp_path / "student")
    assert tokenizer.model_max_length == 62
    assert SentenceEncoder.from_pretrained(str(tmp_path / "student")).encode(["plants " * 99]).shape == (1, 32)
    with pytest.raises(SystemExit):
        graft(teacher, pairs, tmp_path / "longer", "--max_position_embeddings", "63")
    assert "the encoder has positions for 62 tokens" in capsys.readouterr().err


def test_graft_onto_an_existing_tokenizer_without_pairs(teacher, tmp_path):
    tokenizer = train_tokenizer(iter(["I love plants", "amo le piante"] * 20), 60, lowercase=True)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    command = ["graft", "--encoder_model_name_or_path", teacher, "--output_dir", str(tmp_path / "student")]
    run(main, build_parser().parse_args([*command, "--tokenizer_name_or_path", str(tmp_path / "tokenizer")]))
    model, found = (kind.from_pretrained(tmp_path / "student") for kind in (AutoModel, AutoTokenizer))
    assert found.get_vocab() == tokenizer.get_vocab()
    old = SentenceEncoder.from_pretrained(teacher)
    expected = start_embeddings(old.transformer.get_input_embeddings().weight.detach(), old.tokenizer, tokenizer)
    assert torch.equal(model.get_input_embeddings().weight, expected)


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
        (["--vocab_size", "20"], "--vocab_size 20 is too small for the pairs: they have"),
        (["--num_layers", "3"], "--num_layers 3: the encoder has 2"),
        (["--max_position_embeddings", "2"], "--max_position_embeddings 2: the encoder has positions for 64 tokens"),
        (["--max_position_embeddings", "65"], "--max_position_embeddings 65: the encoder has positions for 64 tokens"),
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


def test_names_of_models_in_a_picture_tell_them_apart():
    assert short_names(["runs/a/student", "runs/b/student"]) == ["a/student", "b/student"]
    assert short_names(["x/one", "y/two"]) == ["one", "two"] and short_names(["one"]) == ["one"]
    assert short_names(["student", "runs/student"]) == ["student", "runs/student"]
