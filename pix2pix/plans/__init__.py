"""Which algorithm each operation uses, and on which hardware."""
