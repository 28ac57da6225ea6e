"""`python -m usdcore` is the `usdcore` command."""

from usdcore.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
