"""Access control lists: what they say of a mode, and a mode of them; what a new inode inherits.

Owns the meaning of the two extended attributes that hold them, in the kernel's form (version 2). Who may do what by them,
and who may set them, is checked by the kernel. A list that says no more than a mode is not kept: no attribute stands for it. Pure
functions.
"""

import struct
from typing import Final, NamedTuple

from alluxio_like import errors

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"
"""A directory's: what is made in it inherits it."""

_VERSION = 2
_HEAD = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32
_ONCE = (_USER_OBJ, _GROUP_OBJ, _OTHER)
_NAMED = (_USER, _GROUP)
_ORDER = (_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER)


class Entry(NamedTuple):
    """One line: whom it is about, what they may (rwx), and the user's or group's number where one is named."""

    tag: int
    permissions: int
    number: int


def parse(value: bytes) -> tuple[Entry, ...]:
    """The lines of a list. Raises InvalidArgument for one that is none."""
    if len(value) < _HEAD.size or (len(value) - _HEAD.size) % _ENTRY.size or _HEAD.unpack_from(value)[0] != _VERSION:
        raise errors.InvalidArgument("an access control list that is not well formed: setfacl makes such lists")
    entries = tuple(Entry(*fields) for fields in _ENTRY.iter_unpack(value[_HEAD.size :]))
    tags = [entry.tag for entry in entries]
    is_ordered = all(tag in _ORDER for tag in tags) and tags == sorted(tags, key=_ORDER.index)
    has_each_once = all(tags.count(tag) == 1 for tag in _ONCE) and tags.count(_MASK) <= 1
    needs_mask = any(tag in _NAMED for tag in tags)
    if not is_ordered or not has_each_once or (needs_mask and _MASK not in tags) or any(e.permissions & ~7 for e in entries):
        raise errors.InvalidArgument(
            "an access control list with lines too many, too few or out of order: setfacl makes such lists"
        )
    return entries


def pack(entries: tuple[Entry, ...]) -> bytes:
    return _HEAD.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def is_list(name: bytes) -> bool:
    """Whether an extended attribute is an access control list."""
    return name in (ACCESS, DEFAULT)


def adds_to_mode(entries: tuple[Entry, ...]) -> bool:
    """Whether a list says more than a mode can."""
    return any(entry.tag not in _ONCE for entry in entries)


def get_mode(entries: tuple[Entry, ...], mode: int) -> int:
    """The mode of an inode that a list is set for: its group's bits are the mask, if there is one."""
    found = {entry.tag: entry.permissions for entry in entries}
    group = found.get(_MASK, found[_GROUP_OBJ])
    return mode & ~0o777 | found[_USER_OBJ] << 6 | group << 3 | found[_OTHER]


def set_mode(entries: tuple[Entry, ...], mode: int) -> tuple[Entry, ...]:
    """A list after chmod: the mask takes the group's bits, if there is one."""
    given = _get_given(entries, mode)
    return tuple(entry._replace(permissions=given.get(entry.tag, entry.permissions)) for entry in entries)


def inherit(entries: tuple[Entry, ...], mode: int) -> tuple[tuple[Entry, ...], int]:
    """The list and mode of what is made with a mode (no umask applied) in a directory with that default list: each of the two
    takes away what the other does not have."""
    given = _get_given(entries, mode)
    made = tuple(entry._replace(permissions=entry.permissions & given.get(entry.tag, 7)) for entry in entries)
    return made, get_mode(made, mode)


def _get_given(entries: tuple[Entry, ...], mode: int) -> dict[int, int]:
    """The permissions in a list that a mode stands for."""
    group = _MASK if any(entry.tag == _MASK for entry in entries) else _GROUP_OBJ
    return {_USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, _OTHER: mode & 7}
