"""Derives the kernels of the catalogue from measurements; run by docs/calibrate_gpu.py."""
