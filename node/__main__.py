"""`python -m node` is `noded`: launchers use it, because it needs no script on the PATH."""

from node.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
