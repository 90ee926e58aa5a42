"""The command ``torchnotes``: finds the subcommand, and imports its code only then."""

from __future__ import annotations

import importlib
import sys

#: Subcommand -> the module whose ``main(args)`` runs it and returns the exit code, and one line for the help.
COMMANDS = {
    "probe": ("torchnotes.diagnostics._cli", "say how the signal fares in a model: package.module:factory"),
    "gradcheck": ("torchnotes.gradcheck._cli", "check a model's or function's gradients: package.module:factory"),
}


def main(argv: list[str] | None = None) -> int:
    """Run ``torchnotes <subcommand> …`` and return its exit code; 2 for a command line that makes no sense."""
    args = sys.argv[1:] if argv is None else argv
    if args and args[0] in COMMANDS:
        code: int = importlib.import_module(COMMANDS[args[0]][0]).main(args[1:])
        return code
    if args and args[0] in ("--version", "-V"):
        from torchnotes import __version__

        print(f"torchnotes {__version__}")
        return 0
    asked = bool(args) and args[0] in ("--help", "-h")
    lines = ["usage: torchnotes COMMAND ...", "", *(f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items())]
    lines += ["", "torchnotes COMMAND --help says more."]
    if args and not asked:
        lines.insert(0, f"torchnotes: no command {args[0]!r}; choose from {', '.join(COMMANDS)}.")
    print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
