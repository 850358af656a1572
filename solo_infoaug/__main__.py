"""`python -m solo_infoaug …`: the command line, also under `torchrun -m`."""

from solo_infoaug.cli import main

if __name__ == "__main__":
    main()
