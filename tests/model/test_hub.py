"""Models that cannot be had: one sentence with the name and the remedy, within 3 s, before anything heavy."""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lab.errors import UsageError
from lab.model import hub

ASK = """
import sys, time
from lab.errors import UsageError
from lab.model.pretrained import Pretrained
model = Pretrained(name_or_path=sys.argv[1], revision=None, quantization=None, attn_implementation=None)
started = time.perf_counter()
try:
    model.check()
except UsageError as error:
    print(error)
else:
    print("can be had")
print(time.perf_counter() - started)
print("torch" in sys.modules or "transformers" in sys.modules)
"""
ERRORS = {"gated": (401, "GatedRepo"), "absent": (404, "RepoNotFound"), "empty": (404, "EntryNotFound")}


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does, or does not answer at all."""

    def do_HEAD(self):
        kind = self.path.split("/")[2]
        if kind == "silent":
            time.sleep(4)
            return
        status, code = ERRORS.get(kind, (200, ""))
        self.send_response(status)
        self.send_header("ETag", '"0"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", "0")
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def ask(name: str, tmp_path, **environment: str) -> tuple[str, float, bool]:
    """The sentence, the seconds and whether anything heavy was imported, in a process of its own."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {"HF_HOME": str(tmp_path)} | environment
    out = subprocess.run([sys.executable, "-c", ASK, name], env=env, capture_output=True, text=True, check=True)
    sentence, seconds, heavy = out.stdout.strip().split("\n")
    return sentence, float(seconds), heavy == "True"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("some/gated", "model some/gated is gated: accept its licence on its hub page"),
        ("some/absent", "model some/absent is not on the hub, or is private; check the spelling"),
        ("some/empty", "model some/empty has no config.json on the hub"),
        ("some/silent", "model some/silent: the hub did not answer in 2 s; download it where there is a network"),
        ("some/model", "can be had"),
    ],
)
def test_hub_answer_becomes_a_sentence_within_3_seconds(name, sentence, endpoint, tmp_path):
    said, seconds, heavy = ask(name, tmp_path, HF_ENDPOINT=endpoint)
    assert said.startswith(sentence)
    assert seconds < 3
    assert not heavy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "is not in the local cache and HF_HUB_OFFLINE is set: unset it, download it"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "is not in the local cache and the hub cannot be reached"),
    ],
)
def test_offline_names_the_model_and_the_remedy(environment, sentence, tmp_path):
    said, seconds, heavy = ask("Qwen/Qwen2.5-7B-Instruct", tmp_path, **environment)
    assert said.startswith(f"model Qwen/Qwen2.5-7B-Instruct {sentence}")
    assert seconds < 3
    assert not heavy


def cached_model(cache, shards: list[str], present: list[str]):
    """A hub cache that holds a two-shard model, of which only some shards have arrived."""
    commit = "0" * 40
    repo = cache / "models--some--model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", *present):
        (snapshot / name).write_text("{}")
    index = {"weight_map": {f"w{i}": shard for i, shard in enumerate(shards)}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(("present", "whole"), [(["a.safetensors", "b.safetensors"], True), (["a.safetensors"], False)])
def test_cache_counts_only_when_every_shard_is_there(present, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached_model(tmp_path, ["a.safetensors", "b.safetensors"], present)
    assert hub.is_cached("some/model", None) is whole


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        ([], "holds no config.json"),
        (["config.json"], "holds no weights"),
        (["adapter_config.json"], "is an adapter, not a model; merge it first"),
    ],
)
def test_folder_that_is_no_model_is_refused(make, sentence, tmp_path):
    for name in make:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UsageError, match=sentence):
        hub.check(str(tmp_path), None)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("./nowhere", "there is no such folder"),
        ("lab:bas", "did you mean base"),
        ("a b/c d", "neither a folder nor a hub name"),
    ],
)
def test_name_that_is_no_place_is_refused(name, sentence):
    with pytest.raises(UsageError, match=sentence):
        hub.check(name, None)
