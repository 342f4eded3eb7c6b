"""The ops on a GPU: which Triton kernels serve a call, and their launch; without a GPU, the same in an interpreter."""
