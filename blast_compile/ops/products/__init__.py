"""Forward products, their gradients, and how each device runs them."""
