"""Why a file could not be opened, read or written: no room, no right, too many are open already, or its disk fails."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sqlite3

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_FILES = {errno.EMFILE, errno.ENFILE}
MORE_FILES = "let this process have more open (ulimit -n, LimitNOFILE=)"
MAY_NOT_READ = (
    "may not be read by the user that this program runs as; give that user the right, as chmod -R a+rX on its folder "
    "does, and see to the umask of who writes it"
)
"""What is said of a file, after its name."""
SEE_TO_DISK = "see to its disk: that, or what is mounted there, fails"
_NO_RIGHT = {errno.EROFS, errno.EACCES, errno.EPERM}
_SQLITE_NO_ROOM = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}  # of a quota, of a limit on the size of files
_SQLITE_DISK_FAILS = {
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_CORRUPTFS,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_DIR_FSYNC,
}
_SQLITE_FILES = 3  # it opens: the database, its log and the log's index


def known_errno(error: Exception) -> int | None:
    """The errno that stands for an error of the file system's, SQLite's, NumPy's or FAISS's; None for another one."""
    if isinstance(error, sqlite3.Error):
        whole = getattr(error, "sqlite_errorcode", 0)
        if whole in _SQLITE_DISK_FAILS:
            return errno.EIO
        code = whole & 0xFF
        if code == sqlite3.SQLITE_CANTOPEN:
            return _why_not_opened()
        return errno.ENOSPC if code in _SQLITE_NO_ROOM else errno.EROFS if code == sqlite3.SQLITE_READONLY else None
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in NO_ROOM | _NO_RIGHT | NO_FILES else None
    # Without a number. NumPy: "7 requested and 3 written". FAISS: "write error in FILE: 3 != 7 (No space left ...)".
    return errno.ENOSPC if re.search(r"requested and \d+ written|write error", str(error)) else None


def _why_not_opened() -> int:
    """SQLite does not say: for want of files that this process may have open, or of the right."""
    with contextlib.ExitStack() as opened:
        try:
            for _ in range(_SQLITE_FILES):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            return error.errno or errno.EROFS
    return errno.EROFS
