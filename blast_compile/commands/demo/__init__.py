"""The demonstration: a Llama-shaped model learns block masks, is compiled, and is compared with dense."""

from blast_compile.commands.demo.run import run

__all__ = ["run"]
