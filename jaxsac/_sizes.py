"""The one padding ladder: what has a size that depends on the data is padded to one of a few, so
that few programs are compiled.
"""


def padded(count: int, first: int, ratio: float = 2.0, multiple: int = 1) -> int:
    """The least size ≥ `count` among `first` and what follows: the last times `ratio`, rounded up
    to a multiple of `multiple`.
    """
    size = first
    while size < count:
        size = -(-int(max(size * ratio, size + 1)) // multiple) * multiple
    return size
