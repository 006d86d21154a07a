"""What makes a decoder fast on CUDA devices: kernels in Triton, each beside a plain way to the same, and recorded steps."""
