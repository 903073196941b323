"""The CPU engine. Its kernels are compiled from pix2pix/_cpu.pyx and the files in cpu/kernels."""
