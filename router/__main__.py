"""`python -m router` is the `leafcutter` command."""

import sys

from router.cli.main import main

sys.exit(main())
