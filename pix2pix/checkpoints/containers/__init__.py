"""Containers that several formats use: zip archives, HDF5, pickles, sorted tables, protocol buffers.

They know no framework. Each reads the part of its format that files of models use, checks every length before it uses
it, and pays for each item from the budget of the file.
"""
