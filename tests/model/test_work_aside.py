"""What is read for a call before it speaks, or beside it, is read in the stream behind that of the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from model.conversation import Models
from model.folder import ModelFolder
from tests.model.rig import Rig, is_ready, request

pytestmark = pytest.mark.usefixtures("one_thread")

FRAMES = 20


@contextmanager
def aside_only(rig: Rig) -> Iterator[list[str]]:
    """The long passes that were begun, none of them but within `aside`, in whose stream it then is on a GPU."""
    stepper, within, begun = rig.stepper, [False], list[str]()
    mimi, lm, aside = stepper.models.mimi, stepper.models.lm, stepper.aside

    @contextmanager
    def watched_aside() -> Iterator[bool]:
        with aside() as free:
            within[0] = True
            yield free
            within[0] = False

    def watched(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def do(*given: Any) -> Any:
            assert within[0], f"{name} in the stream of the steps"
            begun.append(name)
            return work(*given)

        return do

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stepper, "aside", watched_aside)
        patch.setattr(lm, "read_together", watched("columns", lm.read_together))
        patch.setattr(mimi, "encode_step", watched("sound", mimi.encode_step))
        patch.setattr(mimi, "remember", watched("codes", mimi.remember))
        yield begun


def test_what_a_call_is_opened_taken_over_and_given_its_prompt_back_with_is_read_aside(
    models: Models, tiny: ModelFolder
) -> None:
    first, second = Rig(models, tiny, slots=1), Rig(models, tiny, slots=1)
    with aside_only(first) as opening:
        assert is_ready(first.open(1, request()))
        first.speak(1, 0, 1)
    assert set(opening) == {"columns"}
    first.speak(1, 1, FRAMES)

    resume, history = first.history(1, 0)
    with aside_only(second) as resuming:
        assert is_ready(second.open(1, request(resume=resume), history))
        second.settle()
    assert set(resuming) == {"columns", "sound", "codes"}

    with aside_only(first) as renewing, pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.history._FEW", 2)
        first.calls.renew(1)
        first.settle()
        first.speak(1, FRAMES, FRAMES + 2)
    assert not first.calls.remembering(1)
    assert set(renewing) == {"columns"}
