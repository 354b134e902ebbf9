"""The worker's metrics, as Prometheus reads them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from model.metrics import Histogram, exposition


def test_a_histogram_adds_up_from_bound_to_bound() -> None:
    histogram = Histogram((0, 1, 5))
    for value in (0, 0, 1, 2, 5, 6, 40):
        histogram.observe(value)
    text = exposition([("frames_total", "counter", 7)], {"late": histogram})
    frames, late = text_string_to_metric_families(text)
    assert (frames.name, frames.type, frames.samples[0].value) == ("callplex_worker_frames", "counter", 7)
    assert (late.name, late.type) == ("callplex_worker_late", "histogram")
    *buckets, total, count = late.samples
    assert [(one.labels["le"], one.value) for one in buckets] == [("0", 2), ("1", 3), ("5", 5), ("+Inf", 7)]
    assert (total.value, count.value) == (54, 7)


def test_nothing_observed_is_a_whole_histogram_of_zeros() -> None:
    (family,) = text_string_to_metric_families(exposition([], {"late": Histogram((0, 1))}))
    assert [sample.value for sample in family.samples] == [0] * 5
