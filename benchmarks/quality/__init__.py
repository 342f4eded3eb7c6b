"""Quality: what block sparsity costs a language model in perplexity, by the way its masks are found."""
