"""Column stores: option-typed columns of selected events in parquet files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa


def write_columns(path: Path, columns: Mapping[str, Any]) -> None:
    """Write columns of equal length to a parquet file.

    Args:
        path: File to write.
        columns: Numpy arrays (numbers, bool or strings) or masked arrays of numbers, each of shape [N]. Masked
            entries become nulls. An empty mapping writes a file of no columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {}
    for name, values in columns.items():
        mask = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
        arrays[name] = pa.array(np.asarray(values), mask=mask)
    pq.write_table(pa.table(arrays), path, compression="zstd")


def read_columns(path: Path, names: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """Read columns that `write_columns` wrote.

    Args:
        path: The parquet file.
        names: Columns to read; all by default.

    Returns:
        Numpy arrays of shape [N]; columns with nulls come back as masked arrays.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=None if names is None else list(names))
    return {name: _to_numpy(table.column(name)) for name in table.column_names}


def _to_numpy(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    if column.null_count == 0:
        return np.asarray(column.to_numpy())
    valid = np.asarray(column.is_valid())
    filled = np.asarray(column.fill_null(0).to_numpy())
    return np.ma.MaskedArray(filled, mask=~valid)


def to_option(array: Any, length: int) -> np.ma.MaskedArray[Any, Any]:
    """Turn what a feature function returned into a masked float32 column.

    Args:
        array: Awkward or numpy array, one number or None per event.
        length: The number of events.

    Returns:
        Masked float32 array of shape [length]; the values behind the mask are 0.

    Raises:
        ValueError: Not one number per event.
    """
    import awkward as ak

    try:
        array = ak.Array(array)
    except TypeError as error:
        raise ValueError(f"returned {array!r}: one number per event was expected") from error
    if array.ndim != 1 or array.fields:
        raise ValueError(f"returned {ak.without_parameters(array).type}: one number per event was expected")
    if len(array) != length:
        raise ValueError(f"returned {len(array)} values for {length} events")
    absent = ak.to_numpy(ak.is_none(array))
    values = ak.to_numpy(ak.fill_none(array, 0))
    if values.dtype.kind not in "fiub":
        raise ValueError(f"returned values of type {values.dtype}: numbers were expected")
    # A float64 outside float32's range becomes infinite, which the caller reports with file and entry.
    with np.errstate(over="ignore"):
        return np.ma.MaskedArray(values.astype(np.float32), mask=absent)
