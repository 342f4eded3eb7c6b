"""Builds and loads `cpp/launch.cpp`, the ops' hot path in C++, against the headers of the torch that runs.

With it a call takes some microseconds less; without it (no compiler, another torch than it was written for) the ops run
in Python and give the same results. It comes with a bundle, or is built once a machine and kept in the store.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from blast_compile.base import env
from blast_compile.base.errors import BuildError
from blast_compile.base.log import logger
from blast_compile.codegen.family import PRODUCTS, Operands, Product
from blast_compile.kernels import bundles, shared_objects, threads

_SOURCES = Path(__file__).parent
_TORCH = Path(torch.__file__).parent

_lock = threading.Lock()
_library: ctypes.CDLL | None = None
_has_failed = False


def _unlock() -> None:
    """As in `kernels/cpu.py`: a thread that held the lock is not in a forked child."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_unlock)


def is_loaded() -> bool:
    """Whether the ops run through C++ in this process."""
    return _library is not None


def load() -> bool:
    """Puts the C++ form under the ops, once a process; False where it cannot be built or `BLAST_NATIVE` is 0."""
    return _load(shared_object)


def forget() -> None:
    """Has every plan made anew that the C++ form remembers."""
    if _library is not None:
        _library.blast_forget()


def num_remembered() -> int:
    """How many plans the C++ form holds, forgotten ones among them until others need their place."""
    return 0 if _library is None else int(_library.blast_num_plans())


@contextmanager
def loading() -> Iterator[None]:
    """Builds the C++ form beside the work of the block, if it is not in the store, and loads it at the end."""
    if not _is_wanted():
        yield
        return
    with ThreadPoolExecutor(1) as pool:
        built = pool.submit(shared_object)
        yield
    _load(lambda: file if (file := built.result()).exists() else shared_object())


def is_bundled() -> bool:
    """Whether a bundle of this process holds the C++ form; an earlier failure to build it then counts no more."""
    global _has_failed
    is_there = bundles.launcher(torch.__version__, source_sha256()) is not None
    _has_failed = _has_failed and not is_there
    return is_there


def source_sha256() -> str:
    """Of `launch.cpp` and its headers."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(_SOURCES.glob("*.[ch]pp")))).hexdigest()


def shared_object() -> Path:
    """The file of the C++ form, from a bundle, the store, or compiled now; raises `BuildError` or `OSError`."""
    sha256 = source_sha256()
    bundled = bundles.launcher(torch.__version__, sha256)
    return bundled or shared_objects.compiled((_SOURCES / "launch.cpp").read_text(), _flags(sha256), "the launcher")


def torch_flags() -> tuple[str, ...]:
    """For a shared object against the torch that runs; `-ltorch_cpu -lc10` go behind what else it is linked from."""
    language = ("-O2", "-std=c++20", "-fPIC", "-shared", "-fopenmp", "-w")
    return (*language, f"-I{_TORCH / 'include'}", f"-L{_TORCH / 'lib'}")


def _is_wanted() -> bool:
    return _library is None and not _has_failed and env.native()


def _load(path: Callable[[], Path]) -> bool:
    """As `load`, from the file that `path` gives or fails to give; again where that was removed meanwhile."""
    if _is_wanted():
        with _lock:
            _load_once(path)
    return is_loaded()


def _load_once(path: Callable[[], Path]) -> None:
    global _library, _has_failed
    if _library is not None or _has_failed:
        return
    try:
        _library = shared_objects.using(path, _attached)
    except (BuildError, OSError) as error:
        _has_failed = True
        logger.info("calls go through Python, some microseconds slower: %s", str(error).splitlines()[0])


def _attached(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    names = (ctypes.c_char_p * len(PRODUCTS))(*(op.encode() for op in PRODUCTS))
    numbers = [*itertools.chain(*map(_layout, PRODUCTS.values()))]
    layouts = (ctypes.c_int64 * len(numbers))(*numbers)
    library.blast_attach.restype = ctypes.c_bool
    if not library.blast_attach(names, layouts, len(PRODUCTS), ctypes.c_bool(threads.is_alone())):
        raise BuildError(
            f"expected torch {torch.__version__} to take the launcher, got a refusal; results are the same"
        )
    return library


def _layout(product: Product) -> tuple[int, ...]:
    """As `Layout` in `plans.hpp`."""
    of_call = (product.num_layers, product.num_operands, int(product.takes_residual), len(product.stages))
    return (*of_call, product.num_planned, len(Operands._fields))


def _flags(sha256: str) -> tuple[str, ...]:
    key = (f'-DBLAST_TORCH_VERSION="{torch.__version__}"', f'-DBLAST_SOURCES="{sha256}"')  # read by nobody
    cxx11_abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    return (*torch_flags(), *key, cxx11_abi, f"-I{_SOURCES}", "-ltorch_cpu", "-lc10")
