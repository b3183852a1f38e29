#!/usr/bin/env python3
"""Images for a node that reaches no registry, each made once, into a cache outside the checkout.

The tests' manifests name public images. On a cluster with a way to the registries those are pulled; on the node of up.sh
stand-ins of the same names are imported, made from the same programs: Debian's static busybox, moto from PyPI with this
machine's Python, toxiproxy from its Go module.

Usage: images.py MOTO_SERVER TOXIPROXY      (paths of the programs; prints the archives, one on each line)
"""
import hashlib
import io
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "jasm/images"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
MANIFEST, CONFIG, LAYER = (f"application/vnd.oci.image.{kind}" for kind in ("manifest.v1+json", "config.v1+json", "layer.v1.tar"))


class Layer:
    """The one layer of an image: a tar archive in memory."""

    def __init__(self):
        self.buffer = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.buffer, mode="w", format=tarfile.GNU_FORMAT)
        self.there = set()

    def folders(self, path):
        for folder in reversed(pathlib.PurePosixPath(path).parents[:-1]):
            if folder not in self.there:
                self.there.add(folder)
                self.entry(folder, tarfile.DIRTYPE, mode=0o755)

    def entry(self, path, kind, content=b"", mode=0o755, link=""):
        info = tarfile.TarInfo(str(path).lstrip("/"))
        info.type, info.mode, info.size, info.linkname = kind, mode, len(content), link
        self.tar.addfile(info, io.BytesIO(content))

    def script(self, path, text):
        self.folders(path)
        self.entry(path, tarfile.REGTYPE, text.encode())

    def file(self, path, source):
        """The content of `source` at `path`, once."""
        if pathlib.PurePosixPath(path) in self.there:
            return
        self.there.add(pathlib.PurePosixPath(path))
        self.folders(path)
        source = pathlib.Path(source)
        self.entry(path, tarfile.REGTYPE, source.read_bytes(), 0o755 if os.access(source, os.X_OK) else 0o644)

    def link(self, path, target):
        self.folders(path)
        self.entry(path, tarfile.SYMTYPE, link=str(target))

    def tree(self, root, leave_out=()):
        """Everything under `root`, at the same place."""
        for folder, folders, files in os.walk(root):
            # config-*: for those who link Python into a program.
            folders[:] = [name for name in folders if name not in leave_out and not name.startswith("config-")]
            for name in files:
                path = pathlib.Path(folder, name)
                if path.exists():
                    self.file(path, path)

    def content(self):
        self.tar.close()
        return self.buffer.getvalue()


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def descriptor(kind, content, **more):
    return {"mediaType": kind, "digest": digest(content), "size": len(content), **more}


def write(archive, name, entrypoint, layer):
    """An OCI image archive; https://github.com/opencontainers/image-spec/blob/main/image-layout.md"""
    content = layer.content()
    config = json.dumps({"architecture": ARCHITECTURE, "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest(content)]},
                         "config": {"Entrypoint": entrypoint, "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]}}).encode()
    manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, config),
                           "layers": [descriptor(LAYER, content)]}).encode()
    index = json.dumps({"schemaVersion": 2, "manifests": [descriptor(
        MANIFEST, manifest, platform={"architecture": ARCHITECTURE, "os": "linux"},
        annotations={"io.containerd.image.name": name})]}).encode()
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index}
    files |= {"blobs/" + digest(blob).replace(":", "/"): blob for blob in (config, manifest, content)}
    whole = Layer()
    for path, blob in files.items():
        whole.folders("/" + path)
        whole.entry(path, tarfile.REGTYPE, blob, 0o644)
    new = archive.with_suffix(f".{os.getpid()}.new")
    new.write_bytes(whole.content())
    new.rename(archive)


def busybox(layer, applets=True):
    program = shutil.which("busybox")
    layer.file("/bin/busybox", program)
    # None, where it is the static one.
    for library in libraries_of([program]):
        layer.file(library, library)
    for applet in subprocess.check_output([program, "--list"], text=True).split() if applets else []:
        if applet != "busybox":
            layer.link(f"/bin/{applet}", "/bin/busybox")


def libraries_of(paths):
    """The shared libraries that programs and modules load, with the loader."""
    found = set()
    for path in paths:
        lines = subprocess.run(["ldd", path], capture_output=True, text=True).stdout.split()
        found |= {word for word in lines if word.startswith("/") and pathlib.Path(word).exists()}
    return sorted(found)


def moto(layer, server):
    """This machine's Python and the virtual environment of moto, where they are here, and where moto's own image has them."""
    venv = pathlib.Path(server).parent.parent
    python = pathlib.Path(os.path.realpath(venv / "bin/python"))
    standard = pathlib.Path(sysconfig.get_paths()["stdlib"])
    layer.file(python, python)
    layer.tree(standard, leave_out=("test", "idlelib", "tkinter", "site-packages", "dist-packages", "ensurepip", "lib2to3"))
    layer.tree(venv, leave_out=("pip", "bin"))
    layer.file(venv / "bin/moto_server", server)
    layer.link(venv / "bin/python", python)
    layer.link(venv / f"bin/python{sys.version_info.major}", python)
    modules = [path for root in (standard, venv) for path in root.rglob("*.so")]
    for library in libraries_of([python, *modules]):
        layer.file(library, library)
    busybox(layer, applets=False)
    layer.link("/bin/sh", "/bin/busybox")
    # Python finds its environment by the name that it was started with.
    layer.script("/usr/local/bin/python", f'#!/bin/sh\nexec {venv}/bin/python "$@"\n')
    layer.link("/usr/local/bin/moto_server", venv / "bin/moto_server")
    layer.folders("/tmp/x")


def main():
    moto_server, toxiproxy = sys.argv[1:]
    CACHE.mkdir(parents=True, exist_ok=True)
    # Made anew when any of what they are made from is another one.
    sources = [__file__, shutil.which("busybox") or sys.exit("images: error: install busybox-static"), toxiproxy]
    made_from = hashlib.sha256(b"".join(pathlib.Path(source).read_bytes() for source in sources) + moto_server.encode())
    made_from = made_from.hexdigest()[:12]
    images = [
        ("registry.k8s.io/pause:3.10", ["/bin/busybox", "sleep", "infinity"], lambda layer: busybox(layer, applets=False)),
        ("docker.io/library/busybox:1.37", ["/bin/sh"], busybox),
        ("docker.io/motoserver/moto:5.2.5", ["/usr/local/bin/moto_server", "-H", "0.0.0.0"], lambda layer: moto(layer, moto_server)),
        ("ghcr.io/shopify/toxiproxy:2.5.0", ["/toxiproxy", "-host=0.0.0.0"], lambda layer: layer.file("/toxiproxy", toxiproxy)),
    ]
    for name, entrypoint, fill in images:
        label = name.replace("/", "_").replace(":", "_")
        archive = CACHE / f"{label}-{made_from}.tar"
        if not archive.exists():
            for old in CACHE.glob(f"{label}-*.tar"):
                old.unlink(missing_ok=True)
            layer = Layer()
            fill(layer)
            write(archive, name, entrypoint, layer)
        print(archive)


if __name__ == "__main__":
    main()
