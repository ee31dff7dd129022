"""Make a student: audit tokenizers on the corpora, trim a vocabulary, graft an encoder onto a new one; turn vectors.

    python build_student.py audit --tokenizer_name_or_path bert-base-uncased xlm-roberta-base \\
        --pairs_dir pairs/ --output_dir audit/
    python build_student.py trim --model_name_or_path xlm-roberta-base --pairs_dir pairs/ --output_dir student/
    python build_student.py graft --encoder_model_name_or_path sentence-transformers/all-MiniLM-L6-v2 \\
        --pairs_dir pairs/ --vocab_size 24000 --output_dir student/

    python build_student.py turn --model_name_or_path run/student --pairs_dir pairs/ --output_dir turned/

`audit` ends with exit code 3 when a tokenizer does not read a language. The others write sentence-transformers folders,
whose README.md says how they were made.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from distill.command import Parser, UserError, at_least, part, run, wrapped
from distill.encoder.model_folder import loading
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.encoder.tokenizer import read_tokenizer
from distill.folders import check_output, replaced_folder, write_json, writing
from distill.pairs.pairs_folder import (
    evenly_spaced,
    language_sentences,
    load_pairs,
    pairs_by_language,
    sentence_counts,
    sentences,
)
from distill.students.audit import audit, draw_audit, print_audit, worst_words
from distill.students.graft import (
    MOST_ALIGNED,
    MOST_TRAINED,
    cut_positions,
    equal_share,
    graft,
    keep_layers,
    new_tokenizer,
)
from distill.students.trim import trim, trim_table
from distill.students.turn import turn

MOST_TURNED = 20_000  # source sentences that `turn` looks at
UNREAD = 3  # exit code of an audit that found a language which is not read


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, script=__file__)
    commands = parser.add_subparsers(dest="command", required=True)
    # fmt: off
    corpora = argparse.ArgumentParser(add_help=False)
    corpora.add_argument("--pairs_dir", help="folder of build_pairs.py: all sentences of its splits")
    corpora.add_argument("--text_files", nargs="+", default=[], metavar="SPEC", help="sentences a line, 'x.{en,it}.gz'")
    corpora.add_argument("--output_dir", required=True, help="folder to write, replaced when whole")
    command = commands.add_parser("audit", parents=[corpora], help=audit_tokenizers.__doc__)
    command.add_argument("--tokenizer_name_or_path", nargs="+", required=True, metavar="T", help="folders or hub ids")
    command.add_argument("--max_seq_length", type=at_least(1), default=128, help="tokens a student reads of a sentence")
    command.add_argument("--max_sentences_per_language", type=at_least(1), default=10_000, help="the first of each")
    command = commands.add_parser("trim", parents=[corpora], help=trim_student.__doc__)
    command.add_argument("--model_name_or_path", required=True, help="student to trim, folder or hub id")
    command.add_argument("--coverage", type=part, default=1.0, help="share of each language's text to keep tokens for")
    command.add_argument("--vocab_size", type=at_least(1, 10**7), help="most tokens to keep, the most frequent")
    command = commands.add_parser("graft", help=graft_student.__doc__)
    command.add_argument("--encoder_model_name_or_path", required=True, help="model whose encoder the student gets")
    command.add_argument("--pairs_dir", help="folder of build_pairs.py, to train the tokenizer on and align its tokens")
    command.add_argument("--tokenizer_name_or_path", help="multilingual tokenizer to use (if not given: train one)")
    command.add_argument("--vocab_size", type=at_least(1, 10**7), default=24_000, help="most tokens to train")
    command.add_argument("--start", choices=["alignment", "pieces"], default="alignment", help="of new embeddings")
    command.add_argument("--num_layers", type=at_least(1), help="layers to keep, evenly spaced (if not given: all)")
    command.add_argument("--max_position_embeddings", type=at_least(1), help="longest input (if not given: as is)")
    command.add_argument("--output_dir", required=True, help="folder to write, replaced when whole")
    command = commands.add_parser("turn", help=turn_student.__doc__)
    command.add_argument("--model_name_or_path", required=True, help="a trained student, folder or hub id")
    command.add_argument("--pairs_dir", required=True, help="folder of build_pairs.py, whose sources it is turned by")
    command.add_argument("--output_dir", required=True, help="folder to write, replaced when whole")
    # fmt: on
    return parser


def load_tokenizer(name_or_path: str):
    with loading(f"{name_or_path} is no tokenizer folder or hub id within reach"):
        return read_tokenizer(name_or_path)


def check_opens(folder: Path, failure: str) -> None:
    """UserError where a student that was just written cannot be opened: not every kind of model lets itself be cut."""
    try:
        SentenceEncoder.from_pretrained(str(folder))
    except UserError as error:
        raise UserError(f"{failure}: {str(error).replace(str(folder), 'the student')}") from None


def write_readme(folder: Path, title: str, args: argparse.Namespace, lines: list[str]) -> None:
    """README.md of a student: from what and how it was made."""
    text = "\n".join([f"# {title}", "", "Made by", "", wrapped(args.command_line), "", *lines])
    (folder / "README.md").write_text(text + "\n", encoding="utf-8")


def audit_tokenizers(args: argparse.Namespace) -> None:
    """See what tokenizers make of each language: unknown tokens, tokens per word, cut sentences, a verdict."""
    check_output(args.output_dir, args, "an audit")
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
    with writing(args.output_dir), replaced_folder(args.output_dir, args, "an audit") as folder:
        write_json(folder / "audit.json", {"max_seq_length": args.max_seq_length, "tokenizers": report})
        draw_audit(report, folder / "audit.png")
    for path, entry in report.items():
        print_audit(path, entry, args.max_seq_length)
    print(f"\n{args.output_dir}: audit.json, audit.png")
    if any(row["verdict"] != "reads" for entry in report.values() for row in entry["languages"].values()):
        sys.exit(UNREAD)


def trim_student(args: argparse.Namespace) -> None:
    """Cut a student's vocabulary to the tokens that the corpora use; on such text its vectors stay the same."""
    check_output(args.output_dir, args, "a trimmed student")
    encoder = SentenceEncoder.from_pretrained(args.model_name_or_path)
    corpora = partial(language_sentences, args.pairs_dir, args.text_files)
    model, report = trim(encoder, corpora, args.coverage, args.vocab_size)
    summary = "{tokens:,} tokens, {parameters:,} parameters, {bytes:,} bytes"
    sizes = [f"{when.capitalize()}: {summary.format(**report[when])}." for when in ("before", "after")]
    with writing(args.output_dir), replaced_folder(args.output_dir, args, "a trimmed student") as folder:
        encoder.save(folder)
        if model is not encoder.transformer:  # with its head, which holds the encoder's weights too
            model.save_pretrained(folder)
        check_opens(folder, f"{args.model_name_or_path} cannot be trimmed")
        write_json(folder / "trim.json", report)
        table = trim_table(report["languages"], "github")
        write_readme(folder, f"{args.model_name_or_path} with fewer tokens", args, [*sizes, "", table])
    print(trim_table(report["languages"], "simple"))
    print(*sizes, f"{args.output_dir}: trim.json, README.md", sep="\n")


def graft_student(args: argparse.Namespace) -> None:
    """Put an encoder under a new multilingual tokenizer, its embeddings started from the encoder's own."""
    check_output(args.output_dir, args, "a grafted student")
    if not (args.pairs_dir or args.tokenizer_name_or_path):
        raise UserError(
            "there is no tokenizer to graft onto: add --pairs_dir to train one, or --tokenizer_name_or_path"
        )
    train = load_pairs(args.pairs_dir)["train"] if args.pairs_dir else None
    aligned = train is not None and args.start == "alignment"
    pairs = pairs_by_language(train, MOST_ALIGNED) if aligned else {}
    encoder = SentenceEncoder.from_pretrained(args.encoder_model_name_or_path)
    if args.num_layers:
        keep_layers(encoder.transformer, args.num_layers)
    if args.max_position_embeddings:
        cut_positions(encoder.transformer, args.max_position_embeddings)
        encoder.max_seq_length = min(encoder.max_seq_length, args.max_position_embeddings)
    notes = []
    if args.tokenizer_name_or_path:
        tokenizer = load_tokenizer(args.tokenizer_name_or_path)
    else:
        counts = sentence_counts(train)
        texts = list(sentences(train, equal_share(counts.values(), MOST_TRAINED)))
        tokenizer = new_tokenizer(encoder.tokenizer, texts, args.vocab_size)
        trained = f"Tokenizer trained on {len(texts):,} of {counts.total():,} sentences"
        if len(tokenizer) < args.vocab_size:
            trained += f", which have no more pieces to give: {len(tokenizer):,} of the {args.vocab_size:,} asked for"
        notes.append(f"{trained}.")
    sources = train[:MOST_ALIGNED]["source"] if aligned else []
    with tqdm(pairs.values(), desc="alignment", unit=" languages", disable=not pairs) as bar:
        graft(encoder, tokenizer, sources, bar)
    parameters, layers = sum(p.numel() for p in encoder.parameters()), encoder.transformer.config.num_hidden_layers
    summary = f"{len(tokenizer):,} tokens, {layers} layers, {parameters / 1e6:.1f} M parameters"
    with writing(args.output_dir), replaced_folder(args.output_dir, args, "a grafted student") as folder:
        encoder.save(folder)
        check_opens(folder, f"{args.encoder_model_name_or_path} cannot be grafted so")
        title = f"{args.encoder_model_name_or_path} under a multilingual tokenizer"
        counts = ", ".join(f"{language} {len(source):,}" for language, (source, _) in pairs.items())
        notes.append(f"Tokens aligned over these numbers of pairs: {counts or 'none'}.")
        write_readme(folder, title, args, [f"{summary}.", *notes])
    print(*notes, f"{args.output_dir}: {summary}", sep="\n")


def turn_student(args: argparse.Namespace) -> None:
    """Turn a student's vectors so that their first dimensions say most; whole ones are as near as before."""
    check_output(args.output_dir, args, "a turned student")
    sources = load_pairs(args.pairs_dir)["train"]
    taken = sources[evenly_spaced(len(sources), MOST_TURNED)]["source"]
    encoder = SentenceEncoder.from_pretrained(args.model_name_or_path)
    share = turn(encoder, taken)
    firsts = [d for d in (32, 64, 128, 256, 512) if d < len(share)]
    held = ", ".join(f"{share[:d].sum():.1%} in the first {d}" for d in firsts)
    summary = f"Of the variance of {len(taken):,} sentences' vectors {held}."
    with writing(args.output_dir), replaced_folder(args.output_dir, args, "a turned student") as folder:
        encoder.save(folder)
        write_readme(folder, f"{args.model_name_or_path}, turned", args, [summary])
    print(f"{summary}\n{args.output_dir}: README.md")


COMMANDS = {"audit": audit_tokenizers, "trim": trim_student, "graft": graft_student, "turn": turn_student}


def main(args: argparse.Namespace) -> None:
    COMMANDS[args.command](args)


if __name__ == "__main__":
    run(main, build_parser().parse_args())
