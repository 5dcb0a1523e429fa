"""Extended attributes: what programs hang on an inode.

Owns their limits, which are Linux's. They live in the namespace alone and go with their inode. Access control lists are such
attributes too, and one thing with the mode (acls.py). Functions over a transaction.
"""

import stat

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.core import acls, changes, records, tables
from alluxio_like.master.core.changes import Outcome
from alluxio_like.master.core.records import Inode
from alluxio_like.master.core.tables import Edit
from alluxio_like.types import InodeId, Kind, to_str

MAX_NAME_BYTES = 255
MAX_VALUE_BYTES = 65_536
MAX_NAMES_BYTES = 65_536
"""Of all names of one inode, with a byte for the end of each: a list of them must fit listxattr(2)."""


def get_xattrs(txn: ReadTransaction, inode: InodeId) -> dict[bytes, bytes]:
    """All of an inode's. Raises NotFound."""
    if not tables.get_inode(txn, inode).flags & records.XATTRS:
        return {}
    return {key[9:]: value for key, value in txn.scan(records.xattr_key(inode, b""), records.xattr_stop(inode))}


def set_xattr(
    txn: WriteTransaction,
    inode: InodeId,
    name: bytes,
    value: bytes | None,
    now_ns: int,
    *,
    create: bool,
    replace: bool,
    kill_sgid: bool = False,
) -> Outcome:
    """Set one, or take it away (None). `create`: it must not be there, `replace`: it must be. `kill_sgid`: whoever sets an access
    control list may not keep the set-group-id bit.

    Raises NotFound, ReadOnly, AlreadyExists, NoData, InvalidArgument, NameTooLong and NoSpace (too many names).
    """
    record = changes.get_writable(txn, inode)
    if not name or b"\0" in name:
        raise errors.InvalidArgument("such a name cannot be")
    if len(name) > MAX_NAME_BYTES:
        raise errors.NameTooLong(f"the name of an extended attribute has at most {MAX_NAME_BYTES} bytes", subject=to_str(name))
    if value is not None and len(value) > MAX_VALUE_BYTES:
        raise errors.InvalidArgument(f"an extended attribute has at most {MAX_VALUE_BYTES} bytes", subject=to_str(name))
    mode = record.mode
    if value is not None and acls.is_list(name):
        value, mode = _check_list(record, name, value, kill_sgid=kill_sgid)
        if value is None and not txn.get(records.xattr_key(inode, name)):
            edit = Edit(txn, now_ns)
            edit.change(inode, record, record._replace(ctime_ns=now_ns, mode=mode))
            edit.finish()
            return Outcome(inode, changes.list_recalls(txn, inode, record))
    there = get_xattrs(txn, inode)
    if create and name in there:
        raise errors.AlreadyExists("it has that attribute", subject=to_str(name))
    if name not in there and (replace or value is None):
        raise errors.NoData("it has no such attribute", subject=to_str(name))
    if value is None:
        del there[name]
        txn.delete(records.xattr_key(inode, name))
    else:
        there[name] = value
        if sum(len(one) + 1 for one in there) > MAX_NAMES_BYTES:
            raise errors.NoSpace("it has no room for more attributes: take others away", subject=to_str(name))
        txn.put(records.xattr_key(inode, name), value)
    edit = Edit(txn, now_ns)
    flags = record.flags | records.XATTRS if there else record.flags & ~records.XATTRS
    edit.change(inode, record, record._replace(ctime_ns=now_ns, flags=flags, mode=mode))
    edit.finish()
    return Outcome(inode, changes.list_recalls(txn, inode, record))


def _check_list(record: Inode, name: bytes, value: bytes, *, kill_sgid: bool) -> tuple[bytes | None, int]:
    """What is kept of an access control list that is set (None: the mode says it all), and the mode then."""
    entries = acls.parse(value)
    if name == acls.DEFAULT:
        if record.kind is not Kind.DIRECTORY:
            raise errors.InvalidArgument("only directories have default access control lists")
        return acls.pack(entries), record.mode
    if record.kind is Kind.SYMLINK:
        raise errors.InvalidArgument("a symbolic link has no access control list: set that of what it leads to")
    mode = acls.get_mode(entries, record.mode)
    if kill_sgid:
        mode &= ~stat.S_ISGID
    return (acls.pack(entries) if acls.adds_to_mode(entries) else None), mode
