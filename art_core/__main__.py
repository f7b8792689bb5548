"""`python -m art_core ...` is `art ...`."""

import sys

from art_core.cli.main import main

sys.exit(main())
