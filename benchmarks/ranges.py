"""What each benchmark covers where its options do not say: in full, and under `--quick`."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Ranges:
    """Options as text, and how long each problem is timed (`Settings`)."""

    tokens: str = "1,16,128,512"
    sparsity: str = "0.5,0.7,0.9,0.95"
    dtype: str = "bf16,fp32"
    shape: str = "8192x2048"
    baselines: str = "eager,inductor,max-autotune"
    rounds: int = 15
    seconds: float = 10.0


_FULL = Ranges()
_QUICK = Ranges(tokens="1,128", sparsity="0.9", dtype="bf16", baselines="eager,inductor", rounds=5, seconds=1.0)
_EVEN = Ranges("1,4,16,64,256,1024,4096", "0,0.1,0.2,0.3,0.5,0.7,0.9,1", "bf16", "4096x1024", "inductor", 7, 0.5)

RANGES: dict[str, tuple[Ranges, Ranges]] = {
    "cpu-linear": (_FULL, _QUICK),
    "cpu-mlp": (_FULL, _QUICK),
    "cpu-model": (replace(_FULL, dtype="bf16"), _QUICK),
    "train": (
        replace(_FULL, tokens="512", sparsity="0.7,0.9,0.95", baselines="eager", rounds=7),
        replace(_QUICK, tokens="128", baselines="eager", rounds=3),
    ),
    "train-run": (
        Ranges("1024", "0.9", "bf16,fp32", "2560x640", "inductor"),
        Ranges("256", "0.9", "bf16", "2560x640", "inductor"),
    ),
    "train-step": (
        Ranges("1024", "0.9", "fp32,bf16", "2560x640", "inductor", rounds=7, seconds=30.0),
        Ranges("256", "0.9", "bf16", "2560x640", "inductor", rounds=2, seconds=0.0),
    ),
    "break-even": (_EVEN, replace(_EVEN, tokens="1,64", sparsity="0,0.5,0.9", rounds=5, seconds=0.2)),
    "threads": (
        Ranges("128,512", "0.9", "bf16", baselines="inductor", seconds=4.0),
        replace(_QUICK, tokens="128", baselines="inductor"),
    ),
}
"""In full, and quick."""
