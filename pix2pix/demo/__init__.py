"""The embedded demo: a small generator (labels -> facade), label pictures, and the programs that made both.

``facades.safetensors`` holds the weights, ``labels-*.png`` the pictures; :mod:`.facades` draws more of them and
:mod:`.train` trains such a model.
"""
