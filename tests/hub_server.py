# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""A Hub on the loopback interface: as much of its HTTP interface as the real `huggingface_hub` client needs to create
a model repository, commit to it (weights by Git LFS) and load any of its revisions; and faults on demand.

It does not speak Xet, which the client would choose by itself where `hf_xet` is installed: `Hub.environment` says no.
"""

import base64
import hashlib
import json
import math
import re
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "hf_loopback"

# What a request does: step -> (method, path)
STEPS = {
    "validate": ("POST", r"/api/validate-yaml"),  # the client has model cards checked before it commits them
    "create": ("POST", r"/api/repos/create"),
    "preupload": ("POST", r"/api/models/(?P<name>[^/]+/[^/]+)/preupload/main"),  # which files go by LFS
    "batch": ("POST", r"/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch"),  # where LFS files are to be put
    "put": ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})"),
    "verify": ("POST", r"/lfs/verify"),
    "commit": ("POST", r"/api/models/(?P<name>[^/]+/[^/]+)/commit/main"),
    "whoami": ("GET", r"/api/whoami-v2"),
    "resolve": ("GET", r"/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
    "info": ("GET", r"/api/models/(?P<name>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?"),
    "tree": ("GET", r"/api/models/(?P<name>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)"),
}


@dataclass
class Fault:
    """What goes wrong, for `times` requests: an HTTP status (with `retry_after` seconds), or

    "cut": the connection is closed in the middle of the request's body;
    "cut answer": the request is carried out, and the connection is closed in the middle of the answer's body;
    "stall": the request is read and never answered.
    """

    kind: int | str
    times: float
    retry_after: int | None


class Hub(ThreadingHTTPServer):
    """
    `revisions`: name -> {commit hash: {path: bytes}}, the newest last; `requests`: how often each of STEPS was asked
    for.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.revisions: dict[str, dict[str, dict[str, bytes]]] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.requests = Counter()
        self.faults: dict[str, Fault] = {}
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def repositories(self) -> dict[str, dict[str, bytes]]:
        """Name -> {path: bytes}, the newest revision."""
        return {name: list(revisions.values())[-1] for name, revisions in self.revisions.items()}

    def environment(self, home: Path, token: str = TOKEN) -> dict[str, str]:
        """Environment variables by which a client uses this Hub, and keeps its cache in `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": token,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }

    def fail(self, step: str, kind: int | str, times: float = math.inf, retry_after: int | None = None) -> None:
        """Let the next `times` requests of a step (see STEPS) fail, see Fault."""
        self.faults[step] = Fault(kind, times, retry_after)

    def add_revision(self, name: str, files: dict[str, bytes]) -> str:
        revisions = self.revisions.setdefault(name, {})
        content = {path: hashlib.sha256(data).hexdigest() for path, data in sorted(files.items())}
        revision = hashlib.sha1(json.dumps([list(revisions)[-1:], content]).encode()).hexdigest()
        revisions[revision] = files
        return revision


@contextmanager
def running_hub():
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        hub.shutdown()
        thread.join()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args):
        pass

    def do_GET(self):
        method = "GET" if self.command == "HEAD" else self.command
        self.cut_answer = False
        for step, (of_step, pattern) in STEPS.items():
            if of_step == method and (match := re.fullmatch(pattern, self.path.split("?")[0])):
                break
        else:
            self.read_body()
            return self.answer(404, {"error": self.path})
        self.server.requests[step] += 1
        fault = self.server.faults.get(step)
        if fault is not None and fault.times > 0:
            fault.times -= 1
            if self.go_wrong(fault):
                return None
        body = self.read_body()
        # As on the real Hub, the address to which an LFS file is put is the permission to do so.
        if step not in ("put", "validate") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        return getattr(self, step)(body, **match.groupdict())

    do_HEAD = do_POST = do_PUT = do_GET

    def go_wrong(self, fault: Fault) -> bool:
        """Returns whether the request is done with."""
        if fault.kind == "cut answer":
            self.cut_answer = True
            return False
        if fault.kind == "cut":
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.close_connection = True
        elif fault.kind == "stall":
            self.read_body()
            self.server.closing.wait()
            self.close_connection = True
        else:
            self.read_body()
            headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
            self.answer(fault.kind, {"error": "the Hub is out of order"}, headers)
        return True

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, status: int, content: object = None, headers: dict | None = None, body: bytes | None = None):
        body = json.dumps(content).encode() if body is None else body
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": len(body)} | (headers or {})
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.cut_answer:
            body = body[: len(body) // 2]
            self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, what: str):
        return self.answer(404, {"error": what}, {"X-Error-Code": what})

    # The steps of a push

    def validate(self, body: bytes):
        return self.answer(200, {"errors": [], "warnings": []})

    def create(self, body: bytes):
        request = json.loads(body)
        name = "/".join([request.get("organization") or "user", request["name"]])
        if name not in self.server.revisions:
            self.server.add_revision(name, {})
        return self.answer(200, {"url": f"{self.server.url}/{name}", "name": name, "id": "0"})

    def preupload(self, body: bytes, name: str):
        there = self.server.repositories[name]
        files = []
        for path in (file["path"] for file in json.loads(body)["files"]):
            mode = "lfs" if path.endswith(".safetensors") else "regular"
            oid = _oid(path, there[path]) if path in there else None
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return self.answer(200, {"files": files})

    def batch(self, body: bytes, name: str):
        objects = []
        for wanted in json.loads(body)["objects"]:
            upload = {"href": f"{self.server.url}/lfs/{wanted['oid']}"}
            verify = {"href": f"{self.server.url}/lfs/verify"}
            there = wanted["oid"] in self.server.lfs_objects
            objects.append(wanted | ({} if there else {"actions": {"upload": upload, "verify": verify}}))
        headers = {"Content-Type": "application/vnd.git-lfs+json"}
        return self.answer(200, {"transfer": "basic", "objects": objects}, headers)

    def put(self, body: bytes, oid: str):
        if hashlib.sha256(body).hexdigest() != oid:
            return self.answer(400, {"error": "the content is not what the address says"})
        self.server.lfs_objects[oid] = body
        return self.answer(200, {})

    def verify(self, body: bytes):
        request = json.loads(body)
        there = self.server.lfs_objects.get(request["oid"])
        return self.answer(200 if there is not None and len(there) == request["size"] else 404, {})

    def commit(self, body: bytes, name: str):
        files = dict(self.server.repositories[name])
        for operation in map(json.loads, body.splitlines()):
            file = operation["value"]
            if operation["key"] == "file":
                files[file["path"]] = base64.b64decode(file["content"])
            elif operation["key"] == "lfsFile":
                if file["oid"] not in self.server.lfs_objects:
                    return self.answer(400, {"error": f"{file['path']} was not uploaded"})
                files[file["path"]] = self.server.lfs_objects[file["oid"]]
        revision = self.server.add_revision(name, files)
        return self.answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/{revision}", "commitOid": revision})

    # What loading asks for

    def whoami(self, body: bytes):
        return self.answer(200, {"name": "user", "type": "user"})

    def resolve(self, body: bytes, name: str, revision: str, path: str):
        if (found := self.find(name, revision)) is None:
            return None
        commit, files = found
        if path not in files:
            return self.missing("EntryNotFound")
        headers = {"ETag": f'"{_oid(path, files[path])}"', "X-Repo-Commit": commit}
        return self.answer(200, headers=headers | {"Content-Type": "application/octet-stream"}, body=files[path])

    def info(self, body: bytes, name: str, revision: str | None):
        if (found := self.find(name, revision)) is None:
            return None
        commit, files = found
        siblings = [{"rfilename": path} for path in files]
        return self.answer(200, {"id": name, "sha": commit, "siblings": siblings, "tags": [], "private": False})

    def tree(self, body: bytes, name: str, revision: str):
        if (found := self.find(name, revision)) is None:
            return None
        entries = [{"path": path, "size": len(data), "oid": _oid(path, data)} for path, data in found[1].items()]
        return self.answer(200, [{"type": "file"} | entry for entry in entries])

    def find(self, name: str, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        """Commit hash and files of a revision; where it is not there, that is answered, and None returned."""
        revisions = self.server.revisions.get(name)
        if revisions is None:
            return self.missing("RepoNotFound")
        commit = list(revisions)[-1] if revision in (None, "main") else revision
        if commit not in revisions:
            return self.missing("RevisionNotFound")
        return commit, revisions[commit]


def _oid(path: str, data: bytes) -> str:
    """What the Hub tells contents apart by: SHA-256 for LFS, Git's hash of a blob for the rest."""
    if path.endswith(".safetensors"):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
