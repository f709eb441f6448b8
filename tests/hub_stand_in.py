"""A stand-in for the Hub, spoken to by huggingface_hub over HTTP: repositories in memory.

It answers what creating, uploading (regular and LFS files) and downloading need. Use it from another process, whose HF_ENDPOINT
is its address: huggingface_hub reads that when it is imported.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

TOKEN = "hf_stand_in"
_LFS = re.compile(r"\.(safetensors|parquet|mp4|whl|png)$")
_TYPE = r"(?P<type>models|datasets|spaces)"
_REPOSITORY = r"(?P<repo>[\w.-]+/[\w.-]+)"
_PREFIX = r"/(?:(?P<type>datasets|spaces)/)?"


@dataclass
class Repository:
    files: dict[str, bytes] = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    commits: int = 0


@dataclass
class Hub:
    """What has been uploaded: `repositories["models", "user/name"]`."""

    address: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    strangers: list[str] = field(default_factory=list)  # requests that it does not know

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Run Python with this Hub in place of the real one."""
        variables = os.environ | {
            "HF_ENDPOINT": self.address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment,
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=False, env=variables, timeout=300
        )


@contextmanager
def hub_stand_in():
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        self._route("POST")

    def do_PUT(self):
        self._route("PUT")

    def do_GET(self):
        self._route("GET")

    def do_HEAD(self):
        self._route("HEAD")

    def _route(self, method: str) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlparse(self.path).path)
        for verb, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method in verb:
                if not path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self._json({"error": "Invalid credentials in Authorization header"}, 401)
                return answer(self, **match.groupdict())
        self.hub.strangers.append(f"{method} {path}")
        self._json({"error": "not found"}, 404)

    def _json(self, content, status: int = 200, **headers: str) -> None:
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json", **headers})

    def _send(self, content: bytes, status: int, headers: dict) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _missing(self, code: str) -> None:
        self._json({"error": code}, 404, X_Error_Code=code)

    def create(self) -> None:
        asked = json.loads(self.body)
        kind = f"{asked.get('type') or 'model'}s"
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        exists = (kind, name) in self.hub.repositories
        repository = self.hub.repositories.setdefault((kind, name), Repository(settings=asked))
        repository.variables |= {one["key"]: one["value"] for one in asked.get("variables") or ()}
        prefix = "" if kind == "models" else f"{kind}/"
        self._json({"url": f"{self.hub.address}/{prefix}{name}", "name": name, "id": name}, 409 if exists else 200)

    def check_card(self) -> None:
        content = json.loads(self.body)
        errors = [] if content["content"].startswith("---\n") else [{"message": "no metadata"}]
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, type: str, repo: str) -> None:
        files = json.loads(self.body)["files"]
        modes = [
            {"path": f["path"], "uploadMode": "lfs" if _LFS.search(f["path"]) else "regular", "shouldIgnore": False}
            for f in files
        ]
        self._json({"files": modes})

    def lfs_batch(self, type: str | None, repo: str) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{one['oid']}"}}}
            for one in json.loads(self.body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def lfs_store(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.stored[oid] = self.body
        self._json({})

    def commit(self, type: str, repo: str) -> None:
        repository = self.hub.repositories[type, repo]
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del repository.files[value["path"]]
        repository.commits += 1
        oid = f"{repository.commits:040x}"
        self._json({"commitUrl": f"{self.hub.address}/{repo}/commit/{oid}", "commitOid": oid, "success": True})

    def info(self, type: str, repo: str, revision: str | None = None) -> None:
        repository = self.hub.repositories.get((type, repo))
        if repository is None:
            return self._missing("RepoNotFound")
        siblings = [{"rfilename": name} for name in repository.files]
        self._json(
            {"id": repo, "sha": f"{repository.commits:040x}", "siblings": siblings, "private": False, "tags": []}
        )

    def tree(self, type: str, repo: str, folder: str | None = None) -> None:
        files = self.hub.repositories[type, repo].files
        if folder:
            files = {name: content for name, content in files.items() if name.startswith(folder + "/")}
            if not files:
                return self._missing("EntryNotFound")
        self._json([{"type": "file", "path": name, "size": len(c), "oid": "0" * 40} for name, c in files.items()])

    def variable(self, repo: str) -> None:
        asked = json.loads(self.body)
        variables = self.hub.repositories["spaces", repo].variables
        variables[asked["key"]] = asked["value"]
        self._json({key: {"key": key, "value": value} for key, value in variables.items()})

    def resolve(self, type: str | None, repo: str, file: str) -> None:
        repository = self.hub.repositories.get((type or "models", repo))
        if repository is None:
            return self._missing("RepoNotFound")
        if file not in repository.files:
            return self._missing("EntryNotFound")
        content = repository.files[file]
        etag = hashlib.sha256(content).hexdigest()
        self._send(content, 200, {"ETag": f'"{etag}"', "X-Repo-Commit": f"{repository.commits:040x}"})


_ROUTES = [
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.check_card),
    ("POST", rf"/api/{_TYPE}/{_REPOSITORY}/preupload/main", _Handler.preupload),
    ("POST", rf"/api/{_TYPE}/{_REPOSITORY}/commit/main", _Handler.commit),
    ("POST", rf"/api/spaces/{_REPOSITORY}/variables", _Handler.variable),
    ("GET", rf"/api/{_TYPE}/{_REPOSITORY}(?:/revision/(?P<revision>[\w.-]+))?", _Handler.info),
    ("GET", rf"/api/{_TYPE}/{_REPOSITORY}/tree/[\w.-]+(?:/(?P<folder>.+))?", _Handler.tree),
    ("POST", rf"{_PREFIX}{_REPOSITORY}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>\w+)", _Handler.lfs_store),
    ("GET HEAD", rf"{_PREFIX}{_REPOSITORY}/resolve/[\w.-]+/(?P<file>.+)", _Handler.resolve),
]


def unpack(repository: Repository, folder: Path) -> Path:
    """Write a repository's files to a folder, as a download does."""
    for name, content in repository.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
