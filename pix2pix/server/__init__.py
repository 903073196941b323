"""The HTTP server: a front end beside the command line, over the same options, files and engines.

:mod:`.run` starts it and :mod:`.app` lists its routes. A request passes :mod:`.access`, its body and its image the
bounds of :mod:`.limits`, and its pixels the one :mod:`.queue`. Needs the extra ``serve``.
"""
