"""Models of PyTorch: archives written by torch.save, and state dicts."""
