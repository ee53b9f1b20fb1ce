"""``python -m quantize``: the command line."""

from quantize.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
