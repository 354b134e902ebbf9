"""Which products may be rounded to TF32, stage by stage. The settings exist without a GPU; their effect needs one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from model.mimi.codec import Mimi
from model.mimi.precision import full_float32
from tests.model.mimi.tiny import FRAME, random_codes, random_mimi, random_pcm

Settings = tuple[str, str]


def settings() -> Settings:
    """Of convolutions and of matrix products."""
    convolution = getattr(torch.backends.cudnn, "conv")  # noqa: B009 - unknown to torch's own types
    return convolution.fp32_precision, torch.backends.cuda.matmul.fp32_precision


@pytest.fixture(autouse=True)
def tf32_everywhere() -> Iterator[None]:
    """A process that asked for speed."""
    if not hasattr(torch.backends.cudnn, "conv"):
        pytest.skip("this torch has no settings by operator")
    convolution, product = getattr(torch.backends.cudnn, "conv"), torch.backends.cuda.matmul  # noqa: B009
    before = settings()
    convolution.fp32_precision = product.fp32_precision = "tf32"
    yield
    convolution.fp32_precision, product.fp32_precision = before


def seen_by(mimi: Mimi) -> dict[str, set[Settings]]:
    """The settings under which each stage runs, filled in as it does."""
    seen: dict[str, set[Settings]] = {}
    parts = {
        "encoder": mimi.encoder,
        "encoder transformer": mimi.encoder_transformer["transformer"],
        "downsample": mimi.downsample["conv"],
        "search": mimi.quantizer.rvq_rest.input_proj,
        "lookup": mimi.quantizer.rvq_rest.output_proj,
        "upsample": mimi.upsample["convtr"],
        "decoder transformer": mimi.decoder_transformer["transformer"],
        "decoder": mimi.decoder,
    }

    def note(name: str) -> Callable[[nn.Module, object], None]:
        return lambda module, inputs: seen.setdefault(name, set()).add(settings())

    for name, part in parts.items():
        part.register_forward_pre_hook(note(name))
    return seen


def encode_and_decode(mimi: Mimi) -> None:
    state, slot = mimi.streaming(1), torch.tensor([0])
    mimi.encode(random_pcm(0, FRAME))
    mimi.encode_step(state, slot, random_pcm(0, FRAME))
    mimi.decode(random_codes(0, 1))
    mimi.decode_step(state, slot, random_codes(0, 1))


def test_full_float32_wherever_it_was_not_given_up() -> None:
    mimi = random_mimi()
    seen = seen_by(mimi)
    encode_and_decode(mimi)
    assert len(seen) == 8
    assert set.union(*seen.values()) == {("ieee", "ieee")}
    assert settings() == ("tf32", "tf32")


def test_what_decides_codes_stays_full_with_a_fast_decoder() -> None:
    mimi = random_mimi()
    mimi.decoder_tf32 = True
    seen = seen_by(mimi)
    encode_and_decode(mimi)
    for stage in ("encoder", "encoder transformer", "downsample", "search"):
        assert seen[stage] == {("ieee", "ieee")}
    for stage in ("lookup", "upsample", "decoder transformer", "decoder"):
        assert seen[stage] == {("tf32", "tf32")}


def test_settings_come_back_after_an_error() -> None:
    mimi = random_mimi()
    seen = seen_by(mimi)
    with pytest.raises(ValueError, match="1 to 32"):
        mimi.encode(random_pcm(0, FRAME), n_q=33)
    assert seen["encoder"] == {("ieee", "ieee")}
    assert settings() == ("tf32", "tf32")


def test_every_stage_is_float32_and_codes_are_int64() -> None:
    mimi = random_mimi()
    state = mimi.streaming(1)
    stored = [*mimi.parameters(), *mimi.buffers(), state.encoder_rows, state.decoder_rows]
    stored += [part for kv in (state.encoder_kv, state.decoder_kv) for part in (kv.keys, kv.values)]
    assert {tensor.dtype for tensor in stored} == {torch.float32}
    outputs: dict[str, Tensor] = {}
    for name, part in mimi.named_modules():
        part.register_forward_hook(lambda module, inputs, output, name=name: outputs.setdefault(name, output))
    codes = mimi.encode(random_pcm(0, FRAME))
    assert codes.dtype == torch.int64
    mimi.decode(codes.int())
    assert len(outputs) > 50
    assert {output.dtype for output in outputs.values()} == {torch.float32}


def test_whoever_is_done_first_leaves_the_others_precision_alone() -> None:
    """As a thread that reads a voice beside the calls."""
    one, other = full_float32(), full_float32()
    before = settings()
    with one:
        other.__enter__()
    assert settings() == ("ieee", "ieee")
    other.__exit__(None, None, None)
    assert settings() == before
