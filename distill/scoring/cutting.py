"""What vectors are worth when less of them is kept: the first dimensions only, or fewer bits of each number."""

import numpy as np

from distill.command import UserError

BITS = {"fp32": 32, "int8": 8, "binary": 1}  # of a number


def cut(vector: dict[str, np.ndarray], dimensions: int, precision: str) -> dict[str, np.ndarray]:
    """The first `dimensions` of every vector, each number in fewer bits.

    `int8`: in steps of a 127th of the vector's own largest number, so that it nearly keeps its direction and needs no
    other vectors to be measured by. `binary`: signs, -1 and 1; the cosine of two falls as their Hamming distance rises.
    """
    rows = np.stack([*vector.values()])[:, :dimensions]
    if precision == "int8":
        rows = np.rint(rows / np.abs(rows).max(1, keepdims=True).clip(1e-12) * 127)
    elif precision == "binary":
        rows = np.where(rows > 0, 1, -1)
    return dict(zip(vector, rows.astype(np.float32), strict=True))


def bytes_of(dimensions: int, precision: str) -> int:
    """What such a vector takes."""
    return -(-dimensions * BITS[precision] // 8)


def cuts_of(vector: dict[str, np.ndarray], dimensions: list[int], precisions: list[str]) -> list[tuple[int, str]]:
    """The whole vector's (dimensions, precision), and every one asked for: fewer dimensions, fewer bits, both.

    UserError where the vectors have not more dimensions than are asked for.
    """
    width = len(next(iter(vector.values())))
    if max(dimensions, default=0) >= width:
        raise UserError(f"--truncate_dim {max(dimensions)}: a vector has {width} dimensions: give fewer")
    return [(d, p) for d in dict.fromkeys([width, *dimensions]) for p in dict.fromkeys(["fp32", *precisions])]
