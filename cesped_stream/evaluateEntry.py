"""`python -m cesped_stream.evaluateEntry`: `evaluate_entry` under the name that the paper's Listing 3 has."""

import sys

from cesped_stream.evaluate_entry import build_parser, main

__all__ = ["build_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
