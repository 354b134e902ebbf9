"""How long each persona's calls are kept, those of personas whose file is gone included.

Owns `DATA_DIR/retention.json`: what every persona said last. A persona that is renamed or deleted leaves calls
behind, and they go when it had said they would.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from gateway.records.files import write_whole

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Keep:
    """Days after which parts of a persona's calls go; None: never."""

    text_days: float | None = None
    record_days: float | None = None
    audio_days: float | None = None


class LastPolicies:
    """What personas say, and what those that are gone said last. Blocks for the disk."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "retention.json"

    def update(self, said: Mapping[str, Keep]) -> dict[str, Keep]:
        """Learn what personas say now; returns every policy that holds. A disk that fails is told in the log."""
        known = self._known()
        policies = {**known, **said}
        if policies != known:
            content = {name: asdict(keep) for name, keep in policies.items()}
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(self._path, orjson.dumps(content, option=orjson.OPT_INDENT_2))
            except OSError as error:
                log.error("cannot write %s: %s; once a persona is deleted, its calls are kept", self._path, error)
        return policies

    def _known(self) -> dict[str, Keep]:
        try:
            found = orjson.loads(self._path.read_bytes())
            known = {str(name): Keep(**days) for name, days in found.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            log.error("%s cannot be read: %s; calls of personas that are gone are kept", self._path, error)
            return {}
        return known
