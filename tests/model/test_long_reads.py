"""How much is read at once, and that others speak in between: a prompt, and a past, of more than 256 frames."""

from __future__ import annotations

import pytest
import torch

from model.conversation import Models
from model.engine_options import Context
from model.folder import ModelFolder
from model.pace import FRAME
from model.wire import History, Resume, SessionRequest
from tests.model.rig import Rig, caller_pcm, is_ready, read_passes, request

pytestmark = pytest.mark.usefixtures("one_thread")

MOST = 256
NEWEST = 250
Passes = list[tuple[list[int], int]]


@pytest.fixture
def context() -> Context:
    return "reprime"


@pytest.fixture
def rig(models: Models, tiny: ModelFolder, context: Context) -> Rig:
    """One who speaks, and room for another. Passes are as long as what is read, on a GPU too."""
    rig = Rig(models, tiny, slots=2, context=context)
    rig.prompts.reads._padded = False
    rig.open(1, request("speaks"))
    return rig


def open_while_another_speaks(rig: Rig, passes: Passes, asked: SessionRequest, history: History) -> str:
    """Of call 1 a frame is due at every turn while anything is left to do for call 2: what was done when."""
    done: list[str] = []
    rig.calls.open(2, asked, history)
    rig.assets._thread.submit(int).result(60)
    while rig.calls._jobs:
        index, read, told = len(rig.frames(1)), len(passes), len(rig.told[2])
        rig.hear(1, index, caller_pcm(0, index))
        rig.now += FRAME
        while len(rig.frames(1)) == index:
            rig.calls.work()
        done += ["pass"] * (len(passes) - read) + ["ready"] * (len(rig.told[2]) - told) + ["frame"]
    return " ".join(done)


@pytest.mark.parametrize("context", ["sliding"], ids=["where no prompt is too long"])
def test_a_long_prompt_is_read_256_frames_at_a_time_and_who_speaks_is_answered_in_between(rig: Rig) -> None:
    text = "you are a kind and wise teacher and you like to listen to you " * 7
    with read_passes(rig) as passes:
        done = open_while_another_speaks(rig, passes, request("new", prompt=text), History())
    assert is_ready(rig.told[2][0])
    prompt = rig.calls._calls[2].prompt
    assert prompt is not None
    lengths = [length for _, length in passes]
    assert prompt.columns.shape[1] > MOST, "or this shows nothing"
    assert sum(lengths) == prompt.positions
    assert max(lengths) == MOST
    assert done.count("pass") == len(lengths) >= 3
    assert "pass pass" not in done


def test_of_a_long_past_the_newest_250_frames_come_first_and_all_of_it_once_the_call_speaks(rig: Rig) -> None:
    frames = 300
    ids = torch.randint(4, 40, (frames, 17), generator=torch.Generator().manual_seed(5))
    history = History(ids.numpy().astype("<u2").tobytes(), b"")
    with read_passes(rig) as passes:
        done = open_while_another_speaks(rig, passes, request("long", resume=Resume(0, frames, 0, 0)), history)
    assert [length for _, length in passes] == [NEWEST, MOST, frames - MOST], "of its prompt nothing"
    assert done.replace("frame", "").split() == ["pass", "ready", "pass", "pass"]
    assert "pass pass" not in done
    call = rig.calls._calls[2]
    assert call.prompt is not None
    held = rig.stepper.state.kv.offsets[rig.stepper.lm_slot[call.slot]]
    assert int(held) == call.prompt.frames + frames - 1
    rig.speak(2, frames, frames + 2)
    assert [frame.index for frame in rig.frames(2)] == [frames, frames + 1]
