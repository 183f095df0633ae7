"""``python -m limbeck.cli``: the command line without the installed script."""

import sys

from limbeck.cli import main

if __name__ == "__main__":
    sys.exit(main())
