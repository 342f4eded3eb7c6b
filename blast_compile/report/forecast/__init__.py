"""What a block-sparse model will need and how fast it can be, before it exists."""
