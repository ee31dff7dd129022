"""What was read, kept and dropped, as it is shown."""

import shutil
import textwrap

from tabulate import tabulate


def print_report(report: dict, output_dir: str) -> None:
    """The account as a table per corpus, one line per language, as wide as the terminal."""
    width = shutil.get_terminal_size().columns

    def listed(numbers: dict[str, int], mark: str = " ") -> str:
        return ", ".join(f"{name}{mark}{number}" for name, number in numbers.items())

    for corpus in report["corpora"]:
        # A no-break space keeps a reason and its number on one line of a wrapped cell.
        rows = [
            [tag, found["read"], found["kept"], listed(found["dropped"], "\u00a0")]
            for tag, found in corpus["languages"].items()
        ]
        headers = ["language", "read", "kept", "dropped"]
        left = len(tabulate([row[:3] for row in rows], headers[:3]).splitlines()[1]) + 2
        print(corpus["corpus"])
        table = tabulate(rows, headers, maxcolwidths=[None, None, None, max(width - left, 22)])
        print(table.replace("\u00a0", " "))
        lines = [
            f"{tag} is {listed(found['variants'])}" for tag, found in corpus["languages"].items() if "variants" in found
        ]
        if corpus["not_taken"]:
            lines.append(f"not taken: {listed(corpus['not_taken'])}")
        print("".join(f"{textwrap.fill(line, width, subsequent_indent='  ')}\n" for line in lines), end="")
    sizes = ", ".join(f"{name} {split['rows']} rows" for name, split in report["splits"].items())
    print(f"{output_dir}: {sizes}")
