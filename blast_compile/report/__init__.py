"""What the compiler did and why, for people."""
