"""
A stand-in for the Hub on loopback: the few endpoints that uploads and downloads of huggingface_hub use, of models and
of data sets.

    with HubServer() as hub:
        # run something where HF_ENDPOINT=hub.endpoint, HF_TOKEN=<anything> and HF_HUB_DISABLE_XET=1
        hub.repos["user/model"].commits[-1].files["config.json"]  # bytes

What it checks: a private repository cannot be read without a token, a large file is what its hash says, and a commit
names only large files that were uploaded.
"""

import base64
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

USER = "user"
LARGE = (".safetensors", ".bin", ".pt", ".pth")  # go through LFS, as on the Hub


@dataclass
class Commit:
    message: str
    files: dict[str, bytes]  # all files of the repository after it

    @property
    def sha(self) -> str:
        content = [(path, hashlib.sha256(data).hexdigest()) for path, data in sorted(self.files.items())]
        return hashlib.sha1(json.dumps([self.message, content]).encode()).hexdigest()


@dataclass
class Repo:
    private: bool
    commits: list[Commit] = field(default_factory=lambda: [Commit("initial commit", {".gitattributes": b""})])

    def at(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit.sha == revision), None)


class Refused(Exception):
    """Ends a request: HTTP status and the X-Error-Code that huggingface_hub reads."""

    def __init__(self, status: int, code: str = ""):
        self.status, self.code = status, code


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}  # by sha256
        self.sent: dict[str, int] = {}  # bytes by path
        self.unknown: list[str] = []  # requests that no route took
        self.pause = 0.0  # seconds in each upload, before its files are read

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open
    server: HubServer

    def log_message(self, *args):
        pass

    def handle_any(self):
        body = self.read_body()
        path = unquote(urlsplit(self.path).path)
        try:
            for methods, pattern, handler in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in methods.split():
                    return handler(self, body, **match.groupdict())
            self.server.unknown.append(f"{self.command} {path}")
            raise Refused(404)
        except Refused as refused:
            self.send_bytes(b"{}", refused.status, {"X-Error-Code": refused.code})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send_bytes(self, data: bytes, status: int = 200, headers: dict | None = None):
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_json(self, value, status: int = 200):
        self.send_bytes(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def find(self, repo: str) -> Repo:
        found = self.server.repos.get(repo)
        if found is None or (found.private and "Authorization" not in self.headers):
            raise Refused(401, "RepoNotFound")
        return found

    def find_commit(self, repo: str, revision: str) -> Commit:
        commit = self.find(repo).at(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound")
        return commit

    def whoami(self, body):
        if "Authorization" not in self.headers:
            raise Refused(401)
        self.send_json({"type": "user", "name": USER, "orgs": []})

    def create(self, body):
        if "Authorization" not in self.headers:
            raise Refused(401)
        asked = json.loads(body)
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        exists = name in self.server.repos
        if not exists:  # "private" is what huggingface_hub sent before version 2
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.server.repos[name] = Repo(private)
        self.send_json({"url": f"{self.server.endpoint}/{name}"}, 409 if exists else 200)

    def info(self, body, repo, revision="main"):
        commit = self.find_commit(repo, revision or "main")
        siblings = [{"rfilename": path} for path in commit.files]
        private = self.find(repo).private
        self.send_json({"id": repo, "sha": commit.sha, "private": private, "siblings": siblings, "tags": []})

    def tree(self, body, repo, revision, folder):
        files = self.find_commit(repo, revision).files
        recursive = "recursive=true" in self.path.lower()
        start = len(folder) + 1 if folder else 0
        inside = {path: data for path, data in files.items() if path.startswith(f"{folder}/" if folder else "")}
        if folder and not inside:
            raise Refused(404, "EntryNotFound")
        folders = {path[: path.find("/", start)] for path in inside if "/" in path[start:]}
        self.send_json(
            [describe(path, files) for path in inside if recursive or "/" not in path[start:]]
            + [describe(path, files) for path in sorted(folders)]
        )

    def paths_info(self, body, repo, revision):
        files = self.find_commit(repo, revision).files
        asked = parse_qs(body.decode())["paths"]
        folders = {path.rpartition("/")[0] for path in files}
        self.send_json([describe(path, files) for path in asked if path in files or path in folders])

    def resolve(self, body, repo, revision, path):
        commit = self.find_commit(repo, revision)
        headers = {"X-Repo-Commit": commit.sha}
        if path not in commit.files:
            return self.send_bytes(b"", 404, {"X-Error-Code": "EntryNotFound", **headers})
        data = commit.files[path]
        headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        part = data[int(asked[1]) : int(asked[2]) + 1] if asked else data
        self.server.sent[path] = self.server.sent.get(path, 0) + len(part)
        self.send_bytes(part, 206 if asked else 200, headers)

    def validate_yaml(self, body):
        self.send_json({"errors": [], "warnings": []})

    def preupload(self, body, repo, revision):
        self.find_commit(repo, revision)
        time.sleep(self.server.pause)
        modes = [
            {
                "path": file["path"],
                "shouldIgnore": False,
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
            }
            for file in json.loads(body)["files"]
        ]
        self.send_json({"files": modes})

    def lfs_batch(self, body, repo):
        self.find(repo)
        objects = json.loads(body)["objects"]
        for wanted in objects:
            if wanted["oid"] not in self.server.large:
                wanted["actions"] = {"upload": {"href": f"{self.server.endpoint}/lfs/{wanted['oid']}"}}
        self.send_json({"transfer": "basic", "objects": objects})

    def lfs_upload(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(422)
        self.server.large[oid] = body
        self.send_bytes(b"")

    def commit(self, body, repo, revision):
        files = dict(self.find_commit(repo, revision).files)
        header, *operations = [json.loads(line) for line in body.splitlines()]
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile" and value["oid"] in self.server.large:
                files[value["path"]] = self.server.large[value["oid"]]
            else:
                raise Refused(422)
        commit = Commit(header["value"]["summary"], files)
        self.server.repos[repo].commits.append(commit)
        self.send_json({"commitUrl": f"{self.server.endpoint}/{repo}/commit/{commit.sha}", "commitOid": commit.sha})


def describe(path: str, files: dict[str, bytes]) -> dict:
    """A file, or otherwise a folder, of a repository."""
    if path not in files:
        return {"type": "directory", "path": path, "oid": "0" * 40}
    return {"type": "file", "path": path, "size": len(files[path]), "oid": hashlib.sha1(files[path]).hexdigest()}


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[\w.-]+)"
READ = "GET HEAD"
ROUTES = [  # methods, path, handler
    (READ, "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    (READ, f"/api/(?:models|datasets)/{REPO}", Handler.info),
    (READ, f"/api/(?:models|datasets)/{REPO}/revision/{REVISION}", Handler.info),
    (READ, f"/api/(?:models|datasets)/{REPO}/tree/{REVISION}/?(?P<folder>.*)", Handler.tree),
    ("POST", f"/api/datasets/{REPO}/paths-info/{REVISION}", Handler.paths_info),
    ("POST", f"/api/models/{REPO}/preupload/{REVISION}", Handler.preupload),
    ("POST", f"/api/models/{REPO}/commit/{REVISION}", Handler.commit),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_upload),
    (READ, f"/(?:datasets/)?{REPO}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
]
