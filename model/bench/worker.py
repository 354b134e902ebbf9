"""`python -m model.bench.worker OPTIONS`: a worker of the model's own packages, for the benchmark of its restart.

Owns nothing but the start: the engine, the transcriber and the server are a worker's. `callplex worker` reads settings
and personas first, with the gateway's packages.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence

from model.engine_options import EngineOptions, EngineRefused
from model.personaplex import PersonaplexEngine
from model.server import ListenRefused
from model.serving import EngineEnded, serve
from model.transcriber import TranscriberRefused, WhisperPool


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until standard input ends, or the engine does. `OPTIONS` is what `order` makes."""
    (text,) = sys.argv[1:] if arguments is None else arguments
    asked = json.loads(text)
    transcriber = WhisperPool() if asked["transcriber"] == "whisper" else None
    engine = PersonaplexEngine(EngineOptions.from_json(asked["engine"]), transcriber)
    try:
        asyncio.run(serve(engine, "127.0.0.1:0", exit_with_parent=True))
    except (EngineEnded, EngineRefused, ListenRefused, TranscriberRefused) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def order(options: EngineOptions, transcriber: str) -> str:
    """The argument of such a process. transcriber: whisper or none."""
    return json.dumps({"engine": options.to_json(), "transcriber": transcriber})


if __name__ == "__main__":
    sys.exit(main())
