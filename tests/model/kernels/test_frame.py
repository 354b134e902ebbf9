"""The two ends of a step by kernels: sound in, tokens and sound out, and numbers that are none."""

from __future__ import annotations

import pytest
import torch

from model.kernels import frame

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("samples", [1920, 30])
def test_sound_comes_in_at_its_scale(samples: int) -> None:
    pcm = torch.randint(-32_768, 32_768, (3, samples), generator=torch.Generator().manual_seed(1)).to(torch.int16)
    pcm[0, :2] = torch.tensor([-32_768, 32_767])
    slots, lm_slots, counters = torch.tensor([4, 0, 2]), torch.tensor([5, 6, 7, 8, 9]), torch.arange(5) * 10
    parts = [part.to(DEVICE) for part in (slots, lm_slots, counters, pcm)]
    where, counter, sound = frame.begin(parts[0], parts[1], parts[2], parts[3])
    assert where.tolist() == [9, 5, 7]
    assert counter.tolist() == [40, 0, 20]
    assert torch.equal(sound.cpu(), pcm.float() / 32_768.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_the_host_reads(dtype: torch.dtype) -> None:
    """Rows of odd sizes; sound beyond its bounds, at halves, and of no number at all."""
    count, rows, samples = 4, 5, 1920
    draw = torch.Generator().manual_seed(2)
    results = [torch.randn(shape, generator=draw).to(dtype) for shape in ((count, 40), (count, 5001), (count, 3, 50))]
    results.append(torch.randn(count, 33, 1, generator=draw))
    column, tokens = torch.randint(-2, 50, (2, count, rows), generator=draw)
    said = torch.randn(count, samples, generator=draw)
    said[0, :8] = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 32_767.4, -32_768.6, 1e9]) / 32_768.0
    results[0][1, 39] = float("nan")
    results[1][2, 5000] = float("-inf")
    counters, slots = torch.arange(6), torch.tensor([3, 0, 5, 1])
    expected = (said * 32_768.0).round().nan_to_num(0.0).clamp(-32_768, 32_767).to(torch.int16)

    def ended() -> tuple[list[bool], torch.Tensor]:
        out = torch.zeros((count, 2 * rows + 1), dtype=torch.long, device=DEVICE)
        pcm = torch.zeros((count, samples), dtype=torch.int16, device=DEVICE)
        parts = [part.to(DEVICE) for part in results]
        frame.end(slots.to(DEVICE), there, parts, column.to(DEVICE), tokens.to(DEVICE), said.to(DEVICE), out, pcm)
        assert torch.equal(out[:, : 2 * rows].cpu(), torch.cat((column, tokens), dim=1))
        return (out[:, -1] == 1).tolist(), pcm.cpu()

    there = counters.to(DEVICE)
    results[3][3, 32] = float("nan")
    finite, pcm = ended()
    assert finite == [True, False, False, False]
    results[3][3, 32] = 0.0
    assert torch.equal(pcm, expected)
    assert there.tolist() == [1, 2, 2, 4, 4, 6]
    assert ended()[0] == [True, False, False, True]
    results[2][3, 2, 49] = float("inf")
    said[0, 1919] = float("nan")
    finite, pcm = ended()
    assert finite == [False, False, False, False]
    assert pcm[0, 1919] == 0
