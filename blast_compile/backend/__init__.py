"""`torch.compile(model, backend="blast")`."""
