"""`python -m simulations.cli` is `fedkd`."""

import sys

from simulations.cli.main import main

sys.exit(main())
