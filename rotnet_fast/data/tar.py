"""Locate the regular files of an uncompressed tar archive by reading only its headers.

Python's tarfile is not used, because it trusts the headers: it reads a name of gigabytes into memory,
recurses for every header that extends the next one, and takes a header that it cannot read for the end. Here
each step advances by at least a block and reads little, and anything that is not understood is an error.
"""

from __future__ import annotations

import os
import shlex
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from rotnet_fast.data import kinds
from rotnet_fast.errors import DataError
from rotnet_fast.system import read_at

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_ENCODING = ("utf-8", "surrogateescape")
_MOST_EXTENSIONS = 8  # tar writes at most three headers before that of a file
_LONGEST_EXTENSION = 1 << 20  # names of files have at most 4096 bytes, but their attributes are longer
_LONGEST_PADDING = 1 << 24  # tar pads its last record, which has 10240 bytes by default
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENSIONS = (*_PAX, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
_WITHOUT_DATA = (*_LINKS, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)


@dataclass(frozen=True)
class Member:
    """Describe a file inside an archive: its name, and the offset and size of its contents in bytes.

    A hard link has the contents of the file that it names. ``is_link``: it names none before it, or is a
    symbolic link, which may lead anywhere; it then has no contents.
    """

    name: str
    offset: int
    size: int
    is_link: bool = False


@dataclass
class _Extension:
    """Accumulate what the headers before that of a file say about it, and count them."""

    name: str | None = None
    size: int | None = None
    link: str | None = None
    count: int = 0


class _DamageError(ValueError):
    """Report a header that cannot occur in an intact archive."""


def list_members(file: BinaryIO) -> list[Member]:
    """Return every file and link of an archive, in order, without folders and the like.

    Memory and time are proportional to the number of headers, whatever they claim.

    Raises:
        DataError: the archive is damaged, truncated or compressed, contains sparse files, or is followed by
            more data.
    """
    members: list[Member] = []
    by_name: dict[str, Member] = {}
    length = os.fstat(file.fileno()).st_size
    extension = _Extension()
    position = 0
    try:
        while (header := _header_at(file, position)) is not None:
            start = position + _BLOCK
            if header.type in _EXTENSIONS:
                size = header.size
                _extend(extension, header.type, _extension_data(file, header, start))
            else:
                name = header.name if extension.name is None else extension.name
                size = header.size if extension.size is None else extension.size
                if header.type == tarfile.GNUTYPE_SPARSE:
                    raise _sparse(file, name)
                if header.type in _WITHOUT_DATA:
                    size = 0
                if not 0 <= size <= length - start:
                    raise _DamageError(f"{name} has {size} bytes, but only {length - start} are left")
                if header.type in (*_PLAIN, *_LINKS):
                    member = Member(name, start, size, header.type in _LINKS)
                    if header.type == tarfile.LNKTYPE:
                        target = header.linkname if extension.link is None else extension.link
                        member = replace(by_name.get(target, member), name=name)
                    members.append(member)
                    by_name[name] = member
                extension = _Extension()
            position = start + _whole_blocks(size)
        if extension.count:
            raise _DamageError("no file follows the last header")
    except _SparseError as error:
        raise _sparse(file, str(error)) from None
    except (tarfile.HeaderError, _DamageError) as error:
        if position == 0:
            raise DataError(_no_tar(file, error)) from error
        raise DataError(
            f"{file.name} is damaged or truncated: {members[-1].name if members else 'its start'} is not "
            f"followed by a file or the end of the archive ({error}); create or fetch it again, or remove it"
        ) from error
    _check_end(file, position)
    return members


def _no_tar(file: BinaryIO, error: Exception) -> str:
    """Return the error message for a file that does not start with a tar header."""
    first = read_at(file.fileno(), _BLOCK, 0)
    kind = "empty" if not first else kinds.image_kind(first) or kinds.not_read(first)
    problem = f"{file.name} cannot be read as a tar shard"
    if kind in kinds.PACKED:
        suffix, command = kinds.PACKED[kind]
        name = shlex.quote(file.name)
        commands = f"mv {name} {name}{suffix} && {command} {name}{suffix}"
        return f"{problem} because it is {kind}; unpack it with `{commands}`"
    if kind == kinds.UNKNOWN:
        return f"{problem} ({error}); create or fetch it again, or remove it"
    return f"{problem} because it is {kind}; create or fetch the shard again, or remove it"


def _header_at(file: BinaryIO, position: int) -> tarfile.TarInfo | None:
    """Read the header at a position and verify its checksum; return None for the zeros at the end."""
    block = read_at(file.fileno(), _BLOCK, position)
    return None if block == _ZEROS else tarfile.TarInfo.frombuf(block, *_ENCODING)


def _check_end(file: BinaryIO, position: int) -> None:
    """Check that only zeros follow an archive's end, because anything else would be lost silently."""
    rest = read_at(file.fileno(), _LONGEST_PADDING + 1, position)
    if len(rest) > _LONGEST_PADDING or rest.count(0) != len(rest):
        raise DataError(
            f"{file.name} continues after the end of its archive at byte {position}, as if tar files were "
            f"joined with cat, and the rest would be ignored; keep them as separate shards, or join them "
            f"with tar --concatenate"
        )


def _whole_blocks(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _extension_data(file: BinaryIO, header: tarfile.TarInfo, start: int) -> bytes:
    if not 0 <= header.size <= _LONGEST_EXTENSION:
        raise _DamageError(f"a header claims a name or attributes of {header.size} bytes")
    return read_at(file.fileno(), header.size, start)


def _extend(extension: _Extension, kind: bytes, data: bytes) -> None:
    extension.count += kind != tarfile.XGLTYPE  # global headers do not belong to a file
    if extension.count > _MOST_EXTENSIONS:
        raise _DamageError(f"more than {_MOST_EXTENSIONS} headers precede one file")
    if kind == tarfile.GNUTYPE_LONGNAME:
        _set_name(extension, data.partition(b"\0")[0])
    elif kind == tarfile.GNUTYPE_LONGLINK:
        extension.link = _text(data.partition(b"\0")[0])
    elif kind in _PAX:
        for key, value in _pax_records(data):
            if key.startswith(b"GNU.sparse."):
                raise _SparseError(_text(value) if key == b"GNU.sparse.name" else "a file")
            if key not in (b"path", b"size", b"linkpath"):
                continue
            if kind == tarfile.XGLTYPE:
                raise _DamageError(f"a header gives all files the same {key.decode()}")
            if key == b"path":
                _set_name(extension, value)
            elif key == b"linkpath":
                extension.link = _text(value)
            else:
                extension.size = _number(value)


def _pax_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of ``LENGTH KEY=VALUE\\n`` records, where LENGTH counts the whole record."""
    position = 0
    while position < len(data):
        digits = data[position : position + 9].partition(b" ")[0]
        end = position + _number(digits)
        key, _, value = data[position + len(digits) + 1 : end].partition(b"=")
        if end > len(data) or not value.endswith(b"\n"):
            raise _DamageError("a header has a damaged list of attributes")
        yield key, value[:-1]
        position = end


def _set_name(extension: _Extension, name: bytes) -> None:
    text = _text(name)
    if b"\0" in name or extension.name not in (None, text):  # programs differ in which of two names they use
        raise _DamageError("a header has two names, or a zero byte in one")
    extension.name = text


def _text(name: bytes) -> str:
    return name.decode(*_ENCODING)


def _number(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 18:
        raise _DamageError(f"a header has {digits[:20]!r} instead of a number")
    return int(digits)


class _SparseError(ValueError):
    """Carry the name of a sparse file."""


def _sparse(file: BinaryIO, name: str) -> DataError:
    return DataError(
        f"{file.name}: {name} is stored as a sparse file, whose bytes are not contiguous; create the shard "
        f"without tar's option --sparse"
    )
