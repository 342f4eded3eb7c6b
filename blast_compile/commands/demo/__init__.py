"""The demonstration: a Llama-shaped model learns block masks, is compiled, and is compared with dense."""
