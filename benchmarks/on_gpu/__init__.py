"""What the kernels do on a GPU: verified, timed beside others, and set against what the device can do."""
