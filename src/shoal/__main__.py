"""`python -m shoal`, and with it `torchrun -m shoal`."""

from shoal.cli.main import main

main()
