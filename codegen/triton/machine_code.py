"""What the machine code of a kernel says about its inner loop: instructions, tensor cores, width of loads.

Reads SASS, as `cuobjdump` prints it, and AMD assembly, as LLVM writes it; seen for sm_80 to sm_120, gfx90a and gfx942.
The inner loop is that of the products: of the loops that hold a product and no other such loop, the one with most.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

_SASS_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
_SASS_TENSOR_CORE = re.compile(r"(H|Q|I|D)G?MMA|UTC\w*MMA")
_SASS_LOAD = re.compile(r"(LDG|LDGSTS)\b")
_SASS_DESCRIPTOR_LOAD = re.compile(r"UTMALDG|UTMACCTL\.PF|UBLKCP")
_AMD_LOAD = re.compile(r"(?:global|buffer|flat)_load_(?:lds_)?(dwordx(\d)|dword|[us]?short|[us]?byte)")
_WIDE_BYTES = 16


@dataclass(frozen=True)
class Instruction:
    """One instruction. target: index of the instruction it may jump to, None for any that does not jump."""

    name: str
    operands: str
    target: int | None


@dataclass(frozen=True)
class InnerLoop:
    """The loop of the products; all zero where there is none.

    instructions: of one turn, if no part is jumped over. tensor_core: those that are products of matrices. other_math:
    multiply-adds of float32, where products are sums. load_bytes: widths of the loads from global memory by a thread,
    ascending, without those of single numbers such as an index. wide_frac: of the bytes so loaded, the share that comes
    16 and more at a time; 0 without loads. descriptor_loads: of whole tiles, by a copy engine.
    """

    instructions: int = 0
    tensor_core: int = 0
    other_math: int = 0
    load_bytes: tuple[int, ...] = ()
    wide_frac: float = 0.0
    descriptor_loads: int = 0


def sass(listing: str) -> list[Instruction]:
    """The instructions of one function that `cuobjdump --dump-sass` printed, less those that do nothing."""
    lines = [(int(address, 16), name, rest) for address, name, rest in _SASS_LINE.findall(listing)]
    lines = [line for line in lines if line[1] != "NOP"]
    places = {address: place for place, (address, _, _) in enumerate(lines)}
    found = []
    for _, name, rest in lines:
        jump = re.search(r"0x([0-9a-f]+)\s*$", rest) if name.startswith("BRA") else None
        found.append(Instruction(name, rest.strip(), places.get(int(jump[1], 16)) if jump else None))
    return found


def amd(text: str) -> list[Instruction]:
    """The instructions of an AMD assembly text."""
    labels: dict[str, int] = {}
    lines: list[tuple[str, str]] = []
    for line in text.splitlines():
        if label := re.match(r"(\.LBB\w+):", line):
            labels[label[1]] = len(lines)
        elif instruction := re.match(r"\t([a-z]\w+)\s*([^;]*)", line):
            if not instruction[1].startswith("s_nop"):
                lines.append((instruction[1], instruction[2].strip()))
        elif line.startswith(".Lfunc_end"):
            break
    return [
        Instruction(name, rest, labels.get(rest) if name.startswith(("s_branch", "s_cbranch")) else None)
        for name, rest in lines
    ]


def sass_loop(code: Sequence[Instruction]) -> InnerLoop:
    """The inner loop of SASS."""
    body = _product_loop(code, lambda i: bool(_SASS_TENSOR_CORE.match(i.name)), lambda i: i.name.startswith("FFMA"))
    descriptor_loads = sum(bool(_SASS_DESCRIPTOR_LOAD.match(i.name)) for i in body)
    widths = _widths((_sass_width(i) for i in body if _SASS_LOAD.match(i.name)), has_tiles=descriptor_loads > 0)
    return InnerLoop(
        instructions=len(body),
        tensor_core=sum(bool(_SASS_TENSOR_CORE.match(i.name)) for i in body),
        other_math=sum(i.name.startswith("FFMA") for i in body),
        load_bytes=tuple(sorted(widths)),
        wide_frac=_wide_frac(widths),
        descriptor_loads=descriptor_loads,
    )


def amd_loop(code: Sequence[Instruction]) -> InnerLoop:
    """The inner loop of AMD assembly."""
    body = _product_loop(code, lambda i: i.name.startswith("v_mfma"), _is_amd_math)
    widths = _widths(_amd_width(i) for i in body if _AMD_LOAD.match(i.name))
    return InnerLoop(
        instructions=len(body),
        tensor_core=sum(i.name.startswith("v_mfma") for i in body),
        other_math=sum(map(_is_amd_math, body)),
        load_bytes=tuple(sorted(widths)),
        wide_frac=_wide_frac(widths),
    )


def _product_loop(code: Sequence[Instruction], *kinds: Callable[[Instruction], bool]) -> Sequence[Instruction]:
    """Of the innermost loops with an instruction of the first kind that any has, the one with most of them."""
    loops = {(i.target, place + 1) for place, i in enumerate(code) if i.target is not None and i.target < place}
    for is_product in kinds:
        holding = [(first, end) for first, end in loops if any(map(is_product, code[first:end]))]
        entered = [own for own in holding if not any(_enters(own, other) for other in holding)]
        inner = [own for own in entered if not any(own != other and _holds(own, other) for other in entered)]
        if inner:
            bodies = [code[first:end] for first, end in sorted(inner)]
            return max(bodies, key=lambda body: (sum(map(is_product, body)), len(body)))
    return ()


def _holds(outer: tuple[int, int], inner: tuple[int, int]) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def _enters(jump: tuple[int, int], loop: tuple[int, int]) -> bool:
    """Whether a jump leads back into the middle of a loop from behind it: from where it waits, which is no loop."""
    return loop[0] < jump[0] < loop[1] < jump[1]


def _widths(widths: Iterable[int], *, has_tiles: bool = False) -> Counter[int]:
    """Loads by width; an index, one or two numbers a turn, does not count beside tiles, which others may load."""
    counts = Counter(widths)
    if counts[4] <= 2 and (has_tiles or len(counts) > 1):
        del counts[4]
    return +counts


def _wide_frac(widths: Mapping[int, int]) -> float:
    total = sum(width * count for width, count in widths.items())
    return sum(width * count for width, count in widths.items() if width >= _WIDE_BYTES) / total if total else 0.0


def _sass_width(instruction: Instruction) -> int:
    parts = instruction.name.split(".")
    if "U8" in parts or "S8" in parts:
        return 1
    if "U16" in parts or "S16" in parts:
        return 2
    return next((bits // 8 for bits in (256, 128, 64) if str(bits) in parts), 4)


def _amd_width(instruction: Instruction) -> int:
    load = _AMD_LOAD.match(instruction.name)
    assert load is not None
    if load[2]:
        return 4 * int(load[2])
    return 4 if load[1] == "dword" else 2 if load[1].endswith("short") else 1


def _is_amd_math(instruction: Instruction) -> bool:
    return re.match(r"v_(pk_)?(fma|fmac|mac)_f32", instruction.name) is not None
