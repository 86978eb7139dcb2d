# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""A Hub on the loopback interface: as much of its HTTP interface as the real `huggingface_hub` client needs to create
a model repository, commit small files to it, and load models from it."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_loopback"


class Hub(ThreadingHTTPServer):
    """`repositories`: name → {path: bytes}, the newest revision; `commits`: how many commits were asked for;
    `fail_commits`: HTTP status to answer them with, 0 for success."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.commits = 0
        self.fail_commits = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def revision(self, name: str) -> str:
        content = json.dumps({path: data.hex() for path, data in sorted(self.repositories[name].items())})
        return hashlib.sha1(content.encode()).hexdigest()


@contextmanager
def running_hub():
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status: int, content: object = None, headers: dict | None = None, body: bytes | None = None):
        body = json.dumps(content).encode() if body is None else body
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": len(body)} | (headers or {})
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        hub: Hub = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/validate-yaml":  # the client has model cards checked before it commits them
            return self.answer(200, {"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            request = json.loads(body)
            name = "/".join(filter(None, [request.get("organization") or "user", request["name"]]))
            hub.repositories.setdefault(name, {})
            return self.answer(200, {"url": f"{hub.url}/{name}", "name": name, "id": "0"})
        if match := re.fullmatch(r"/api/models/(.+)/preupload/.+", self.path):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if match := re.fullmatch(r"/api/models/(.+)/commit/.+", self.path):
            hub.commits += 1
            if hub.fail_commits:
                return self.answer(hub.fail_commits, {"error": "the Hub is out of order"})
            for line in body.splitlines():
                operation = json.loads(line)
                if operation["key"] == "file":
                    file = operation["value"]
                    hub.repositories[match[1]][file["path"]] = base64.b64decode(file["content"])
            revision = hub.revision(match[1])
            return self.answer(200, {"commitUrl": f"{hub.url}/{match[1]}/commit/{revision}", "commitOid": revision})
        return self.answer(404, {"error": self.path})

    def do_GET(self):
        hub: Hub = self.server
        path = self.path.split("?")[0]
        if path == "/api/whoami-v2":
            return self.answer(200, {"name": "user", "type": "user"})
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            data = hub.repositories.get(match[1], {}).get(match[2])
            if data is None:
                code = "EntryNotFound" if match[1] in hub.repositories else "RepoNotFound"
                return self.answer(404, {"error": code}, {"X-Error-Code": code})
            headers = {
                "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
                "X-Repo-Commit": hub.revision(match[1]),
                "Content-Type": "application/octet-stream",
            }
            return self.answer(200, headers=headers, body=data)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?", path):
            if match[1] in hub.repositories:
                files = [{"rfilename": name} for name in hub.repositories[match[1]]]
                info = {"id": match[1], "sha": hub.revision(match[1]), "siblings": files, "tags": [], "private": False}
                return self.answer(200, info)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in hub.repositories.get(match[1], {}).items()
            ]
            return self.answer(200, tree)
        return self.answer(404, {"error": path}, {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET
