"""`leafcutter keys new NAME`: make a key for a client."""

from __future__ import annotations

import argparse
import json
import secrets
from hashlib import sha256

from router.gateway.key_file import parse

KEY_BYTES = 32  # so much chance cannot be guessed, and a plain hash of it not be reversed


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    verbs = command.add_subparsers(required=True, metavar="WHAT")
    words = "print a fresh key, and the line that goes into the file of --client-keys"
    new = verbs.add_parser("new", help=words, description=words, allow_abbrev=False)
    new.add_argument("name", metavar="NAME", help="whose key it is: letters, digits, '.', '_' and '-'")


def run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError for a name that cannot be."""
    key = f"lc-{secrets.token_urlsafe(KEY_BYTES)}"
    line = f'- {{name: {json.dumps(arguments.name)}, key: "sha256:{sha256(key.encode()).hexdigest()}"}}'
    parse(line, f"name {arguments.name}")
    print(f"The key, which is shown only now:\n\n    {key}\n\nThe line for the file of --client-keys:\n\n{line}")
    return 0
