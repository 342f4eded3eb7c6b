"""What the compiler did and why, for people."""

from blast_compile.report.explainer import explain
from blast_compile.report.explanation import Explanation, LayerRow

__all__ = ["Explanation", "LayerRow", "explain"]
