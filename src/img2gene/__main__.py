"""Run the command ``img2gene`` as ``python -m img2gene``."""

import sys

from img2gene._cli import main

if __name__ == "__main__":
    sys.exit(main())
