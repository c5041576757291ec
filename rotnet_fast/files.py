"""Files that are whole or not there, written and changed through no symbolic link.

A command writes into folders that the user named, and nowhere else. Those may be links, or lie behind some:
:func:`followed` gives their real names once, where a path enters the program. Whatever is made below them
is reached from the root folder on by names that are no links, so that one which somebody put into a run
folder never leads a write to another place. The check cannot be outrun: each folder is
opened by its name inside the one that is open already, and the file by its name inside the last.

Importing this module does not import torch.
"""

from __future__ import annotations

import errno
import os
import resource
import secrets
import shlex
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from rotnet_fast.errors import ArgumentError

_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Passing through a folder does not take the right to list it, where the system makes the difference.
_PASS = _FOLDER | getattr(os, "O_PATH", os.O_RDONLY)
_MORE_FILES = 4096
_UNPACKED_BY = {
    **dict.fromkeys((".tar.gz", ".tgz"), "gunzip"),
    **dict.fromkeys((".tar.xz", ".txz"), "unxz"),
    **dict.fromkeys((".tar.bz2", ".tbz2"), "bunzip2"),
    **dict.fromkeys((".tar.zst", ".tzst"), "unzstd"),
}
"""Suffixes of compressed tar files -> the command that leaves the tar file."""
_PLAIN = os.O_NONBLOCK | os.O_CLOEXEC  # opening a FIFO would wait for its other end


def named(path: str | os.PathLike[str], argument: str = "path") -> Path:
    """The path that a user means: ``~`` and ``~name`` at its beginning are home folders, as in a shell.

    Every path of a user passes through here: settings by `rotnet_fast.settings`, those of functions in these.

    Args:
        path: as the user gave it; it need not exist. A name of nobody stays as it is.
        argument: what errors call it.

    Raises:
        ArgumentError: an empty text, which would be the current folder.
    """
    text = os.fspath(path)
    if not text:
        raise ArgumentError(f"{argument} is empty; give a path, such as . for the current folder")
    if not text.startswith("~"):
        return path if isinstance(path, Path) else Path(path)
    return Path(os.path.expanduser(text))


def followed(path: Path) -> Path:
    """The same file or folder by a name without symbolic links; ``path`` itself where it has none.

    Args:
        path: as the user gave it, see :func:`named`; it need not exist.
    """
    path = named(path)
    real = os.path.realpath(path)
    return path if real == os.path.abspath(path) else Path(real)


def make_folder(path: Path) -> None:
    """Make a folder and those above it where they are missing.

    Raises:
        OSError: it cannot be made, or a symbolic link is on the way or in its place.
    """
    for _ in range(10):
        # Another command may remove an empty folder above it, which it made for nothing, at this very moment.
        with suppress(FileNotFoundError), _entered(path, make=True):
            return
    with _entered(path, make=True):
        pass


@contextmanager
def replacing(path: Path, is_shared: bool = False) -> Iterator[BinaryIO]:
    """Write a file under a temporary name in its folder and give it its own name when it is whole.

    The content is flushed to the disk before the file gets its name, and the folder after it, so that a crash
    or a loss of power at any moment leaves the old content or the new. Whatever ends the block early (an
    error, Ctrl-C) leaves the old file, or none. A link in the place of ``path`` is replaced, not followed.

    Args:
        path: the file to make or replace, in a folder that is there.
        is_shared: several processes may write this file at once: the temporary name is a new one each time.
            Without it there must be one writer at a time (a run folder is locked), and the name is that of
            :func:`temporary_path`, so that what a killed process left behind is replaced by the next write.

    Yields:
        The temporary file, open for writing.

    Raises:
        OSError: the disk is full, the folder is read-only or behind a symbolic link, ...
    """
    temporary = temporary_path(path).name
    if is_shared:
        temporary = f"{path.name}.{secrets.token_hex(8)}.part"
    with _entered(path.parent) as folder:
        try:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            # Not tempfile.mkstemp: its files are readable by their owner alone, and folders are shared.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(temporary, flags, 0o666, dir_fd=folder), "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise
        _flush(folder)


def link_file(source: str, path: Path) -> None:
    """Give a file another name in its folder, in place of what had it; durable as :func:`replacing` is.

    Args:
        source: the file's present name in that folder.
        path: the new one.

    Raises:
        OSError: the file system has no hard links, ...; ``path`` is as it was.
    """
    temporary = temporary_path(path).name
    with _entered(path.parent) as folder:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        os.link(source, temporary, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        with suppress(FileNotFoundError):  # where both were the same file already, replacing does nothing
            os.unlink(temporary, dir_fd=folder)
        _flush(folder)


def open_to_append(path: Path) -> int:
    """Descriptor of a plain file to be read, appended to and cut; it is made where it is missing.

    Raises:
        OSError: it cannot be opened, is a symbolic link or behind one, or is no plain file.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | _PLAIN
    with _entered(path.parent) as folder:
        try:
            descriptor = os.open(path.name, flags, 0o666, dir_fd=folder)
        except OSError as error:
            raise _explained(error, path) from error
    return _checked_plain(descriptor, path)


def open_plain(path: str | os.PathLike[str]) -> int:
    """Descriptor of a plain file to be read, links followed; opening never waits, whatever it is.

    Raises:
        OSError: it cannot be opened, or is a FIFO, a device or the like.
    """
    return _checked_plain(os.open(path, os.O_RDONLY | _PLAIN), path)


def is_out_of_descriptors(error: BaseException | None) -> bool:
    """Whether an error says that too many files are open, about which the file at hand can do nothing."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def cannot_read(what: str, error: OSError, remedy: str) -> str:
    """The sentence about a file or folder that cannot be read.

    Args:
        what: its name.
        error: what the system says.
        remedy: for whatever is wrong with it; another is given where too many files are open.
    """
    if is_out_of_descriptors(error):
        return f"{what} cannot be opened, {out_of_descriptors(error)}"
    return f"{what} cannot be read ({error}); {remedy}"


def out_of_descriptors(error: OSError) -> str:
    """The rest of a sentence about what could not be done, where :func:`is_out_of_descriptors` is true."""
    if error.errno == errno.ENFILE:
        return "as too many files are open on this machine; end other programs"
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    more = max(_MORE_FILES, 4 * limit)
    if most != resource.RLIM_INFINITY:
        more = min(more, most)
    remedy = f"raise it with `ulimit -n {more}` in the shell that starts it"
    if more <= limit:
        remedy = "the administrator can raise it (nofile in /etc/security/limits.conf)"
    return f"as this process has {limit} files open, its limit; {remedy}"


def is_archive(name: str) -> bool:
    """Whether a file is called like an archive that must be unpacked; a plain .tar need not be."""
    return name.lower().endswith((".zip", *_UNPACKED_BY))


def unpacking(folder: str, archives: Sequence[str]) -> str:
    """The commands that unpack the first of some archives.

    Args:
        folder: where they lie.
        archives: their names, of which :func:`is_archive` is true.
    """
    path, place = shlex.quote(os.path.join(folder, archives[0])), shlex.quote(folder or ".")
    name = archives[0].lower()
    if name.endswith(".zip"):
        return f"unpack it with `unzip {path} -d {place}`"
    command = next(command for suffix, command in _UNPACKED_BY.items() if name.endswith(suffix))
    whole = f"unpack a data set with `tar -xf {path} -C {place}`"
    return f"{whole}, or make a plain tar shard with `{command} {path}`"


def temporary_path(path: Path) -> Path:
    """Where the content of ``path`` is written before it is renamed, by one writer at a time."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def _entered(path: Path, make: bool = False) -> Iterator[int]:
    """Descriptor of a folder that is reached through no symbolic link, to name files in."""
    root, *parts = Path(os.path.abspath(path)).parts
    place = Path(root)
    folder = os.open(place, _PASS)
    try:
        for part in parts:
            place /= part
            inner = _step(folder, part, place, make)
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def _step(folder: int, part: str, place: Path, make: bool) -> int:
    try:
        return os.open(part, _PASS, dir_fd=folder)
    except FileNotFoundError:
        if not make:
            raise
        with suppress(FileExistsError):  # another process was quicker
            os.mkdir(part, dir_fd=folder)
        return os.open(part, _PASS, dir_fd=folder)
    except OSError as error:
        raise _explained(error, place) from error


def _explained(error: OSError, place: Path) -> OSError:
    """What systems say of a link that must not be followed (no directory, too many links) says too little."""
    if not place.is_symlink():
        return error
    return OSError(errno.ELOOP, f"{place} is a symbolic link, and nothing is written through one")


def _checked_plain(descriptor: int, path: str | os.PathLike[str]) -> int:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{os.fspath(path)} is no plain file")
    return descriptor


def _flush(folder: int) -> None:
    # A descriptor that was opened to pass through cannot be flushed.
    readable = os.open(".", _FOLDER | os.O_RDONLY, dir_fd=folder)
    try:
        os.fsync(readable)
    finally:
        os.close(readable)
