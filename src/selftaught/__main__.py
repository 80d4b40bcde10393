"""`python -m selftaught` is the command `selftaught`."""

import sys

from selftaught.cli import main

sys.exit(main())
