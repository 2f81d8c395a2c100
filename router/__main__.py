"""`python -m router` is the `leafcutter` command."""

import sys

from router.cli import main

sys.exit(main())
