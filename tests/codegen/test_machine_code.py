"""The inner loop of machine code, and how many programs fit on a multiprocessor, on texts made here and compiled."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from blast_compile.base.errors import TargetError
from blast_compile.codegen.triton import machine_code
from blast_compile.codegen.triton.build import load_kernel
from blast_compile.codegen.triton.config import default_config
from blast_compile.codegen.triton.cross import cross_compile
from blast_compile.codegen.triton.machine_code import InnerLoop
from blast_compile.codegen.triton.occupancy import Occupancy, occupancy
from tests.codegen.test_triton_cross import make_spec

SASS = """
        /*0000*/                   LDG.E R8, desc[UR14][R2.64] ;                 /* 0x0000000e02087981 */
        /*0010*/                   FFMA R1, R2, R3, R1 ;                         /* 0x0 */
        /*0020*/              @!P4 BRA 0x0000 ;                                  /* 0x0 */
        /*0030*/               @P5 LDG.E R61, desc[UR14][R8.64+0x8] ;            /* 0x0 */
        /*0040*/                   LDGSTS.E.BYPASS.128 [R13], desc[UR14][R8.64], !P4 ; /* 0x0 */
        /*0050*/                   NOP ;                                         /* 0x0 */
        /*0060*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ; /* 0x0 */
        /*0070*/              @!P1 BRA 0x0090 ;                                  /* 0x0 */
        /*0080*/                   IADD3 R1, R1, 0x1, RZ ;                       /* 0x0 */
        /*0090*/               @P4 BRA 0x0030 ;                                  /* 0x0 */
        /*00a0*/                   BRA.U UP0, 0x0000 ;                           /* 0x0 */
        /*00b0*/                   BRA 0x00b0;                                   /* 0x0 */
"""
AMD = """
.LBB0_1:
\ts_cbranch_scc1 .LBB0_3
\tglobal_load_dword v114, v97, s[6:7]
\tbuffer_load_dwordx4 v[34:37], v69, s[20:23], 0 offen
\ts_nop 0
\tv_mfma_f32_32x32x8_bf16 v[18:33], v[112:113], v[116:117], v[18:33]
\ts_branch .LBB0_1
.LBB0_3:
\ts_endpgm
.Lfunc_end0:
\tv_mfma_f32_32x32x8_bf16 v[18:33], v[112:113], v[116:117], v[18:33]
"""


def test_sass_loop_is_the_innermost_that_holds_a_product() -> None:
    loop = machine_code.sass_loop(machine_code.sass(SASS))
    assert loop == InnerLoop(instructions=6, tensor_core=1, load_bytes=(16,), wide_frac=1.0)


def test_sums_count_where_no_loop_has_tensor_cores() -> None:
    loop = machine_code.sass_loop(machine_code.sass(SASS.replace("HGMMA.64x64x16.F32.BF16", "FADD")))
    assert loop == InnerLoop(instructions=3, other_math=1, load_bytes=(4,))


def test_amd_loop() -> None:
    assert machine_code.amd_loop(machine_code.amd(AMD)) == InnerLoop(
        instructions=5, tensor_core=1, load_bytes=(16,), wide_frac=1.0
    )


def test_narrow_loads_are_weighed_by_their_bytes() -> None:
    narrow = "        /*0038*/                   LDG.E.U16 R61, desc[UR14][R8.64+0x8] ;            /* 0x0 */\n" * 8
    code = narrow.join(SASS.partition("        /*0040*/")[::2]).replace("LDGSTS", "/*0040*/ LDGSTS")
    loop = machine_code.sass_loop(machine_code.sass(code))
    assert (loop.load_bytes, loop.wide_frac) == ((2, 16), 0.5)


def test_the_loop_of_an_epilogue_is_no_loop_of_products() -> None:
    turn = "\tv_pk_fma_f32 v[0:1], v[2:3], v[4:5]\n" * 4
    products = f".LBB0_1:\n\tbuffer_load_dwordx4 v[0:3], v4, s[0:3], 0 offen\n{turn}\ts_cbranch_scc1 .LBB0_1\n"
    epilogue = ".LBB0_2:\n\tv_fma_f32 v0, v1, v2\n" + "\tv_exp_f32 v0, v1\n" * 20 + "\ts_cbranch_execz .LBB0_2\n"
    loop = machine_code.amd_loop(machine_code.amd(products + epilogue))
    assert loop == InnerLoop(instructions=6, other_math=4, load_bytes=(16,), wide_frac=1.0)


def line(address: int, text: str) -> str:
    return f"        /*{address:04x}*/                   {text} ;            /* 0x0 */\n"


def test_where_a_copy_engine_is_waited_for_is_no_loop() -> None:
    """Behind the end of the code it waits, and jumps back into the middle of the loop; an index is no tile."""
    loop = (
        line(0x10, "UTMALDG.2D [UR4], [UR8]")
        + line(0x20, "LDG.E R2, desc[UR14][R8.64]")
        + line(0x30, "@!P0 BRA 0x80")
        + line(0x40, "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR20].tnspB, R24")
        + line(0x50, "@P1 BRA 0x10")
    )
    code = line(0x0, "MOV R1, R2") + loop + line(0x60, "STG.E R2, R3") + line(0x70, "EXIT")
    waits = line(0x80, "@!P0 BRA 0x80") + line(0x90, "BRA 0x40")
    found = machine_code.sass_loop(machine_code.sass(code + waits))
    assert found == InnerLoop(instructions=5, tensor_core=1, descriptor_loads=1)


def test_straight_code_has_no_loop() -> None:
    assert machine_code.sass_loop(machine_code.sass(SASS.splitlines()[1])) == InnerLoop()


@pytest.mark.parametrize(
    ("settings", "programs", "limit"),
    [
        ({"num_warps": 4, "registers": 32, "shared_bytes": 0}, 16, "warps"),
        ({"num_warps": 1, "registers": 32, "shared_bytes": 0}, 32, "programs"),
        ({"num_warps": 8, "registers": 126, "shared_bytes": 0}, 2, "registers"),
        ({"num_warps": 4, "registers": 96, "shared_bytes": 98304}, 2, "shared memory"),
        ({"num_warps": 4, "registers": 96, "shared_bytes": 228 * 1024}, 0, "shared memory"),
        ({"num_warps": 32, "registers": 255, "shared_bytes": 0}, 0, "registers"),
    ],
)
def test_occupancy_of_hopper(settings: dict[str, int], programs: int, limit: str) -> None:
    """By hand: 64 warps, 32 programs, 65536 registers and 228 KiB, of which a program has 227 at most."""
    found = occupancy("cuda:sm_90", **settings)
    assert found == Occupancy(programs, programs * settings["num_warps"] / 64, limit)


def test_tensor_memory_limits_blackwell() -> None:
    found = occupancy("cuda:sm_100", num_warps=4, registers=32, shared_bytes=0, tensor_columns=256)
    assert (found.programs, found.limit) == (2, "tensor memory")


def test_unknown_target() -> None:
    with pytest.raises(TargetError, match="expected a target among cuda:sm_80"):
        occupancy("cuda:sm_70", num_warps=4, registers=32, shared_bytes=0)


@pytest.mark.parametrize("target", ["hip:gfx90a", "hip:gfx942"])
def test_occupancy_of_amd_is_what_llvm_says(target: str, tmp_path: Path) -> None:
    """LLVM leaves out shared memory that Triton asks for at the launch."""
    spec = make_spec("linear", "bfloat16", (64, 64), "packed", target)
    compiled = cross_compile(load_kernel(spec, default_config(spec, 512), tmp_path))
    waves_a_simd = re.search(r"^; Occupancy: (\d+)", compiled.text, re.MULTILINE)
    assert waves_a_simd is not None
    alone = occupancy(target, num_warps=1, registers=compiled.registers, shared_bytes=0)
    assert alone.programs == 4 * int(waves_a_simd[1])
