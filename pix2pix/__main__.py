"""``python -m pix2pix`` is the ``pix2pix`` command."""

import sys

from .cli import main

sys.exit(main())
