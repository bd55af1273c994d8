"""Generates the Python stubs of the wire contract: `make proto`, or python proto/generate.py [OUT].

The generators' versions are pinned in pyproject.toml: generated code refuses runtimes that are older than its
generator, so the oldest one that serves decides how far back users may stay.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROTO = Path(__file__).parent
REPOSITORY = PROTO.parent


def generate(out: Path) -> None:
    """Write the stubs of every proto below `out`, at the path that the proto has here."""
    plugins = [f"--plugin={name}={Path(sys.executable).parent / name}" for name in _PLUGINS]
    targets = [f"--{target}={out}" for target in ("python_out", "grpc_python_out", "mypy_out", "mypy_grpc_out")]
    protos = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *plugins, *targets, *protos]
    subprocess.run(command, cwd=PROTO, check=True, capture_output=True)  # noqa: S603


_PLUGINS = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")

if __name__ == "__main__":
    generate(Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else REPOSITORY)
