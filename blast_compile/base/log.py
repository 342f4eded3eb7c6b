"""The logger of the package and the ladder of `BLAST_DEBUG`: 1 decisions, 2 pass differences, 3 source, 4 timings.

The library never prints. Without `BLAST_DEBUG` everything goes through `logging` as usual; with it, and if nobody
set up logging, the lines go to standard error.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Hashable

from blast_compile.base import env

logger = logging.getLogger("blast_compile")

_warned: set[Hashable] = set()
_lock = threading.Lock()


def debug_level() -> int:
    """The level of `BLAST_DEBUG`; above 0, makes the logger's lines visible."""
    level = env.debug_level()
    if level:
        _show_everything()
    return level


def debug(level: int, message: str, *args: object) -> None:
    """Logs `message % args` if `BLAST_DEBUG` is at least `level`."""
    if debug_level() >= level:
        logger.debug(message, *args, stacklevel=2)


def warn_once(key: Hashable, message: str) -> None:
    """Logs a warning the first time this process meets `key`."""
    with _lock:
        if key in _warned:
            return
        _warned.add(key)
    logger.warning(message, stacklevel=2)


def forget_warnings() -> None:
    """Lets every `warn_once` speak again, for tests."""
    with _lock:
        _warned.clear()


def _show_everything() -> None:
    logger.setLevel(logging.DEBUG)
    with _lock:
        if not logger.hasHandlers():
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(name)s %(levelname)s: %(message)s"))
            logger.addHandler(handler)
