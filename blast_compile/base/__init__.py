"""What knows nothing of sparsity."""
