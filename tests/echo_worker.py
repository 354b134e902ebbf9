"""A worker process with the echo engine, for tests: `python -m tests.echo_worker [--capacity N]`."""

from __future__ import annotations

import argparse
import asyncio
import os

from model.echo import EchoEngine
from model.serving import serve


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--capacity", type=int, default=4)
    parser.add_argument("--exit-with-parent", action="store_true")
    options = parser.parse_args()
    asyncio.run(
        serve(
            EchoEngine(),
            options.listen,
            token=os.environ.get("CALLPLEX_WORKER_TOKEN", ""),
            capacity=options.capacity,
            exit_with_parent=options.exit_with_parent,
        )
    )


if __name__ == "__main__":
    main()
