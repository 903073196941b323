"""Images that flow: films and numbered images (``translate``), frames in a pipe (``pipe``), a folder (``watch``).

What needs a package of the extras ``video`` (PyAV) or ``watch`` (watchfiles) imports it when it is used.
"""
