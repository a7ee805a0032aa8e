"""The .npy files of a prepared corpus: written so that no error of the disk is lost."""

import errno
from pathlib import Path

import numpy as np

from config.files import replacing


def write_array(path: Path, array: np.ndarray) -> None:
    """Replace a .npy file. OSError if not all of it could be written: then the file is as it was.

    np.save would lose the error of its last buffered write.
    """
    with replacing(path) as new, new.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(np.ascontiguousarray(array).data)


def check_whole(path: Path) -> None:
    """OSError if a .npy file has not the size that its header says."""
    try:
        array = np.load(path, mmap_mode="r")
        is_whole = array.offset + array.nbytes == path.stat().st_size
    except OSError:
        raise
    except Exception:  # no header, one that NumPy cannot read, or fewer bytes than it says: many kinds
        is_whole = False
    if not is_whole:
        raise OSError(errno.EIO, "was not written whole", str(path))
