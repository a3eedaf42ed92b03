"""``python -m udas_fast``: the command line."""

from udas_fast.cli import main

if __name__ == "__main__":
    main()
