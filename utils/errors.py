"""What can go wrong, and the exit code each kind of trouble ends a script with.

0 done, 1 a fault of ours, 2 the user's data or settings, 3 the environment (disk, memory, device),
130 Ctrl-C, 143 SIGTERM after saving. The first line says what, where, what was expected and what to do.
"""

from __future__ import annotations

import errno
import io
import sys
import traceback
from collections.abc import Callable

OK, INTERNAL, USER, ENVIRONMENT, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143

# Full disk, quota, read-only file system, no permission, no memory: nothing a change of the data would cure.
_ENVIRONMENT_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOMEM, errno.EMFILE}


class UserError(Exception):
    """Wrong data, settings or command line: the message names the file (and line) and what was expected."""


class EnvironmentFault(Exception):
    """Disk, memory or device cannot do what was asked."""


class Diverged(Exception):
    """Training produced a value that is not finite; the weights are as they were before."""


class Terminated(BaseException):
    """SIGTERM arrived and what had to be saved is saved."""


def _worker_died(error: BaseException) -> bool:
    """Whether torch tells of the death of a process that draws pictures; its signal handler raises that wherever the program happens to be."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def exit_code(error: BaseException) -> int:
    """Exit code of a script that ends with `error`."""
    if isinstance(error, UserError):
        return USER
    if isinstance(error, (EnvironmentFault, MemoryError)) or _worker_died(error) or type(error).__name__ == "OutOfMemoryError":
        return ENVIRONMENT
    if isinstance(error, OSError) and error.errno in _ENVIRONMENT_ERRNO:
        return ENVIRONMENT
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return TERMINATED if isinstance(error, Terminated) else INTERNAL


def run(main: Callable[[], int | None]) -> None:
    """Call `main` as a script does: print one line for an error, a traceback only with --debug, and exit.

    `main` returns the exit code (None means 0).
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path the terminal's encoding lacks is no reason to stop
    try:
        code = main() or OK
    except (Exception, KeyboardInterrupt, Terminated) as error:
        code = exit_code(error)
        if "--debug" in sys.argv:
            traceback.print_exc()
        if _worker_died(error):
            cause = str(error).strip().splitlines()[0]
            error = EnvironmentFault(f"{cause}; memory (or /dev/shm) may be too small for the processes that draw pictures: fewer --workers, or --workers 0")
        if code == ENVIRONMENT and isinstance(error, OSError) and error.filename is None:  # a write that failed knows no name
            error = EnvironmentFault(f"{error.strerror}: a result could not be written; free the disk, or choose another --project")
        prefix = {INTERRUPTED: "interrupted", TERMINATED: "terminated"}.get(code, "error")
        if code == INTERNAL and not isinstance(error, Diverged):
            print(f"{prefix}: {type(error).__name__}: {error} (a fault of ours; --debug shows where)", file=sys.stderr)
        else:
            print(f"{prefix}: {error}" if str(error) else prefix, file=sys.stderr)
    sys.stdout.flush()
    sys.exit(code)
