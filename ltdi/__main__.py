"""Entry point of the `ltdi` command and of `python -m ltdi`."""

import os
import sys


def main() -> int:
    """Run the command line.

    OpenMP's threads spin while they wait for each other. On a machine that does anything else, a
    spinning thread takes the core that the awaited one needs: small batched products then ran
    seven to ten times slower with two threads than with one (docs/lab-notes/speed.md). The policy
    must be set before torch is loaded, and gives way to the user's own.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from ltdi.cli import main as run

        return run()
    except KeyboardInterrupt:  # while torch was being loaded; later the command says more
        print("\ninterrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
