"""What jobs need from the hub is downloaded once, before them; they run without it."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from jobs import SMALL

from lab import record
from lab.errors import UsageError
from lab.launch import fetch

COMMIT = "1" * 40
ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = """
import json, os

def environment(net, tokenizer):
    with open(os.environ["SEEN"], "a") as file:
        names = ("HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES")
        print(json.dumps({name: os.environ.get(name) for name in names}), file=file)
    return 1.0
"""


@pytest.fixture(scope="module")
def some_model(tmp_path_factory):
    """A folder with a whole model, to be served."""
    from lab import config
    from lab.config import instantiate

    folder = tmp_path_factory.mktemp("some_model")
    model = instantiate.make(config.compose("model=micro").model)
    import torch

    model.load(torch.float32, 0).save_pretrained(folder)
    model.tokenizer().save_pretrained(folder)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.json").write_text("{}")  # a file of another framework, which nobody needs
    return folder


@pytest.fixture
def hub(some_model):
    """A hub that serves one model and counts what it is asked for."""
    files = {str(p.relative_to(some_model)): p.read_bytes() for p in some_model.rglob("*") if p.is_file()}
    counts: Counter[str] = Counter()

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            path = self.path.split("?")[0]
            if path.startswith("/api/models/some/model/tree/"):
                content = json.dumps(
                    [
                        {"type": "file", "path": name, "size": len(text), "oid": hashlib.sha1(text).hexdigest()}
                        for name, text in files.items()
                    ]
                ).encode()
            elif path.startswith("/api/models/some/model"):
                listed = [{"rfilename": name} for name in files]
                content = json.dumps({"id": "some/model", "sha": COMMIT, "siblings": listed}).encode()
            else:
                name = path.split("/resolve/", 1)[1].split("/", 1)[1] if "/resolve/" in path else ""
                if name not in files:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound" if "some/model" in path else "RepoNotFound")
                    self.send_header("X-Repo-Commit", COMMIT)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                content = files[name]
                if body:
                    counts[name] += 1
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server, counts
    server.shutdown()


def sweep(tmp_path, endpoint, *arguments, **env):
    """A multirun of small jobs from a folder that holds mine.py, with a hub and a hub cache of its own."""
    (tmp_path / "mine.py").write_text(ENVIRONMENT)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    small = [item for item in SMALL if not item.startswith(("model", "hardware="))]
    quiet = ("evaluate.accuracy=false", "evaluate.num_samples=0", "schedule.max_steps=1", "hydra.sweep.dir=out")
    return subprocess.run(
        [sys.executable, "-m", "lab.train", "-m", *small, *quiet, *arguments],
        cwd=tmp_path,
        env=kept
        | {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf")}
        | {"SEEN": str(tmp_path / "seen"), "OMP_NUM_THREADS": "1"}
        | env,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


HUB_MODEL = ("model=pretrained", "model.name_or_path=some/model")
SEE = "+metrics.environment={_target_: mine.environment}"


@pytest.mark.slow
def test_jobs_beside_each_other_share_one_download_and_have_a_gpu_each(hub, tmp_path):
    server, counts = hub
    here = ("hydra/launcher=beside", "seed=0,1", SEE)
    done = sweep(tmp_path, f"http://127.0.0.1:{server.server_port}", *HUB_MODEL, *here, CUDA_VISIBLE_DEVICES="2,5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [record.read(tmp_path / "out" / job).status for job in "01"] == ["completed"] * 2
    assert counts["model.safetensors"] == 1
    assert set(counts.values()) == {1}
    assert "onnx/model.json" not in counts
    seen = [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()]
    assert [job["HF_HUB_OFFLINE"] for job in seen] == ["1", "1"]
    assert sorted(job["CUDA_VISIBLE_DEVICES"] for job in seen) == ["2", "5"]


@pytest.mark.slow
def test_a_model_that_cannot_be_had_stops_the_sweep_before_any_job(hub, tmp_path):
    server, _ = hub
    names = ("model=pretrained", "model.name_or_path=some/model,some/absent")
    done = sweep(tmp_path, f"http://127.0.0.1:{server.server_port}", *names, "hydra/launcher=local")
    assert done.returncode != 0
    assert "no job was started: model some/absent is not on the hub" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").glob("*/result.json"))


def test_each_thing_is_fetched_once_however_many_jobs_name_it(monkeypatch):
    asked = []
    monkeypatch.setattr("lab.model.hub.fetch", lambda name, revision, needs_weights=True, key=None: asked.append(name))
    monkeypatch.setattr("lab.model.hub.check", lambda *args, **kwargs: None)
    monkeypatch.setattr("lab.data.hub.is_cached", lambda path: True)
    monkeypatch.setattr("lab.data.hub.load_split", lambda path, *rest: asked.append(f"{path} {rest[-1]}"))
    from lab import config

    hub_data = ("data=hub", "data.path=some/data", "data.test_split=test")
    jobs = [
        config.plain_of(config.compose("model=qwen2_5_7b", *hub_data, f"seed={seed}", "init=svd", *teacher))
        for seed in (0, 1)
        for teacher in ((), ("init.source=teacher", "init.teacher=some/teacher"))
    ]
    fetch.fetch(jobs)
    assert sorted(asked) == ["Qwen/Qwen2.5-7B-Instruct", "some/data test", "some/data train", "some/teacher"]


def test_the_environment_of_a_launcher_is_offline_only_for_the_jobs(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with fetch.offline():
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in os.environ


def test_what_is_fetched_and_missing_is_named():
    from lab import config

    with pytest.raises(UsageError, match=r"Qwen/Qwen2.5-7B-Instruct is not in the local cache"):
        fetch.fetch([config.plain_of(config.compose("model=qwen2_5_7b"))])
