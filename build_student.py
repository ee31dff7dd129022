"""Make a student: audit tokenizers on the corpora, trim a vocabulary to them, graft an encoder onto a new tokenizer.

    python build_student.py audit --tokenizer_name_or_path bert-base-uncased xlm-roberta-base \\
        --pairs_dir pairs/ --output_dir audit/
    python build_student.py trim --model_name_or_path xlm-roberta-base --pairs_dir pairs/ --output_dir student/
    python build_student.py graft --encoder_model_name_or_path sentence-transformers/all-MiniLM-L6-v2 \\
        --pairs_dir pairs/ --vocab_size 24000 --output_dir student/

`audit` ends with exit code 1 when a tokenizer fails on a language. `trim` and `graft` write folders for `AutoModel`
and `AutoTokenizer` whose README.md says how they were made.
"""

import argparse
import io
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import sentencepiece
from tabulate import tabulate
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from tqdm import tqdm
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast

from distill.encoder.sentence_encoder import (
    SentenceEncoder,
    loading,
    longest_input,
    position_table,
    read_tokenizer,
    save_tokenizer,
)
from distill.folders import (
    HelpFormatter,
    UserError,
    at_least,
    expand_languages,
    load_pairs,
    read_json,
    replaced_folder,
    run,
    write_json,
    writing,
)
from distill.students.alignment import start_from_alignments
from distill.students.trim import (
    SPECIAL_TOKENS,
    audit,
    count_tokens,
    keep_rows,
    kept_tokens,
    set_token_ids,
    start_embeddings,
    tokenizer_content,
    trimmed_tokenizer,
    worst_words,
)
from distill.text_files import text_lines

matplotlib.use("Agg")
from matplotlib import pyplot as plt

MOST_ALIGNED = 50_000  # pairs of a language that alignment is counted over: more take memory and change little


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    # fmt: off
    corpora = argparse.ArgumentParser(add_help=False)
    corpora.add_argument("--pairs_dir", help="folder of build_pairs.py: all sentences of its splits")
    corpora.add_argument("--text_files", nargs="+", default=[], metavar="SPEC", help="sentences a line, 'x.{en,it}.gz'")
    corpora.add_argument("--output_dir", required=True, help="folder to write, replaced when whole")
    command = commands.add_parser("audit", parents=[corpora], **about(audit_tokenizers))
    command.add_argument("--tokenizer_name_or_path", nargs="+", required=True, metavar="T", help="folders or hub ids")
    command.add_argument("--max_seq_length", type=at_least(1), default=128, help="tokens a student reads of a sentence")
    command.add_argument("--max_sentences_per_language", type=at_least(1), default=10_000, help="the first of each")
    command = commands.add_parser("trim", parents=[corpora], **about(trim_student))
    command.add_argument("--model_name_or_path", required=True, help="student to trim, folder or hub id")
    command.add_argument("--coverage", type=float, default=1.0, help="share of each language's text to keep tokens for")
    command.add_argument("--vocab_size", type=at_least(1), help="most tokens to keep, the most frequent")
    command = commands.add_parser("graft", **about(graft_student))
    command.add_argument("--encoder_model_name_or_path", required=True, help="model whose encoder the student gets")
    command.add_argument("--pairs_dir", help="folder of build_pairs.py, to train the tokenizer on and align its tokens")
    command.add_argument("--tokenizer_name_or_path", help="multilingual tokenizer to use (if not given: train one)")
    command.add_argument("--vocab_size", type=at_least(1), default=24_000, help="most tokens of a tokenizer to train")
    command.add_argument("--start", choices=["alignment", "pieces"], default="alignment", help="of new embeddings")
    command.add_argument("--num_layers", type=at_least(1), help="layers to keep, evenly spaced (if not given: all)")
    command.add_argument("--max_position_embeddings", type=at_least(1), help="longest input (if not given: as is)")
    command.add_argument("--output_dir", required=True, help="folder to write, replaced when whole")
    # fmt: on
    return parser


def about(function) -> dict:
    """What a subcommand's parser takes from the function behind it."""
    return {"help": function.__doc__.splitlines()[0], "formatter_class": HelpFormatter}


# ---------------------------------------------------------------- corpora and tokenizers


def language_sentences(pairs_dir: str | None, text_files: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The sentences of a pairs folder and of text files, in batches of one language each."""
    if not pairs_dir and not text_files:
        raise UserError("no corpus is given: add --pairs_dir or --text_files")
    if pairs_dir:
        source_language = read_json(Path(pairs_dir) / "args.json", {}).get("source_language", "source")
        splits = load_pairs(pairs_dir)
        if len(splits["train"]) == 0:
            raise UserError(f"{pairs_dir} holds no pair: build it anew")
        for split in splits.values():
            for rows in split.iter(1000):
                batch = {source_language: rows["source"]}
                for target in (target for targets in rows["targets"] for target in targets):
                    batch.setdefault(target["language"], []).append(target["sentence"])
                yield from batch.items()
    for spec in text_files:
        for language, path in expand_languages(spec).items():
            empty = True
            for _, lines in text_lines(path):
                if filled := [line for line in lines if line.strip()]:
                    empty = False
                    yield language, filled
            if empty:
                raise UserError(f"{path} holds no sentence: check the file")


def sentences(dataset) -> Iterator[str]:
    """Every sentence of a pairs split: each source sentence, then its translations."""
    for row in dataset:
        yield row["source"]
        yield from (target["sentence"] for target in row["targets"])


def load_tokenizer(name_or_path: str):
    with loading(f"{name_or_path} is no tokenizer folder or hub id within reach"):
        return read_tokenizer(name_or_path)


def train_tokenizer(
    texts: Iterator[str], vocab_size: int, lowercase: bool, special_tokens: tuple[str, ...] = SPECIAL_TOKENS
) -> PreTrainedTokenizerFast:
    """A Unigram tokenizer (Kudo 2018) over all languages, framed as BERT frames: [CLS] ... [SEP].

    The special tokens have the first ids, in the order given.
    """
    steps = [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    normalizer = normalizers.Sequence(steps + [normalizers.Lowercase()] * lowercase)
    number = {name: i for i, name in enumerate(special_tokens)}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=map(normalizer.normalize_str, texts),
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=False,  # a small corpus has fewer pieces to give
        character_coverage=0.9999,
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
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=number["unk"]))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", number["sep"]), ("[CLS]", number["cls"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{n}_token": f"[{n.upper()}]" for n in SPECIAL_TOKENS}
    )


# ---------------------------------------------------------------- audit


def draw_audit(report: dict, path: Path) -> None:
    """Tokens per character and unknown tokens by language and tokenizer, as PNG; a failed language is hatched."""
    short = [Path(tokenizer).name for tokenizer in report]
    labels = short if len(set(short)) == len(short) else list(report)
    languages = list(dict.fromkeys(language for entry in report.values() for language in entry["languages"]))
    figure, panels = plt.subplots(2, 1, figsize=(3 + 0.55 * len(languages), 6), sharex=True, layout="constrained")
    width = 0.8 / len(report)
    for number, (label, entry) in enumerate(zip(labels, report.values(), strict=True)):
        figures = entry["languages"].values()
        at = np.arange(len(languages)) + (number - (len(report) - 1) / 2) * width
        hatches = ["" if row["verdict"] == "reads" else "///" for row in figures]
        for axes, name, factor in zip(panels, ("tokens_per_character", "unknown_share"), (1, 100), strict=True):
            heights = [factor * row[name] for row in figures]
            axes.bar(at, heights, width, label=label, hatch=hatches, edgecolor="white")
    panels[0].set(ylabel="tokens per character", title="What a tokenizer makes of each language (hatched: fails)")
    panels[1].set(ylabel="unknown tokens, %", xticks=range(len(languages)), xticklabels=languages)
    panels[1].set_ylim(0, max(5, panels[1].get_ylim()[1]))
    panels[0].legend(fontsize="small")
    for axes in panels:
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def print_audit(tokenizer: str, entry: dict, max_seq_length: int) -> None:
    print(f"\n{tokenizer}: {entry['vocabulary']:,} tokens")
    print(f"tokens unknown, per word, per character; sentences over {max_seq_length}; vocabulary used\n")
    rows = [
        (
            language,
            row["sentences"],
            f"{row['unknown_share']:.1%}",
            row["tokens_per_word"],
            row["tokens_per_character"],
            f"{row['cut_share']:.1%}",
            f"{row['vocabulary_share']:.1%}",
            row["verdict"],
        )
        for language, row in entry["languages"].items()
    ]
    headers = ["language", "sentences", "unknown", "/ word", "/ char", "cut", "used", "verdict"]
    align = ["left", *["right"] * 6, "left"]
    print(tabulate(rows, headers, floatfmt=".2f", missingval="-", colalign=align))
    print("\nworst words, with their tokens")
    for language, row in entry["languages"].items():
        worst = [f"{w['word'][:16]} {'unknown' if w['unknown'] else len(w['tokens'])}" for w in row["worst_words"][:3]]
        print(f"{language:<9} {', '.join(worst) or '-'}")


def audit_tokenizers(args: argparse.Namespace) -> None:
    """See what tokenizers make of each language: unknown tokens, tokens per word, cut sentences, a verdict."""
    tokenizers = {path: load_tokenizer(path) for path in args.tokenizer_name_or_path}
    read = {}
    for language, batch in language_sentences(args.pairs_dir, args.text_files):
        listed = read.setdefault(language, [])
        listed += batch[: args.max_sentences_per_language - len(listed)]
    report = {}
    for path, tokenizer in tokenizers.items():
        languages = {
            language: audit(tokenizer, listed, args.max_seq_length) | {"worst_words": worst_words(tokenizer, listed)}
            for language, listed in tqdm(read.items(), desc="audit", unit=" languages")
        }
        report[path] = {"vocabulary": len(tokenizer), "languages": languages}
    with writing(args.output_dir), replaced_folder(args.output_dir, args) as folder:
        write_json(folder / "audit.json", {"max_seq_length": args.max_seq_length, "tokenizers": report})
        draw_audit(report, folder / "audit.png")
    for path, entry in report.items():
        print_audit(path, entry, args.max_seq_length)
    print(f"\n{args.output_dir}: audit.json, audit.png")
    if any(row["verdict"] != "reads" for entry in report.values() for row in entry["languages"].values()):
        sys.exit(1)


# ---------------------------------------------------------------- trim


def model_with_head(encoder: SentenceEncoder):
    """The encoder's transformer, or, where its folder holds one, the masked language model around it."""
    architectures = encoder.transformer.config.architectures or [""]
    if not architectures[0].endswith("ForMaskedLM"):
        return encoder.transformer
    model = AutoModelForMaskedLM.from_pretrained(encoder.transformer.name_or_path, dtype=encoder.transformer.dtype)
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


def trim_student(args: argparse.Namespace) -> None:
    """Cut a student's vocabulary to the tokens that the corpora use; on such text its vectors stay the same."""
    if not 0 < args.coverage <= 1:
        raise UserError(f"--coverage {args.coverage} is no share: give a number above 0, up to 1")
    encoder = SentenceEncoder.from_pretrained(args.model_name_or_path)
    model, full = model_with_head(encoder), encoder.tokenizer
    content = tokenizer_content(full)
    corpora = args.pairs_dir, args.text_files
    before = count_tokens(full, language_sentences(*corpora))
    kept = kept_tokens(content, before, args.coverage, args.vocab_size)
    encoder.tokenizer = trimmed_tokenizer(full, content, kept)
    sizes = [size(model)]
    keep_rows(model, kept)
    set_token_ids(model.config, encoder.tokenizer)
    sizes.append(size(model))
    after = count_tokens(encoder.tokenizer, language_sentences(*corpora))
    unknown = full.unk_token_id, encoder.tokenizer.unk_token_id
    languages = coverage_by_language(before, after, kept, unknown)

    rows = [
        (language, *(row if isinstance(row, int) else f"{row:.2%}" for row in entry.values()))
        for language, entry in languages.items()
    ]
    headers = ["language", "tokens", "kept", "known before", "known after", "tokens after"]
    align = ["left", *["right"] * 5]
    summary = "{tokens:,} tokens, {parameters:,} parameters, {bytes:,} bytes"
    lines = [f"Before: {summary.format(**sizes[0])}.", f"After: {summary.format(**sizes[1])}."]
    with writing(args.output_dir), replaced_folder(args.output_dir, args) as folder:
        encoder.save(folder)
        if model is not encoder.transformer:
            model.save_pretrained(folder)
        write_json(folder / "trim.json", {"before": sizes[0], "after": sizes[1], "languages": languages})
        table = tabulate(rows, headers, tablefmt="github", colalign=align)
        write_readme(folder, f"{args.model_name_or_path} with fewer tokens", args, [*lines, "", table])
    print(tabulate(rows, headers, colalign=align))
    print(*lines, f"{args.output_dir}: trim.json, README.md", sep="\n")


# ---------------------------------------------------------------- graft


def keep_layers(model, number: int) -> None:
    """Keep `number` of the encoder's layers, evenly spaced from first to last (as distil-whisper does)."""
    count = model.config.num_hidden_layers
    if not 1 <= number <= count:
        raise UserError(f"--num_layers {number}: the encoder has {count}")
    lists = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    name, layers = next(((name, layers) for name, layers in lists if len(layers) == count), (None, None))
    if layers is None:
        raise UserError(f"--num_layers {number}: {type(model).__name__} shares one layer's weights, leave it out")
    kept = np.linspace(0, count - 1, number).round().astype(int)
    model.set_submodule(name, nn.ModuleList(layers[i] for i in kept))
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in kept]
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


def pairs_by_language(dataset, most: int) -> dict[str, tuple[list[str], list[str]]]:
    """Source sentences and their translations by language, of each the first `most`."""
    languages = {}
    for row in dataset:
        for target in row["targets"]:
            source, translation = languages.setdefault(target["language"], ([], []))
            if len(source) < most:
                source.append(row["source"])
                translation.append(target["sentence"])
    return languages


def graft_student(args: argparse.Namespace) -> None:
    """Put an encoder under a new multilingual tokenizer, its embeddings started from the encoder's own."""
    if not (args.pairs_dir or args.tokenizer_name_or_path):
        raise UserError(
            "there is no tokenizer to graft onto: add --pairs_dir to train one, or --tokenizer_name_or_path"
        )
    train = load_pairs(args.pairs_dir)["train"] if args.pairs_dir else None
    aligned = train is not None and args.start == "alignment"
    pairs = pairs_by_language(train, MOST_ALIGNED) if aligned else {}
    encoder = SentenceEncoder.from_pretrained(args.encoder_model_name_or_path)
    model, old_tokenizer = encoder.transformer, encoder.tokenizer
    old_ids = {name: getattr(old_tokenizer, f"{name}_token_id") for name in SPECIAL_TOKENS}
    lacking = [name for name, index in old_ids.items() if index is None]
    if lacking:
        raise UserError(f"{args.encoder_model_name_or_path}: its tokenizer has no {lacking[0]} token to graft from")
    if args.num_layers:
        keep_layers(model, args.num_layers)
    if args.max_position_embeddings:
        cut_positions(model, args.max_position_embeddings)
    if args.tokenizer_name_or_path:
        tokenizer = load_tokenizer(args.tokenizer_name_or_path)
    else:
        # A teacher that reads no capitals knows nothing to start capitalised tokens from.
        lowercase = old_tokenizer.tokenize("Plants") == old_tokenizer.tokenize("plants")
        # In their old order, so that the padding token's id, from which RoBERTa numbers positions, is the same.
        order = tuple(sorted(SPECIAL_TOKENS, key=old_ids.get))
        try:
            tokenizer = train_tokenizer(sentences(train), args.vocab_size, lowercase, order)
        except RuntimeError as error:  # sentencepiece's, whose own text names the letters it has to hold
            raise UserError(f"--vocab_size {args.vocab_size} is too small for {args.pairs_dir}: {error}") from error
    _, positions = position_table(model) or (None, None)
    if positions is not None and positions.padding_idx not in (None, tokenizer.pad_token_id):
        raise UserError(
            f"{args.encoder_model_name_or_path} numbers positions from its padding token, {positions.padding_idx}, "
            f"which in the tokenizer is {tokenizer.pad_token_id}: choose another tokenizer, or train one"
        )

    old = model.get_input_embeddings().weight.detach()
    embeddings = start_embeddings(old, old_tokenizer, tokenizer)
    if aligned:
        given = embeddings, old, old_tokenizer, tokenizer, train[:MOST_ALIGNED]["source"]
        embeddings = start_from_alignments(*given, tqdm(pairs.values(), desc="alignment", unit=" languages"))
    model.set_input_embeddings(nn.Embedding.from_pretrained(embeddings, padding_idx=tokenizer.pad_token_id))
    model.config.vocab_size = len(embeddings)
    set_token_ids(model.config, tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    summary = f"{len(tokenizer):,} tokens, {model.config.num_hidden_layers} layers, {parameters / 1e6:.1f} M parameters"
    with writing(args.output_dir), replaced_folder(args.output_dir, args) as folder:
        model.save_pretrained(folder)
        length = min(encoder.max_seq_length, args.max_position_embeddings or encoder.max_seq_length)
        save_tokenizer(tokenizer, folder, length)
        title = f"{args.encoder_model_name_or_path} under a multilingual tokenizer"
        counts = ", ".join(f"{language} {len(source):,}" for language, (source, _) in pairs.items())
        write_readme(
            folder, title, args, [f"{summary}. Tokens aligned over these numbers of pairs: {counts or 'none'}."]
        )
    print(f"{args.output_dir}: {summary}")


# ---------------------------------------------------------------- the run


def write_readme(folder: Path, title: str, args: argparse.Namespace, lines: list[str]) -> None:
    """README.md of a student: from what and how it was made."""
    options = [
        shlex.join([f"--{name}", *map(str, value if isinstance(value, list) else [value])])
        for name, value in vars(args).items()
        if value not in (None, []) and name != "command"
    ]
    command = " \\\n      ".join([f"python build_student.py {args.command}", *options])
    text = "\n".join([f"# {title}", "", "Made by", "", f"    {command}", "", *lines])
    (folder / "README.md").write_text(text + "\n", encoding="utf-8")


COMMANDS = {"audit": audit_tokenizers, "trim": trim_student, "graft": graft_student}


def main(args: argparse.Namespace) -> None:
    COMMANDS[args.command](args)


if __name__ == "__main__":
    run(main, build_parser().parse_args())
