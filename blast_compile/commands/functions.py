"""`module:function` on the command line: found, and called so that its own errors stay its own."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from blast_compile.base.errors import OptionsError

_BETWEEN = (str(Path(__file__).parent), "<frozen importlib", importlib.__file__)  # us and the user's code


def find(module: str, function: str) -> Callable[[], Any]:
    """The function, found from the current folder too; `OptionsError` where there is none that takes no arguments.

    Raises as `users_code` does where the module itself fails.
    """
    found: Any = getattr(_import(module), function, None)
    if found is None:
        raise OptionsError(f"expected a function in {module}, got none called {function!r}; correct its name")
    if not callable(found):
        raise OptionsError(f"expected a function, got {module}:{function}, a {type(found).__name__}; name a function")
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise OptionsError(
            f"expected a function that can be called without arguments, got {module}:{function}: {error}; give its "
            "arguments defaults"
        ) from error
    except ValueError:  # of a builtin, which tells no signature
        pass
    build: Callable[[], Any] = found
    return build


@contextmanager
def users_code(name: str) -> Iterator[None]:
    """Raises any exception of the code inside as an `OptionsError` that shows that code's own traceback."""
    sys.path.insert(0, "")  # as `python -m` has it
    try:
        yield
    except Exception as error:
        shown = traceback.TracebackException.from_exception(error)
        frames = [frame for frame in shown.stack if not frame.filename.startswith(_BETWEEN)]
        shown.stack = traceback.StackSummary.from_list(frames)
        raise OptionsError(
            f"expected {name} to run, got an exception of its own:\n{''.join(shown.format())}"
        ) from error
    finally:
        sys.path.remove("")


def _import(module: str) -> ModuleType:
    with users_code(module):
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # it imports another one that is missing
            missing = error
    raise OptionsError(
        f"expected a module, got {module!r}: {missing}; correct its name, or go to the folder that holds it"
    ) from missing
