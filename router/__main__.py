"""The `leafcutter` command, also as `python -m router`.

Beside vLLM the package may be installed for its plugin alone, without what the router needs: then the command says how
to have that.
"""

import sys


def main() -> int:
    """Runs the command line; the exit status."""
    try:
        from router.cli.main import main as run

        return run()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("router", "engine_patches"):
            raise
        print(
            f"leafcutter: the router needs {error.name}, which is not installed:"
            " pip install 'leafcutter-router[gateway]'",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
