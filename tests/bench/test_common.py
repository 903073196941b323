"""What benchmarks count and report, apart from times."""

from __future__ import annotations

from bench import common
from pix2pix.model.unet import unet

TINY = unet(ngf=4, depth=4)


def test_a_layers_traffic_is_its_weights_and_maps():
    half, single = (common.traffic(TINY, 2, 16, 16, precision) for precision in ("float16", "tf32"))
    first = TINY.layers[0]
    assert half[first.name] == 2 * (16 * 3 * first.filters + 2 * (16 * 16 * 3 + 8 * 8 * first.filters))
    assert single == {name: 2 * size for name, size in half.items()}


def test_rates_are_by_the_minimum_and_the_median():
    report = common.rates([0.5, 0.25, 1.0], 8, 10**9, 100.0)
    assert report["min_images_per_s"] == 32 and report["median_images_per_s"] == 16
    assert report["median_ms_per_image"] == 62.5 and report["median_gflops"] == 16
    assert report["min_fraction_of_peak"] == 0.32
