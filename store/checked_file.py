"""A file for HDF5 to write to, in which no failed write is lost.

HDF5 writes what is left when its objects are closed, in destructors that cannot report a failure, and it can crash when
it closes a file of which a write has failed. So it writes through this file, which notes the first failure, does
nothing from then on, and raises the failure when HDF5 is done.
"""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path


class CheckedFile:
    """A new file, open for HDF5's driver for Python file objects. `close` raises the first OSError of any write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failure: OSError | None = None
        self._at = 0
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at}.get(whence)
        self._at = offset + (os.fstat(self._descriptor).st_size if start is None else start)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        data = os.pread(self._descriptor, size, self._at)
        self._at += len(data)
        return data

    def readinto(self, target: bytearray | memoryview) -> int:
        view = memoryview(target).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        while left and self.failure is None:
            try:
                written = os.pwrite(self._descriptor, left, self._at)
                if not written:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
            except OSError as error:
                self.failure = error
                break
            self._at += written
            left = left[written:]
        self._at += len(left)
        return size

    def truncate(self, size: int | None = None) -> int:
        length = self._at if size is None else size
        if self.failure is None:
            try:
                os.ftruncate(self._descriptor, length)
            except OSError as error:
                self.failure = error
        return length

    def flush(self) -> None:
        """Do nothing: every write has gone to the system, and `store.publish` syncs the file."""

    def close(self) -> None:
        os.close(self._descriptor)
        if self.failure is not None:
            raise OSError(self.failure.errno, os.strerror(self.failure.errno or errno.EIO), str(self.path))
