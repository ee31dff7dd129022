"""Make a student: the teacher's encoder grafted onto a new multilingual tokenizer.

    python build_student.py graft --encoder_model_name_or_path sentence-transformers/all-MiniLM-L6-v2 \\
        --pairs_dir pairs/ --vocab_size 24000 --output_dir student/

The result is a plain Hugging Face folder for `AutoModel` and `AutoTokenizer`. Where a pretrained multilingual
student such as xlm-roberta-base is at hand, this step is not needed.
"""

import argparse
import io
from collections.abc import Iterator

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from distill_utils import HelpFormatter, UserError, load_pairs, replaced_folder, run
from encoder import SentenceEncoder, save_tokenizer

SPECIAL_TOKENS = ("pad", "unk", "cls", "sep", "mask")  # their ids in the student: 0 to 4


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    graft = commands.add_parser(
        "graft",
        help=graft_student.__doc__.splitlines()[0],
        formatter_class=HelpFormatter,
    )
    # fmt: off
    graft.add_argument("--encoder_model_name_or_path", required=True, help="model whose encoder the student gets")
    graft.add_argument("--pairs_dir", required=True, help="folder of build_pairs.py, to train the tokenizer on")
    graft.add_argument("--vocab_size", type=int, default=24_000, help="most tokens of the new tokenizer")
    graft.add_argument("--output_dir", required=True, help="folder to write, replaced when whole")
    # fmt: on
    return parser


def sentences(dataset) -> Iterator[str]:
    """Every sentence of a pairs split: each source sentence, then its translations."""
    for row in dataset:
        yield row["source"]
        yield from (target["sentence"] for target in row["targets"])


def train_tokenizer(texts: Iterator[str], vocab_size: int, lowercase: bool) -> PreTrainedTokenizerFast:
    """A Unigram tokenizer (Kudo 2018) over all languages, framed as BERT frames: [CLS] ... [SEP]."""
    steps = [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    normalizer = normalizers.Sequence(steps + [normalizers.Lowercase()] * lowercase)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=map(normalizer.normalize_str, texts),
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=False,  # a small corpus has fewer pieces to give
        character_coverage=0.9999,
        normalization_rule_name="identity",
        pad_id=0,
        pad_piece="[PAD]",
        unk_id=1,
        unk_piece="[UNK]",
        bos_id=2,
        bos_piece="[CLS]",
        eos_id=3,
        eos_piece="[SEP]",
        control_symbols="[MASK]",
        num_threads=1,  # more would make the result depend on their number
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=1))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{n}_token": f"[{n.upper()}]" for n in SPECIAL_TOKENS}
    )


def start_embeddings(old: Tensor, old_tokenizer, new_tokenizer) -> Tensor:
    """Embeddings (new vocabulary, width) from the old ones (old vocabulary, width).

    A special token takes its old namesake's; any other the mean over its pieces in the old tokenizer; one that
    has no known piece there the mean over all old embeddings.
    """
    new = old.mean(0).repeat(len(new_tokenizer), 1)
    for name in SPECIAL_TOKENS:
        new[getattr(new_tokenizer, f"{name}_token_id")] = old[getattr(old_tokenizer, f"{name}_token_id")]
    special = set(new_tokenizer.all_special_ids)
    for token, index in tqdm(new_tokenizer.get_vocab().items(), desc="embeddings", unit=" tokens"):
        pieces = old_tokenizer(token.replace("▁", " "), add_special_tokens=False)["input_ids"]
        pieces = [piece for piece in pieces if piece != old_tokenizer.unk_token_id]
        if pieces and index not in special:
            new[index] = old[pieces].mean(0)
    return new


def graft_student(args: argparse.Namespace) -> None:
    """Put an encoder under a new Unigram tokenizer, its embeddings started from the encoder's own."""
    train = load_pairs(args.pairs_dir)["train"]
    encoder = SentenceEncoder.from_pretrained(args.encoder_model_name_or_path)
    model, old_tokenizer = encoder.transformer, encoder.tokenizer
    lacking = [name for name in SPECIAL_TOKENS if getattr(old_tokenizer, f"{name}_token_id") is None]
    if lacking:
        raise UserError(f"{args.encoder_model_name_or_path}: its tokenizer has no {lacking[0]} token to graft from")
    # A teacher that reads no capitals knows nothing to start capitalised tokens from.
    lowercase = old_tokenizer.tokenize("Plants") == old_tokenizer.tokenize("plants")
    try:
        tokenizer = train_tokenizer(sentences(train), args.vocab_size, lowercase)
    except RuntimeError as error:  # sentencepiece's, whose own text names the letters it has to hold
        raise UserError(f"--vocab_size {args.vocab_size} is too small for {args.pairs_dir}: {error}") from error

    embeddings = start_embeddings(model.get_input_embeddings().weight.detach(), old_tokenizer, tokenizer)
    model.set_input_embeddings(nn.Embedding.from_pretrained(embeddings, padding_idx=tokenizer.pad_token_id))
    model.config.vocab_size = len(tokenizer)
    for name in ("pad", "bos", "eos"):
        setattr(model.config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    with replaced_folder(args.output_dir, args) as folder:
        model.save_pretrained(folder)
        save_tokenizer(tokenizer, folder, encoder.max_seq_length)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{args.output_dir}: {len(tokenizer):,} tokens, {parameters / 1e6:.1f} M parameters")


def main(args: argparse.Namespace) -> None:
    {"graft": graft_student}[args.command](args)


if __name__ == "__main__":
    run(main, build_parser().parse_args())
