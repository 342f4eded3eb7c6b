"""What compilers tell about every GPU kernel without a GPU, compared with what was committed: `make gpu-static`."""
