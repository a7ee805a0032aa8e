"""The .npy files of a prepared corpus: written whole, and checked before they are used."""

import errno
import warnings
from pathlib import Path

import numpy as np

from config.errors import DamagedError, first_line
from config.files import replacing

TOKENS = ("uint16", "uint32")
MASK = ("bool",)


def write_array(path: Path, array: np.ndarray) -> None:
    """Replace a .npy file. OSError if not all of it could be written: then the file is as it was.

    np.save would lose the error of its last buffered write.
    """
    with replacing(path) as new, new.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(np.ascontiguousarray(array).data)


def load_array(path: Path, dtypes: tuple[str, ...]) -> np.ndarray:
    """Map a one-dimensional array (N,) of one of these types into memory.

    OSError; DamagedError if the file has anything else.
    """
    array = _open(path)
    if array.ndim != 1 or array.dtype not in map(np.dtype, dtypes):
        raise DamagedError(f"{path}: cannot be read: it should be one row of {' or '.join(dtypes)}")
    return array


def check_whole(path: Path) -> None:
    """Raise OSError if a .npy file does not have the size that its header says."""
    try:
        array = _open(path)
        is_whole = array.offset + array.nbytes == path.stat().st_size
    except DamagedError:
        is_whole = False
    if not is_whole:
        raise OSError(errno.EIO, "was not written whole", str(path))


def _open(path: Path) -> np.memmap:
    """Map any array into memory. OSError; DamagedError if the file is no whole array."""
    try:
        with warnings.catch_warnings(action="error"):  # NumPy warns of headers that it guesses at
            return np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # what comes of a forged header: many kinds
        raise DamagedError(f"{path}: cannot be read: {first_line(error)}") from None
