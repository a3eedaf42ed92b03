"""Run the command line by ``python -m udas_fast``, as torchrun does."""

from udas_fast.cli import main

if __name__ == "__main__":
    main()
