"""The spectral bench trains and measures on the device that it names."""

import pytest
import torch

from lab.bench import spectral


def test_weights_are_trained_and_ticks_timed_on_the_benchs_device(monkeypatch):
    device, seen = torch.device("meta"), []
    monkeypatch.setattr(spectral, "bench_device", lambda: device)
    monkeypatch.setattr(spectral, "train", lambda depth, blocks, ticks, device: seen.append(device))

    def rows(case, repeats, device):
        seen.append(device)
        raise InterruptedError

    monkeypatch.setattr(spectral, "_rows", rows)
    with pytest.raises(InterruptedError):
        spectral.run(quick=True)
    assert seen == [device, device]


@pytest.mark.slow
def test_every_row_names_its_device_and_the_table_shows_them():
    case = spectral.train(1, 1, 2, torch.device("cpu"))
    rows = spectral._rows(case, 1, torch.device("cpu"))
    assert all(row["seconds"] > 0 and row["device"] for row in rows)
    assert rows[0]["value_error"] < 1e-4  # against full SVDs
    assert spectral.table(rows, "a device").row_count == len(spectral.CONTENDERS) == len(rows)
