"""Which blocks are kept, and how an index says so."""
