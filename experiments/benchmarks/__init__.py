"""Side-by-side timings against PyTorch and others."""
