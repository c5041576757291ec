"""Writes files atomically and never through a symbolic link.

A command writes into the folders that the user named, and nowhere else. These may be links, or lie behind
links: :func:`resolve_path` resolves them once, where a path enters the program. Everything below is reached
from the root folder by names that are no links. A link that somebody puts into a run folder therefore never
redirects a write. No race can defeat the check, because each folder is opened by its name within the folder
that is already open, and the file by its name within the last one. (Windows opens files by their paths alone:
there, all folders on the way are checked before, and a link that is put there in the meantime is followed.)

Functions that raise OSError are for those who handle it; the others, from :func:`write_atomically` on, raise
CannotWriteError.

Importing this module does not import torch.
"""

from __future__ import annotations

import errno
import os
import secrets
import shlex
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from rotnet_fast import system
from rotnet_fast.errors import ArgumentError, CannotWriteError
from rotnet_fast.plain import shown

_MORE_FILES = 4096
_UNPACKED_BY = {
    **dict.fromkeys((".tar.gz", ".tgz"), "gunzip"),
    **dict.fromkeys((".tar.xz", ".txz"), "unxz"),
    **dict.fromkeys((".tar.bz2", ".tbz2"), "bunzip2"),
    **dict.fromkeys((".tar.zst", ".tzst"), "unzstd"),
}
"""Suffixes of compressed tar files -> the command that leaves the tar file."""


def named(path: str | os.PathLike[str], argument: str = "path") -> Path:
    """Expand ``~`` and ``~name`` at the beginning of a path to home folders, as a shell does.

    Every path of a user passes through here: those in settings by `rotnet_fast.settings`, arguments of
    functions in these functions.

    Args:
        path: the path that the user gave, which need not exist. ``~name`` of an unknown user stays as it is.
        argument: name of the argument, for errors.

    Raises:
        ArgumentError: the path is empty, which would mean the current folder, or no path at all.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentError(f"{argument} is {shown(path)}; give a path as a string or a Path")
    text = os.fspath(path)
    if not text:
        raise ArgumentError(f"{argument} is empty; give a path, such as . for the current folder")
    if not text.startswith("~"):
        return path if isinstance(path, Path) else Path(path)
    return Path(os.path.expanduser(text))


def resolve_path(path: Path) -> Path:
    """Resolve all symbolic links in a path; a path without any is returned unchanged.

    Args:
        path: the path that the user gave, see :func:`named`; it need not exist.
    """
    path = named(path)
    real = os.path.realpath(path)
    return path if real == os.path.abspath(path) else Path(real)


def make_folder(path: Path) -> None:
    """Create a folder and its parents if they are missing.

    Raises:
        OSError: it cannot be created, or a symbolic link is on the way or in its place.
    """
    for _ in range(10):
        # At this moment, another command may remove an empty parent that it created in vain.
        with suppress(FileNotFoundError), _entered(path, make=True):
            return
    with _entered(path, make=True):
        pass


@contextmanager
def replacing(path: Path, is_shared: bool = False) -> Iterator[BinaryIO]:
    """Write a file under a temporary name in its folder, and rename it once it is complete.

    The content is flushed to the disk before the renaming, and the folder after it. A crash or a loss of
    power at any moment therefore leaves the old content or the new. If the block ends early (an error,
    Ctrl-C), the old file, or none, is left. A link in the place of ``path`` is replaced, not followed.

    Args:
        path: file to create or replace, in an existing folder.
        is_shared: whether several processes may write this file at once: each then uses a temporary name of
            its own. Otherwise there must be one writer at a time (a run folder is locked), and the name is
            that of :func:`temporary_path`, so that the next write replaces what a killed process left behind.

    Yields:
        The temporary file, open for writing and reading.

    Raises:
        OSError: the disk is full, the folder is read-only or behind a symbolic link, ...
    """
    part = temporary_path(path)
    if is_shared:
        part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    with _entered(path.parent) as folder:
        temporary = _within(folder, part)
        try:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            # Not tempfile.mkstemp: its files are readable by their owner alone, and folders are shared.
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | system.NO_LINK | system.PLAIN_FILE
            with os.fdopen(os.open(temporary, flags, 0o666, dir_fd=folder), "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, _within(folder, path), src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise
        _flush(folder)


def link_file(source: str, path: Path) -> None:
    """Give a file a second name in its folder, replacing what has that name; as durable as :func:`replacing`.

    Args:
        source: present name of the file in that folder.
        path: the second name.

    Raises:
        OSError: the file system has no hard links, ...; ``path`` is unchanged.
    """
    with _entered(path.parent) as folder:
        temporary, existing = _within(folder, temporary_path(path)), _within(folder, path.with_name(source))
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        own = {} if os.link not in os.supports_follow_symlinks else {"follow_symlinks": False}
        os.link(existing, temporary, src_dir_fd=folder, dst_dir_fd=folder, **own)
        os.replace(temporary, _within(folder, path), src_dir_fd=folder, dst_dir_fd=folder)
        with suppress(FileNotFoundError):  # if both are the same file already, os.replace does nothing
            os.unlink(temporary, dir_fd=folder)
        _flush(folder)


def open_to_append(path: Path) -> int:
    """Open a plain file to read, append to and truncate; it is created if it is missing.

    Returns:
        Its descriptor.

    Raises:
        OSError: it cannot be opened, is a symbolic link or behind one, or is no plain file.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | system.NO_LINK | system.PLAIN_FILE
    with _entered(path.parent) as folder:
        try:
            descriptor = os.open(_within(folder, path), flags, 0o666, dir_fd=folder)
        except OSError as error:
            raise _explained(error, path) from error
    return _checked_plain(descriptor, path)


def open_plain(path: str | os.PathLike[str]) -> int:
    """Open a plain file to read, following links; this never blocks, whatever the file is.

    Returns:
        Its descriptor.

    Raises:
        OSError: it cannot be opened, or is a FIFO, a device or the like.
    """
    return _checked_plain(os.open(path, os.O_RDONLY | system.PLAIN_FILE), path)


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
    limit, most = system.most_open_files()
    more = max(_MORE_FILES, 4 * limit)
    if most is not None:
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
    """Temporary name under which a single writer writes ``path``."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def _entered(path: Path, make: bool = False) -> Iterator[int | None]:
    """Context with the descriptor of a folder that is reached through no symbolic link; None on Windows."""
    root, *parts = Path(os.path.abspath(path)).parts
    place = Path(root)
    if not system.HAS_FOLDER_DESCRIPTORS:
        for part in parts:
            place /= part
            _check_step(place, make)
        yield None
        return
    folder = os.open(place, system.PASSED_FOLDER)
    try:
        for part in parts:
            place /= part
            inner = _step(folder, part, place, make)
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def _check_step(place: Path, make: bool) -> None:
    if make and not place.exists():
        with suppress(FileExistsError):  # another process was quicker
            place.mkdir()
    if place.is_symlink():
        raise _explained(OSError(), place)
    os.scandir(place).close()  # raises what the system says of what is no folder


def _within(folder: int | None, path: Path) -> str:
    """What a file is opened by: its name beside the descriptor of its folder, or else its path."""
    return str(path) if folder is None else path.name


def _step(folder: int, part: str, place: Path, make: bool) -> int:
    try:
        return os.open(part, system.PASSED_FOLDER, dir_fd=folder)
    except FileNotFoundError:
        if not make:
            raise
        with suppress(FileExistsError):  # another process was quicker
            os.mkdir(part, dir_fd=folder)
        return os.open(part, system.PASSED_FOLDER, dir_fd=folder)
    except OSError as error:
        raise _explained(error, place) from error


def _explained(error: OSError, place: Path) -> OSError:
    """Explain the system's errors for a link that must not be followed (no directory, too many links)."""
    if not place.is_symlink():
        return error
    return OSError(errno.ELOOP, f"{place} is a symbolic link, and nothing is written through links")


def _checked_plain(descriptor: int, path: str | os.PathLike[str]) -> int:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{os.fspath(path)} is no plain file")
    return descriptor


_CANNOT_FLUSH = (errno.EINVAL, errno.EBADF, errno.ENOTSUP)
"""What some file systems, of networks and virtual machines, answer for any folder."""


def _flush(folder: int | None) -> None:
    if folder is None:  # which cannot be flushed there
        return
    # A descriptor that was opened to pass through cannot be flushed.
    readable = os.open(".", system.LISTED_FOLDER, dir_fd=folder)
    try:
        os.fsync(readable)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise
    finally:
        os.close(readable)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Replace the file at ``path``; see :func:`replacing`. There must be one writer at a time.

    Raises:
        CannotWriteError: the disk is full, the folder is read-only, ...; ``path`` is unchanged.
    """
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise cannot_write(path, error) from error


def link_atomically(source: Path, path: Path) -> None:
    """Give a file a second name in its folder, replacing what has that name.

    This makes a hard link, because writing the same content twice takes twice as long, or a copy if the file
    system has no hard links. Neither file is ever written to again, only replaced.

    Raises:
        CannotWriteError: the disk is full, the folder is read-only, ...; ``path`` is unchanged.
    """
    try:
        try:
            link_file(source.name, path)
        except OSError:
            write_atomically(path, source.read_bytes())
    except OSError as error:
        raise cannot_write(path, error) from error


def ensure_folder(path: Path) -> None:
    """Create a folder and its parents if they are missing; see :func:`make_folder`.

    Raises:
        CannotWriteError: it cannot be created, or a symbolic link is in the way.
    """
    try:
        make_folder(path)
    except OSError as error:
        raise cannot_write(path, error) from error


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, which is created if it is missing.

    Raises:
        CannotWriteError: the disk is full, a symbolic link is in the way, ...
    """
    try:
        with os.fdopen(open_to_append(path), "a") as file:
            file.write(line + "\n")
    except OSError as error:
        raise cannot_write(path, error) from error


def flush_length(path: Path) -> int:
    """Flush a file to the disk and return its length in bytes; it is created if it is missing.

    Raises:
        CannotWriteError: see :func:`append_line`.
    """
    try:
        with os.fdopen(open_to_append(path), "ab") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size
    except OSError as error:
        raise cannot_write(path, error) from error


def cut_off(path: Path, length: int) -> None:
    """Truncate a file to ``length`` bytes if it is longer; it is created if it is missing.

    Raises:
        CannotWriteError: see :func:`append_line`.
    """
    try:
        with os.fdopen(open_to_append(path), "ab") as file:
            if os.fstat(file.fileno()).st_size > length:
                file.truncate(length)
    except OSError as error:
        raise cannot_write(path, error) from error


_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EFBIG: "raise the limit of file sizes with ulimit -f",
    errno.EDQUOT: "remove some of your files there",
    errno.EACCES: "get permission to write there",
    errno.EPERM: "get permission to write there",
    errno.ELOOP: "replace the link by a file or folder of its own",
}
"""Remedies for a failed write, besides choosing another folder."""


def cannot_write(path: Path | str, error: OSError, flag: str = "--output") -> CannotWriteError:
    """Make the error that reports a failed write.

    Args:
        flag: chooses another folder.
    """
    if is_out_of_descriptors(error):
        return CannotWriteError(f"cannot write {path}, {out_of_descriptors(error)}")
    reason = error.strerror or str(error)
    remedy = f"{_REMEDIES[error.errno]}, or " if error.errno in _REMEDIES else ""
    return CannotWriteError(f"cannot write {path}: {reason}; {remedy}choose another folder with {flag}")
