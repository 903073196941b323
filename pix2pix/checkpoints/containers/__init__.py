"""Containers that model files are made of: zip archives, HDF5, pickles, sorted string tables, protocol buffers."""
