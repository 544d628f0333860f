"""Whether a split of a data set can be opened, found out before days of training need it."""

from __future__ import annotations

from pathlib import Path

from nas_attn.errors import DataError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.folders import split_files


def check_split(data: PreparedData, split: str) -> int:
    """Open the index of a split; returns its number of examples.

    Args:
        data: A binarised data set.
        split: Name of the split, such as `test`.

    Raises:
        DataError: the split is missing, damaged or empty, or its sides differ in length.
    """
    from fairseq.data import indexed_dataset

    names = [split]
    if data.languages:
        found = split_files(data.folder, data.languages, split)  # in either direction, as fairseq
        pair = found[0].name.split(".")[1] if found else "-".join(data.languages)
        names = [f"{split}.{pair}.{language}" for language in data.languages]
    counts = {}
    for name in names:
        path = str(data.folder / name)
        try:
            kind = indexed_dataset.infer_dataset_impl(path) if _has_files(data, name) else None
            if kind == "mmap":
                _check_index(data.folder / f"{name}.idx")
            opened = None if kind is None else indexed_dataset.make_dataset(path, kind)
            counts[name] = 0 if opened is None else len(opened)
            last = opened[counts[name] - 1] if opened is not None and counts[name] else None
        except Exception as error:  # whatever a damaged file makes numpy or fairseq raise
            raise DataError(f"{path} cannot be read: {error}; prepare the data again") from None
        if last is None:
            raise DataError(
                f"{data.folder} has no {split} split ({name}.idx and .bin are missing or empty): "
                "prepare the data with it"
            )
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(f"{data.folder}: the sides of the {split} split differ in length: {listed}")
    return counts[names[0]]


def _has_files(data: PreparedData, name: str) -> bool:
    paths = [data.folder / f"{name}.{ending}" for ending in ("idx", "bin")]
    return all(path.is_file() and path.stat().st_size for path in paths)


def _check_index(path: Path) -> None:
    """See that an index is whole: a header, then size (int32) and place (int64) of each example.

    fairseq does not, and an object of its that is half made complains once more as it goes.
    """
    with path.open("rb") as file:
        count = int.from_bytes(file.read(26)[18:], "little")
    if path.stat().st_size != 26 + 12 * count:
        raise ValueError(f"its index is not as long as {count} examples are")
