"""What makes a decoder fast on CUDA devices: kernels in Triton, each beside its plain reference, and recorded steps."""
