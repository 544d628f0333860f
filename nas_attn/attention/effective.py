"""How many parameters of a product of matrices act: dimensions of the sets that products reach.

Schemes differ in which factors they share; their effective parameters are sums of these two.
"""

from __future__ import annotations


def product_dimension(rows: int, columns: int, inner: int) -> int:
    """Dimension of the matrices (rows, columns) that are a product over `inner`.

    A factor A of width r can be undone by the inverse in the other one, which takes r * r numbers.
    """
    rank = min(rows, columns, inner)
    return rank * (rows + columns - rank)


def mixed_product_dimension(rows: int, columns: int, slices: int, inner: int) -> int:
    """Dimension of the tensors (slices, rows, columns) whose slice i is A diag(m_i) B.

    A sum of `inner` rank-one tensors, unique up to two scalings each if there are at least two
    slices and `inner` is at most min(rows, columns) (Jennrich; Harshman 1970). One slice is a plain
    product. Beyond that `inner` the numbers of the space bound the count.
    """
    if slices == 1:
        return product_dimension(rows, columns, inner)
    return min(inner * (rows + columns + slices - 2), rows * columns * slices)
