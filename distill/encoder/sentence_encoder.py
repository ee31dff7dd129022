"""The sentence encoder: a transformer with pooling, from and to sentence-transformers folders."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tokenizers import normalizers
from torch import Tensor, nn
from tqdm import tqdm

from distill.command import UserError
from distill.encoder.model_folder import (
    behind,
    find_folder,
    loading,
    longest_input,
    position_table,
    read_modules,
    read_prompts,
    read_transformer,
    write_dense,
    write_pooling,
)
from distill.encoder.packing import (
    FORWARD_COST,
    PACKABLE,
    ending_out_of_memory,
    pack,
    packed_batches,
    pad,
    padded_batches,
    to_device,
    unpack,
)
from distill.encoder.pooling import POOLINGS, places
from distill.encoder.tokenizer import read_tokenizer, save_tokenizer, tokenize
from distill.folders import read_json, write_json
from distill.ranks import check_signal, together


def set_matmul_precision(device: torch.device, allow_tf32: bool = False) -> None:
    """Have fp32 matrix products computed as fast as they can be with all of fp32's digits; in TF32 only if asked.

    On a CPU torch calls MKL, which keeps AVX-512 to Intel's own; oneDNN has it on AMD's too, twice as fast. torch
    calls oneDNN where products may be rounded to bf16 ("medium"). oneDNN does round them where the CPU has AMX, so
    there nothing changes.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if allow_tf32 else "highest")
    else:
        has = torch.cpu.get_capabilities()
        onednn = has.get("avx512_f", False) and not has.get("amx_tile", False)
        torch.set_float32_matmul_precision("medium" if onednn else "highest")


# Of a transformer's configuration, what says nothing about its vectors.
UNRELATED = ("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache")


class SentenceEncoder(nn.Module):
    """A transformer, a pooling, and the Dense and Normalize layers that may follow them.

    `pooling` names one of POOLINGS, or several joined by '+', whose vectors are concatenated. The prompt named by
    `default_prompt_name` is put before every sentence to encode, as sentence-transformers does; without
    `include_prompt` its tokens are left out of the pooling. `do_lower_case`: sentences are lower-cased before the
    tokenizer's own normalization. `similarity` is what a folder recommends for its vectors; it is kept for who opens
    the folder next.

    `before_normalize`: whether a last Normalize is left out of the vectors, as it is of labels and while training:
    labels of unit norm shrink the gradient, and vectors of unit norm never reach others. It is saved all the same.
    """

    def __init__(
        self,
        transformer,
        tokenizer,
        pooling: str,
        dense: nn.Sequential,
        normalize: bool,
        max_seq_length: int,
        prompts: dict[str, str] | None = None,
        default_prompt_name: str | None = None,
        do_lower_case: bool = False,
        similarity: str = "cosine",
        include_prompt: bool = True,
    ):
        super().__init__()
        self.prompts, self.default_prompt_name = prompts or {}, default_prompt_name
        self.include_prompt, self.do_lower_case, self.similarity = include_prompt, do_lower_case, similarity
        self.transformer, self.tokenizer, self.pooling = transformer, tokenizer, pooling
        self.dense, self.normalize, self.max_seq_length = dense, normalize, max_seq_length
        self.before_normalize = False
        transformer.config.use_cache = False  # of keys and values, for decoders that go on with a text
        self._no_split_modules = transformer._no_split_modules  # FSDP gathers the weights of one at a time
        if transformer.config.model_type in PACKABLE and not transformer.config.is_decoder:  # whose attention is causal
            transformer.config._attn_implementation = "packed"

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        max_seq_length: int | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "SentenceEncoder":
        """Load a sentence-transformers folder of any version, or a plain transformer (mean pooling).

        `name_or_path`: a local folder or a hub id; UserError for anything else. `prompt`, `prompt_name`: as
        `read_prompts` takes them. `dtype`: of the transformer's weights; pooling and Dense layers are fp32.
        """
        folder = find_folder(name_or_path)
        with loading(f"{name_or_path} cannot be loaded as a model"):
            root, pooling, include_prompt, dense, normalize = read_modules(folder)
            transformer, tokenizer = read_transformer(root, dtype), read_tokenizer(root)
            tokens, rows = max(tokenizer.get_vocab().values()) + 1, transformer.get_input_embeddings().num_embeddings
            if tokens > rows:
                raise UserError(
                    f"{name_or_path}: its tokenizer has {tokens:,} tokens, its model embeddings of {rows:,}: save the "
                    "tokenizer that it was trained with beside it"
                )
            if tokenizer.pad_token_id is None:  # as of many decoders
                tokenizer.pad_token = tokenizer.eos_token
            if tokenizer.pad_token_id is None:
                raise UserError(f"{name_or_path}: its tokenizer has neither a padding nor an end token: give it one")
            settings = {}
            for path in root.glob("sentence_*_config.json"):
                settings |= read_json(path, {})
            if lower := bool(settings.get("do_lower_case")):
                backend, lowercase = tokenizer.backend_tokenizer, normalizers.Lowercase()
                backend.normalizer = normalizers.Sequence([lowercase, *filter(None, [backend.normalizer])])
            longest, limit = longest_input(transformer), settings.get("max_seq_length")
            with loading(f"{name_or_path}: its limit of tokens, max_seq_length or model_max_length, is no number"):
                limit = int(min(tokenizer.model_max_length, longest) if limit is None else limit)
            if position_table(transformer):  # without one, a model reads on
                limit = min(limit, longest)
            limit = min(limit, max_seq_length or limit)
            about = read_json(folder / "config_sentence_transformers.json", {})
            prompts, default = read_prompts(folder, prompt, prompt_name)
            similarity = about.get("similarity_fn_name") or "cosine"
            parts = transformer, tokenizer, pooling, dense, normalize
            encoder = cls(*parts, limit, prompts, default, lower, similarity, include_prompt)
            given = encoder.pooled_dimension
            for linear, _ in dense:
                if linear.in_features != given:
                    taken = linear.in_features
                    raise UserError(f"{name_or_path}: a Dense layer takes {taken} dimensions, and is given {given}")
                given = linear.out_features
            encoder.check_runs(name_or_path)
        return encoder

    @torch.no_grad()
    def check_runs(self, name: str) -> None:
        """UserError where special tokens and the prompt leave no room for a sentence, or it cannot encode one."""
        taken = len(self.tokenizer(self.prompt, verbose=False)["input_ids"])
        if self.max_seq_length <= taken:
            raise UserError(
                f"{name} reads {self.max_seq_length} tokens, of which special ones and its prompt take {taken}: raise "
                "its max_seq_length (or --max_seq_length), or shorten the prompt"
            )
        with loading(f"{name} cannot encode a sentence"):
            vector = self(**self.inputs(self.token_ids(["a"])))
        if not vector.isfinite().all():
            raise UserError(f"{name} gives vectors that are not finite: its weights are damaged")

    @property
    def pooled_dimension(self) -> int:
        """Width of what pooling gives."""
        return len(self.pooling.split("+")) * self.transformer.config.hidden_size

    @property
    def dimension(self) -> int:
        """Width of a sentence vector."""
        return self.dense[-1][0].out_features if len(self.dense) else self.pooled_dimension

    @property
    def prompt(self) -> str:
        """What is put before every sentence to encode."""
        return self.prompts.get(self.default_prompt_name) or ""

    @property
    def reads(self) -> str:
        """What it reads of a sentence, for people."""
        return behind(self.prompt)

    @contextmanager
    def reading(self, prompt: str) -> Iterator[None]:
        """Within it every sentence stands behind another prompt."""
        before = self.prompts, self.default_prompt_name
        self.prompts, self.default_prompt_name = {"other": prompt}, "other"
        try:
            self.check_runs(f"{prompt!r}")
            yield
        finally:
            self.prompts, self.default_prompt_name = before

    @property
    def not_pooled(self) -> int:
        """How many of a sentence's first tokens pooling leaves out: those of the prompt alone, but for an end token."""
        if self.include_prompt or not self.prompt:
            return 0
        [ids] = self.token_ids([""])
        return len(ids) - (ids[-1] in self.tokenizer.all_special_ids)

    @property
    def settings(self) -> str:
        """What decides its vectors beside weights and tokenizer."""
        config = self.transformer.config.to_diff_dict()
        config = {name: config[name] for name in sorted(config) if name not in UNRELATED}
        pooling = self.pooling, self.include_prompt
        return repr((config, *pooling, str(self.dense), self.normalize, self.max_seq_length, self.prompt))

    def packs(self, half: bool, dropout: float = 0.0) -> bool:
        """Whether sentences are packed rather than padded where it is.

        On a CPU, where a call more costs next to nothing; on a GPU that has a kernel for sequences of any lengths, for
        what it computes: in half precision (`half`) and without dropout.
        """
        device = next(self.parameters()).device
        can = device.type == "cpu" or (half and not dropout and torch.cuda.get_device_capability(device) >= (8, 0))
        return can and self.transformer.config._attn_implementation == "packed"

    def on(self, device: torch.device) -> "SentenceEncoder":
        """The same, its weights on a device. On a CPU they stay as they were loaded: processes share the file's pages.

        `to` would copy them where the device is called cpu:0, as accelerate calls it when there are several processes.
        """
        return self if device.type == "cpu" else self.to(device)

    def freeze_unused(self) -> None:
        """Exclude from training what no sentence vector comes from, as DDP must know: BERT's pooler, LUKE's entities.

        Found by a backward whose result is thrown away.
        """
        self.eval()  # dropout takes no random numbers
        self(**self.inputs(self.token_ids(["a"]))).sum().backward()
        for parameter in self.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None

    def compile_transformer(self) -> None:
        """Compile the transformer for padded batches of any shape (packed ones would be compiled for each step)."""
        self.transformer.config._attn_implementation = "sdpa"
        self.transformer.compile(dynamic=True)

    def token_ids(self, sentences: list[str]) -> list[list[int]]:
        """Token ids of each sentence as the encoder reads it: behind its prompt, cut at its limit."""
        return tokenize(self.tokenizer, [self.prompt + sentence for sentence in sentences], self.max_seq_length)

    def cut(self, lengths: np.ndarray, max_tokens: int, packed: bool) -> list[np.ndarray]:
        """Which sequences to take together, of at most `max_tokens` tokens with padding (or one), longest first."""
        if packed:
            return packed_batches(lengths, max_tokens)
        return padded_batches(lengths, max_tokens, FORWARD_COST[next(self.parameters()).device.type])

    def inputs(self, sequences: list) -> dict:
        """What `forward` takes for some token id sequences, padded."""
        return self.batch(np.concatenate(sequences), np.array([len(sequence) for sequence in sequences]), packed=False)

    def batch(self, ids: np.ndarray, lengths: np.ndarray, packed: bool) -> dict:
        """What `forward` takes for sequences one after another (tokens,), best sorted by length."""
        config = self.transformer.config
        if packed:
            return pack(ids, lengths, first_position=0 if config.model_type == "bert" else config.pad_token_id + 1)
        return pad(ids, lengths, self.tokenizer.pad_token_id)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, slots: Tensor | None = None, **packed) -> Tensor:
        """Token ids as `pad` or `pack` gives them to (sequences, dimension) fp32 vectors."""
        if slots is None:
            tokens = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        else:
            tokens = self.transformer(input_ids=input_ids, **packed).last_hidden_state[0]
            tokens = unpack(tokens, slots, attention_mask)
        return self.sentence_vectors(tokens, attention_mask)

    def sentence_vectors(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """What follows the transformer: (sequences, longest, width) and their mask to (sequences, dimension) fp32."""
        # Pooled in fp32: a half-precision sum over the tokens loses digits that the labels have.
        tokens, mask = tokens.float(), attention_mask[..., None].float()
        if skipped := self.not_pooled:
            mask = mask * (places(mask) > skipped)
        vectors = torch.cat([POOLINGS[mode](tokens, mask) for mode in self.pooling.split("+")], dim=1)
        if len(self.dense):
            vectors = self.dense(vectors.to(self.dense[0][0].weight.dtype)).float()  # FSDP gives weights as it computes
        return nn.functional.normalize(vectors, dim=-1) if self.normalize and not self.before_normalize else vectors

    @torch.no_grad()
    def encode(self, sentences: list[str], max_tokens: int = 4096) -> np.ndarray:
        """Vectors (len(sentences), dimension) float32, in the order given. Interrupted where a signal has come.

        A forward that runs out of memory is done again with half of its tokens; UserError where it was one sentence.
        """
        training, device = self.training, next(self.parameters()).device
        self.eval()
        ids = self.token_ids(sentences)
        lengths = np.array([len(i) for i in ids])
        if (lengths <= self.not_pooled).any():  # as without special tokens may be
            raise UserError(f"{sentences[lengths.argmin()]!r} has no token: remove this sentence")
        vectors = np.empty((len(ids), self.dimension), dtype=np.float32)
        packed = self.packs(half=self.transformer.dtype != torch.float32)
        batches = self.cut(lengths, max_tokens, packed)
        while batches:
            check_signal()
            batch, rest = batches[0], None
            with ending_out_of_memory():
                taken = np.concatenate([ids[i] for i in batch]), lengths[batch]
                inputs = to_device(self.batch(*taken, packed), device)
                vectors[batch] = self(**inputs).float().cpu().numpy()
                rest = batches[1:]
            if rest is None:
                if len(batch) == 1:
                    tokens = f"{lengths[batch[0]]} tokens"
                    raise UserError(f"{device} has too little memory for one sentence of {tokens}: free some of it")
                left, max_tokens = np.concatenate(batches), max_tokens // 2
                rest = [left[part] for part in self.cut(lengths[left], max_tokens, packed)]
            batches = rest
        self.train(training)
        return vectors

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write a sentence-transformers folder (safetensors) that its versions from 2.2 to 6 open.

        `dtype` is that of the weights on disk. The configuration says fp32 all the same: who opens the folder
        computes in fp32 unless he asks for less, and a Dense layer fits the transformer before it.
        """
        weights = self.transformer.state_dict()
        weights = {name: w.to(dtype) if w.is_floating_point() else w for name, w in weights.items()}
        self.transformer.save_pretrained(folder, state_dict=weights)
        save_tokenizer(self.tokenizer, folder, self.max_seq_length)
        write_pooling(folder / "1_Pooling", self.pooling, self.include_prompt, self.transformer.config.hidden_size)
        paths = ["", "1_Pooling"]
        for layer in self.dense:
            paths.append(f"{len(paths)}_Dense")
            write_dense(folder / paths[-1], layer, dtype)
        if self.normalize:
            paths.append(f"{len(paths)}_Normalize")
            (folder / paths[-1]).mkdir()
            write_json(folder / paths[-1] / "config.json", {})
        kinds = [path.partition("_")[2] or "Transformer" for path in paths]
        modules = [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (path, kind) in enumerate(zip(paths, kinds, strict=True))
        ]
        write_json(folder / "modules.json", modules)
        reads = {"max_seq_length": self.max_seq_length, "do_lower_case": self.do_lower_case}
        write_json(folder / "sentence_bert_config.json", reads)
        about = {
            "model_type": "SentenceTransformer",
            "__version__": {},
            "prompts": self.prompts,
            "default_prompt_name": self.default_prompt_name,
            "similarity_fn_name": self.similarity,
        }
        write_json(folder / "config_sentence_transformers.json", about)


def encode_on_all_ranks(
    encoder: SentenceEncoder,
    sentences: list[str],
    accelerator: Accelerator,
    progress: str | None = None,
    max_tokens: int = 4096,
    chunk: int = 512,
) -> dict[str, np.ndarray]:
    """The vector of every distinct sentence, on every rank; `progress` names a bar.

    Sorted by length they are cut into chunks, which ranks take in turn: the batches, and so the vectors, are the
    same for any number of ranks. Raises Stopped on all ranks where any got a signal.
    """
    distinct = sorted(set(sentences), key=lambda sentence: (-len(sentence), sentence))
    rank, world = accelerator.process_index, accelerator.num_processes
    starts, hidden = range(0, len(distinct), chunk), not (progress and accelerator.is_main_process)

    def encode_share() -> list[np.ndarray]:
        share = []
        with tqdm(total=len(distinct), desc=progress, unit=" sentences", disable=hidden) as bar:
            for start in starts[rank::world]:
                share.append(encoder.encode(distinct[start : start + chunk], max_tokens))
                bar.update(min(world * chunk, len(distinct) - start))
        return share

    mine = together(encode_share, accelerator)
    vectors = np.empty((len(distinct), encoder.dimension), dtype=np.float32)
    for first, share in enumerate(gather_object([mine])):
        for start, part in zip(starts[first::world], share, strict=True):
            vectors[start : start + chunk] = part
    return dict(zip(distinct, vectors, strict=True))
