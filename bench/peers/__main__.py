"""``python -m bench.peers``; see :mod:`.comparison`."""

if __name__ == "__main__":  # the processes of the contenders import this module, too, and should not hold what it needs
    from .comparison import main

    raise SystemExit(main())
