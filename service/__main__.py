"""`python -m cesped_stream_service`: the same as `cesped-stream`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
