"""Arrays in .npy files: written row by row, read through memory maps and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from puyulm.errors import DataError


class ArrayWriter:
    """Appends rows to a .npy file of which the number of rows is known only at its end; a context manager.

    Args:
        path: The file to write, usually the partial one that `replacing` gives.
        dtype: Of its elements.
        shape: Of a row; `()` for a vector.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...] = ()) -> None:
        self.rows = 0
        self._dtype, self._shape = np.dtype(dtype), shape
        self._file = open(path, "wb")  # noqa: SIM115 - closed by __exit__
        self._start = self._write_header()

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Appends `[N, ...]` rows."""
        self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).data)
        self.rows += len(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.seek(0)
        grown = self._write_header()  # NumPy leaves room in the header for the number of rows to grow
        self._file.close()
        if grown != self._start:
            raise AssertionError("the header of a .npy file changed its length")

    def _write_header(self) -> int:
        np.lib.format.write_array_header_1_0(
            self._file, {"descr": self._dtype.str, "fortran_order": False, "shape": (self.rows, *self._shape)}
        )
        return self._file.tell()


def map_array(path: Path, rows: int) -> npt.NDArray[Any]:
    """Maps a .npy file into memory, to be read.

    Raises:
        DataError: It is missing, is shorter than it says, or has another number of rows.
    """
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise damaged(path, str(error)) from None
    if len(array) != rows:
        raise damaged(path, f"{len(array)} rows, expected {rows}")
    return np.asarray(array)


def damaged(path: Path, what: str) -> DataError:
    """The error for an intermediate file that is not as it was written."""
    return DataError(f"{path} is damaged ({what}): remove it and run the same command again")
