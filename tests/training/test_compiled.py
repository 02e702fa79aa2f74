"""torch.compile where it cannot work: the reason is said."""

import pytest
from torch import nn

from lab.errors import UsageError
from lab.training import compiled


def test_without_a_compiler_or_without_blocks_the_reason_is_said(monkeypatch):
    class Flat(nn.Module):
        pass

    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match=r"needs a C\+\+ compiler on a CPU, and no-such-compiler is not found"):
        compiled.compile_blocks(Flat(), "cpu")
    with pytest.raises(UsageError, match="Flat has none"):
        compiled.compile_blocks(Flat(), "gpu")
