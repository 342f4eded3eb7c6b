"""The operators, `torch.ops.blast.*`: importing this package registers them."""

import blast_compile.ops.register  # noqa: F401
