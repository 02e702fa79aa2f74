"""What must be the same on every rank: rank 0 decides, layers are shared out, and what differs is named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lab.adapter.initialise import from_owner
from lab.init import Factors
from lab.training.distributed import check_equal, from_rank_0

ROOT = Path(__file__).resolve().parent.parent.parent
RANK = """
import json, sys
import torch
import torch.distributed as dist
from lab.adapter.initialise import from_owner
from lab.init import Factors
from lab.training.distributed import Disagreement, check_equal, from_rank_0

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
asked, said = [], {}
said["plan"] = from_rank_0(lambda: asked.append("plan") or {"layer": 8 + rank})
said["layers"] = []
for i in range(3):
    def ask():
        asked.append(i)
        base = torch.full((3, 4), float(rank)) if i == 2 else None
        offset = "separate" if i else "none"
        A, B = torch.full((2, 4), i + 0.5), torch.full((3, 2), 10.0 + rank)
        return Factors(A=A, B=B, offset=offset, base=base, info={"energy": 0.25})
    got = from_owner(ask, i, (3, 4), 2, torch.device("cpu"))
    said["layers"].append([float(got.A.mean()), float(got.B.mean()), got.offset, got.base is not None, got.info])
check_equal({"the plan": said["plan"]})
try:
    check_equal({"the plan": said["plan"], "the base's sha256": "abc" if rank == 0 else "abd"})
except Disagreement as error:
    said["error"] = str(error)
said["asked"] = asked
print(json.dumps(said))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two gloo processes say."""
    meet = tmp_path_factory.mktemp("meet") / "ranks"
    started = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(meet)], cwd=ROOT, stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    said = [process.communicate(timeout=100)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    return [json.loads(text) for text in said]


@pytest.mark.slow
def test_rank_0_decides_and_the_other_does_not_even_ask(ranks):
    assert [said["plan"] for said in ranks] == [{"layer": 8}] * 2
    assert [said["asked"] for said in ranks] == [["plan", 0, 2], [1]]


@pytest.mark.slow
def test_each_layer_is_asked_for_by_one_rank_and_held_by_both(ranks):
    assert ranks[0]["layers"] == ranks[1]["layers"]
    info = {"energy": 0.25}
    assert ranks[0]["layers"] == [
        [0.5, 10.0, "none", False, info],
        [1.5, 11.0, "separate", False, info],
        [2.5, 10.0, "separate", True, info],
    ]


@pytest.mark.slow
def test_what_differs_between_ranks_is_named_with_both_values(ranks):
    for said in ranks:
        assert said["error"].startswith("""the base's sha256 is "abc" on rank 0 and "abd" on rank 1; every process""")


def test_a_process_that_is_alone_decides_for_itself():
    factors = Factors(A=torch.ones(1, 2), B=torch.ones(2, 1))
    assert from_owner(lambda: factors, 1, (2, 2), 1, torch.device("cpu")) is factors
    assert from_rank_0(lambda: 3) == 3
    check_equal({"anything": 1})
