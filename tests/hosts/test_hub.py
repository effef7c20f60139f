"""host.path=ORG/NAME comes through huggingface_hub; here from a stand-in of the Hub's HTTP interface."""

import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mmadapter.hosts.settings import TINY_HOST, HostConf, local_host_folder

COMMIT = "a" * 40
WEIGHTLESS = {"config.json": b'{"model_type": "llama"}', "pytorch_model.bin": b"a pickle"}


class StandIn(http.server.BaseHTTPRequestHandler):
    """The four requests that huggingface_hub makes of a model: its commit, its tree, a file's size, a file."""

    models: dict[str, dict[str, bytes]] = {}
    asked: list[str] = []

    def do_GET(self):
        path = self.path.partition("?")[0]
        StandIn.asked.append(f"{self.command} {path}")
        parts = path.removeprefix("/api/models").strip("/").split("/")
        files = StandIn.models.get("/".join(parts[:2]))
        if files is None:
            return self.say(404, headers={"X-Error-Code": "RepoNotFound"})
        if "/tree/" in path:
            rows = [{"type": "file", "path": n, "size": len(c), "oid": oid(c)} for n, c in files.items()]
            return self.say(200, json.dumps(rows).encode())
        if "/resolve/" not in path:
            about = {"id": "/".join(parts[:2]), "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            return self.say(200, json.dumps(about).encode())
        if parts[0] == "GATED":
            return self.say(403, headers={"X-Error-Code": "GatedRepo"})
        if parts[1] == "broken" and self.command == "GET":
            return self.say(400)
        content = files["/".join(parts[4:])]
        return self.say(200, content, {"ETag": f'"{oid(content)}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def say(self, status, body=b"", headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def oid(content):
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(tmp_path):
    """Environment variables of a machine whose Hub is the stand-in."""
    StandIn.models = {
        "ORG/tiny": {
            **{file.name: file.read_bytes() for file in TINY_HOST.iterdir()},
            **{"pytorch_model.bin": b"a pickle", "original/config.json": b"of another format"},
        },
        "ORG/pickles": WEIGHTLESS,
        "ORG/broken": WEIGHTLESS,
        "GATED/model": WEIGHTLESS,
    }
    StandIn.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    away = ("HF_HUB_OFFLINE", "HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
    environment = {name: value for name, value in os.environ.items() if name not in away}
    yield environment | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "cache")}
    server.shutdown()
    server.server_close()


def told_by(code, environment, folder):
    """What a program prints, line by line."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_model_of_the_hub_is_the_host_and_no_pickle_is_fetched(hub, tmp_path):
    told = told_by(LOADS, hub, tmp_path)
    assert told[0] == "config.json generation_config.json tokenizer.json tokenizer_config.json"  # for a dry run
    assert told[1] == "config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json"
    assert told[2] == "the same logits as the folder"
    assert not [line for line in StandIn.asked if "pickle" in line or ".bin" in line or "original" in line]


LOADS = """
import os, torch
from mmadapter.hosts.load import load_host
from mmadapter.hosts.settings import TINY_HOST, host_folder
for weights in (False, True):
    folder = host_folder("ORG/tiny", weights)
    print(*sorted(os.listdir(folder)))
ids = torch.arange(5, 20)[None]
found, expected = (load_host(one, torch.float32)(input_ids=ids).logits for one in (folder, TINY_HOST))
print("the same logits as the folder" if torch.equal(found, expected) else "other logits")
"""


def test_what_cannot_be_fetched_is_told_with_what_to_do(hub, tmp_path):
    told = "\n".join(told_by(ERRORS, hub, tmp_path))
    assert "host.path=ORG/none: there is no such folder, and no model of that name on the Hub" in told
    assert "host.path=GATED/model: its authors let only those in" in told and "hf auth login" in told
    assert "host.path=ORG/pickles: no safetensors files of it" in told and "model.safetensors" in told
    assert "host.path=ORG/two--dashes: it cannot be fetched (HFValidationError" in told
    assert "host.path=ORG/broken: it cannot be fetched" in told
    closed = hub | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    told = "\n".join(told_by(ERRORS.replace("ORG/none", "ORG/away"), closed, tmp_path))
    assert "host.path=ORG/away: there is no such folder, and the Hub cannot be reached" in told
    assert "hf download ORG/away --local-dir FOLDER" in told


ERRORS = """
from mmadapter.errors import InputError
from mmadapter.hosts.hub import fetched
for name in ("ORG/none", "GATED/model", "ORG/pickles", "ORG/two--dashes", "ORG/broken"):
    try:
        print(fetched(name))
    except InputError as error:
        print(error)
"""


def test_checking_settings_reaches_no_network(monkeypatch, tmp_path):
    def refused(*_):
        raise AssertionError("a settings check went to the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.chdir(tmp_path)
    assert local_host_folder("ORG/tiny") is None
    assert list(HostConf(path="ORG/tiny").contradictions("host")) == []


def test_a_local_folder_goes_first_and_a_slip_in_its_path_is_none_of_the_hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = Path("models/llama")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert local_host_folder("models/llama") == folder
    for slip in ("models/lama", "/models/lama", "./some/model", "lama", "a/b/c"):
        (told,) = HostConf(path=slip).contradictions("host")
        assert told.startswith(f"host.path={slip}: no such folder.")


def test_a_prepared_host_that_is_not_there_is_one_line_with_the_command(monkeypatch, tmp_path):
    from tests.config.composing import run_conf

    monkeypatch.setenv("MMADAPTER_MODELS", str(tmp_path))
    for name in ("smollm2", "gemma3_270m"):
        host = run_conf(f"host={name}").host
        (told,) = host.contradictions("host")
        place = tmp_path / name
        assert told == f"host={name} is not there yet ({place}). Fetch it once: mmadapter pretrained {name}"
        place.mkdir()
        (place / "config.json").write_text("{}")
        assert not list(host.contradictions("host"))
    monkeypatch.delenv("MMADAPTER_MODELS")
    monkeypatch.chdir(tmp_path)
    (told,) = run_conf("host=smollm2").host.contradictions("host")
    assert told.startswith("host=smollm2 is not there yet (models/smollm2).")


def test_a_folder_with_a_gguf_file_is_told_how_to_convert_it(tmp_path):
    (tmp_path / "model.Q4.gguf").write_bytes(b"GGUF")
    (told,) = HostConf(path=str(tmp_path)).contradictions("host")
    assert f"mmadapter convert gguf {tmp_path / 'model.Q4.gguf'} {tmp_path}-hf" in told
