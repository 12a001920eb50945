"""Disks of the server: real file systems in files, which can be full, and whose power can be cut."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile

from .machine import RUN, SLOTS, GpuServer, sh, until

FICLONE = 0x40049409  # ioctl: one file becomes a copy of another, at one moment


class SlotDisk:
    """A file system of its own under the slot folder, there from the next boot of the server on.

    It is ext4 in a file, and that file lies on an XFS of its own (both loop-mounted), which can copy files at one moment
    whoever writes to them: what such a copy holds is what a disk holds after a power cut at that moment.
    """

    def __init__(self, gpu: GpuServer, megabytes: int, base: pathlib.Path = RUN) -> None:
        self.gpu = gpu
        self.place = gpu.root / SLOTS.lstrip("/")
        self.base = pathlib.Path(tempfile.mkdtemp(prefix="disk", dir=base))
        self.carrier = self.base / "carrier"
        self.image = self.carrier / "disk.img"
        self.carrier.mkdir()
        file = self.base / "carrier.img"
        _allot(file, max(4 * megabytes, 400))
        sh("mkfs.xfs", "-q", "-m", "reflink=1", file)
        sh("mount", "-o", "loop", file, self.carrier)
        _allot(self.image, megabytes)
        sh("mkfs.ext4", "-q", "-m", "0", self.image)
        owner = self.place.stat()
        sh("mount", "-o", "loop", self.image, self.place)
        os.chown(self.place, owner.st_uid, owner.st_gid)
        self.place.chmod(0o2770)
        (self.place / "lost+found").rmdir()
        sh("sync", "-f", self.place)

    def cut(self, copy: pathlib.Path) -> None:
        """What a power cut at this moment would leave, as the file `copy` (a name on the carrier)."""
        copy.unlink(missing_ok=True)
        with open(self.image, "rb") as image, open(copy, "wb") as out:
            fcntl.ioctl(out, FICLONE, image.fileno())

    @contextlib.contextmanager
    def after(self, copy: pathlib.Path):
        """The file system of a copy, after the repair of its journal that a mount does."""
        place = self.base / "after"
        place.mkdir(exist_ok=True)
        sh("mount", "-o", "loop", copy, place)
        try:
            yield place
        finally:
            sh("umount", place)

    def become(self, copy: pathlib.Path) -> None:
        """The server is off; its disk is now as the copy."""
        sh("umount", self.place)
        os.replace(copy, self.image)
        sh("mount", "-o", "loop", self.image, self.place)

    def close(self) -> None:
        """The server is off. A test that failed may have left it in use: the others shall not suffer."""
        sh("umount", "-l", self.place)
        sh("umount", "-l", self.carrier)
        shutil.rmtree(self.base, ignore_errors=True)


def _allot(file: pathlib.Path, megabytes: int) -> None:
    with open(file, "wb") as out:
        out.truncate(megabytes << 20)


class Share:
    """The slot folder mounted on this side over the network (sshfs), which can hang."""

    def __init__(self, gpu: GpuServer) -> None:
        self.place = RUN / "share"
        self.place.mkdir(exist_ok=True)
        options = gpu._ssh_options()
        words = [word for flag, word in zip(options[::2], options[1::2]) if flag == "-o" and "Control" not in word]
        settings = ["-o", ",".join([*words, "port=2222", f"IdentityFile={RUN}/root_key", "dir_cache=no"])]
        self.process = subprocess.Popen(["sshfs", "-f", *settings, f"root@{gpu.address}:{SLOTS}", self.place],
                                        stdin=subprocess.DEVNULL)
        until("the share is mounted", lambda: os.path.ismount(self.place), 10)

    def hang(self, hangs: bool = True) -> None:
        self.process.send_signal(signal.SIGSTOP if hangs else signal.SIGCONT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        sh("umount", "-l", self.place)
