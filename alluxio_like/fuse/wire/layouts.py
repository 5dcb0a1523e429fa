"""The numbers and structs of the kernel's FUSE protocol, as `struct.Struct`s, little-endian.

Owns the one description of each struct: its C name, its fields in order, and from it the Struct. What a request means is
requests.py's; what an answer looks like as a whole is replies.py's. A field named `_` is padding: it is no value when unpacking
and zero when packing. Fields that hold a struct are bytes (`88s`), packed by that struct. Only what little-endian machines with
64 bits use is here; the protocol is the same on all of them. Constants carry the kernel's names without FUSE_ in front.

Written after the kernel's include/uapi/linux/fuse.h of protocol 7.45; a test compares it with the header that is installed.
Immutable; safe from any thread.
"""

import struct

KERNEL_VERSION = 7
KERNEL_MINOR_VERSION = 45
"""The newest protocol that these layouts follow; a kernel with an older one speaks that."""
ROOT_ID = 1
MIN_READ_BUFFER = 8192
UNIQUE_RESEND = 1 << 63
"""In the `unique` of a request that is sent again."""

# Opcodes

LOOKUP = 1
FORGET = 2
GETATTR = 3
SETATTR = 4
READLINK = 5
SYMLINK = 6
MKNOD = 8
MKDIR = 9
UNLINK = 10
RMDIR = 11
RENAME = 12
LINK = 13
OPEN = 14
READ = 15
WRITE = 16
STATFS = 17
RELEASE = 18
FSYNC = 20
SETXATTR = 21
GETXATTR = 22
LISTXATTR = 23
REMOVEXATTR = 24
FLUSH = 25
INIT = 26
OPENDIR = 27
READDIR = 28
RELEASEDIR = 29
FSYNCDIR = 30
GETLK = 31
SETLK = 32
SETLKW = 33
ACCESS = 34
CREATE = 35
INTERRUPT = 36
BMAP = 37
DESTROY = 38
IOCTL = 39
POLL = 40
NOTIFY_REPLY = 41
BATCH_FORGET = 42
FALLOCATE = 43
READDIRPLUS = 44
RENAME2 = 45
LSEEK = 46
COPY_FILE_RANGE = 47
SETUPMAPPING = 48
REMOVEMAPPING = 49
SYNCFS = 50
TMPFILE = 51
STATX = 52
COPY_FILE_RANGE_64 = 53

UNANSWERED = frozenset({FORGET, BATCH_FORGET, INTERRUPT, DESTROY, NOTIFY_REPLY})
"""Requests that get no answer. (DESTROY and INTERRUPT may get one; nothing waits for it.)"""

# Notifications

NOTIFY_POLL = 1
NOTIFY_INVAL_INODE = 2
NOTIFY_INVAL_ENTRY = 3
NOTIFY_STORE = 4
NOTIFY_RETRIEVE = 5
NOTIFY_DELETE = 6
NOTIFY_RESEND = 7
NOTIFY_INC_EPOCH = 8
NOTIFY_PRUNE = 9
EXPIRE_ONLY = 1 << 0

# Flags of INIT; bits 32 to 63 travel as flags2

ASYNC_READ = 1 << 0
POSIX_LOCKS = 1 << 1
FILE_OPS = 1 << 2
ATOMIC_O_TRUNC = 1 << 3
EXPORT_SUPPORT = 1 << 4
BIG_WRITES = 1 << 5
DONT_MASK = 1 << 6
SPLICE_WRITE = 1 << 7
SPLICE_MOVE = 1 << 8
SPLICE_READ = 1 << 9
FLOCK_LOCKS = 1 << 10
HAS_IOCTL_DIR = 1 << 11
AUTO_INVAL_DATA = 1 << 12
DO_READDIRPLUS = 1 << 13
READDIRPLUS_AUTO = 1 << 14
ASYNC_DIO = 1 << 15
WRITEBACK_CACHE = 1 << 16
NO_OPEN_SUPPORT = 1 << 17
PARALLEL_DIROPS = 1 << 18
HANDLE_KILLPRIV = 1 << 19
POSIX_ACL = 1 << 20
ABORT_ERROR = 1 << 21
MAX_PAGES = 1 << 22
CACHE_SYMLINKS = 1 << 23
NO_OPENDIR_SUPPORT = 1 << 24
EXPLICIT_INVAL_DATA = 1 << 25
MAP_ALIGNMENT = 1 << 26
SUBMOUNTS = 1 << 27
HANDLE_KILLPRIV_V2 = 1 << 28
SETXATTR_EXT = 1 << 29
INIT_EXT = 1 << 30
SECURITY_CTX = 1 << 32
HAS_INODE_DAX = 1 << 33
CREATE_SUPP_GROUP = 1 << 34
HAS_EXPIRE_ONLY = 1 << 35
DIRECT_IO_ALLOW_MMAP = 1 << 36
PASSTHROUGH = 1 << 37
NO_EXPORT_SUPPORT = 1 << 38
HAS_RESEND = 1 << 39
ALLOW_IDMAP = 1 << 40
OVER_IO_URING = 1 << 41
REQUEST_TIMEOUT = 1 << 42

# Flags of answers and requests

FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_NONSEEKABLE = 1 << 2
FOPEN_CACHE_DIR = 1 << 3
FOPEN_STREAM = 1 << 4
FOPEN_NOFLUSH = 1 << 5
FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6
FOPEN_PASSTHROUGH = 1 << 7

FATTR_MODE = 1 << 0
FATTR_UID = 1 << 1
FATTR_GID = 1 << 2
FATTR_SIZE = 1 << 3
FATTR_ATIME = 1 << 4
FATTR_MTIME = 1 << 5
FATTR_FH = 1 << 6
FATTR_ATIME_NOW = 1 << 7
FATTR_MTIME_NOW = 1 << 8
FATTR_LOCKOWNER = 1 << 9
FATTR_CTIME = 1 << 10
FATTR_KILL_SUIDGID = 1 << 11

RELEASE_FLUSH = 1 << 0
RELEASE_FLOCK_UNLOCK = 1 << 1
GETATTR_FH = 1 << 0
LK_FLOCK = 1 << 0
WRITE_CACHE = 1 << 0
WRITE_LOCKOWNER = 1 << 1
WRITE_KILL_SUIDGID = 1 << 2
READ_LOCKOWNER = 1 << 1
IOCTL_COMPAT = 1 << 0
IOCTL_UNRESTRICTED = 1 << 1
IOCTL_RETRY = 1 << 2
IOCTL_32BIT = 1 << 3
IOCTL_DIR = 1 << 4
IOCTL_COMPAT_X32 = 1 << 5
IOCTL_MAX_IOV = 256
POLL_SCHEDULE_NOTIFY = 1 << 0
FSYNC_FDATASYNC = 1 << 0
ATTR_SUBMOUNT = 1 << 0
ATTR_DAX = 1 << 1
OPEN_KILL_SUIDGID = 1 << 0
SETXATTR_ACL_KILL_SGID = 1 << 0

# Structs

LAYOUTS: dict[str, tuple[tuple[str, str], ...]] = {}
"""The fields of each struct by its C name: (name, format)."""


def _describe(c_name: str, *parts: str) -> struct.Struct:
    """A struct of `name format` pairs, several in a string."""
    words = " ".join(parts).split()
    fields = tuple(zip(words[::2], words[1::2], strict=True))
    LAYOUTS[c_name] = fields
    return struct.Struct("<" + "".join(code for _, code in fields))


IN_HEADER = _describe(
    "fuse_in_header", "len I opcode I unique Q nodeid Q uid I gid I pid I total_extlen H _ 2x"
)  # total_extlen: of what stands behind the body, in units of 8 bytes
OUT_HEADER = _describe("fuse_out_header", "len I error i unique Q")

ATTR = _describe(
    "fuse_attr",
    "ino Q size Q blocks Q atime Q mtime Q ctime Q atimensec I mtimensec I ctimensec I",
    "mode I nlink I uid I gid I rdev I blksize I flags I",
)
KSTATFS = _describe("fuse_kstatfs", "blocks Q bfree Q bavail Q files Q ffree Q bsize I namelen I frsize I _ 4x _ 24x")
FILE_LOCK = _describe("fuse_file_lock", "start Q end Q type I pid I")
SX_TIME = _describe("fuse_sx_time", "tv_sec q tv_nsec I _ 4x")
SX_STAT = _describe(
    "fuse_statx",
    "mask I blksize I attributes Q nlink I uid I gid I mode H _ 2x ino Q size Q blocks Q attributes_mask Q",
    "atime 16s btime 16s ctime 16s mtime 16s rdev_major I rdev_minor I dev_major I dev_minor I _ 112x",
)

INIT_IN = _describe("fuse_init_in", "major I minor I max_readahead I flags I flags2 I _ 44x")
INIT_IN_SHORT = struct.Struct("<IIII")
"""What kernels before protocol 7.36 send."""
INIT_OUT = _describe(
    "fuse_init_out",
    "major I minor I max_readahead I flags I max_background H congestion_threshold H max_write I time_gran I",
    "max_pages H map_alignment H flags2 I max_stack_depth I request_timeout H _ 22x",
)

ENTRY_OUT = _describe(
    "fuse_entry_out", "nodeid Q generation Q entry_valid Q attr_valid Q entry_valid_nsec I attr_valid_nsec I attr 88s"
)
ATTR_OUT = _describe("fuse_attr_out", "attr_valid Q attr_valid_nsec I _ 4x attr 88s")
STATX_OUT = _describe("fuse_statx_out", "attr_valid Q attr_valid_nsec I flags I _ 16x stat 256s")
OPEN_OUT = _describe("fuse_open_out", "fh Q open_flags I backing_id i")
WRITE_OUT = _describe("fuse_write_out", "size I _ 4x")
GETXATTR_OUT = _describe("fuse_getxattr_out", "size I _ 4x")
LK_OUT = _describe("fuse_lk_out", "lk 24s")
STATFS_OUT = _describe("fuse_statfs_out", "st 80s")
BMAP_OUT = _describe("fuse_bmap_out", "block Q")
IOCTL_OUT = _describe("fuse_ioctl_out", "result i flags I in_iovs I out_iovs I")
POLL_OUT = _describe("fuse_poll_out", "revents I _ 4x")
LSEEK_OUT = _describe("fuse_lseek_out", "offset Q")
COPY_FILE_RANGE_OUT = _describe("fuse_copy_file_range_out", "bytes_copied Q")
DIRENT = _describe("fuse_dirent", "ino Q off Q namelen I type I")

FORGET_IN = _describe("fuse_forget_in", "nlookup Q")
FORGET_ONE = _describe("fuse_forget_one", "nodeid Q nlookup Q")
BATCH_FORGET_IN = _describe("fuse_batch_forget_in", "count I _ 4x")
GETATTR_IN = _describe("fuse_getattr_in", "getattr_flags I _ 4x fh Q")
STATX_IN = _describe("fuse_statx_in", "getattr_flags I _ 4x fh Q sx_flags I sx_mask I")
SETATTR_IN = _describe(
    "fuse_setattr_in",
    "valid I _ 4x fh Q size Q lock_owner Q atime Q mtime Q ctime Q atimensec I mtimensec I ctimensec I",
    "mode I _ 4x uid I gid I _ 4x",
)
MKNOD_IN = _describe("fuse_mknod_in", "mode I rdev I umask I _ 4x")
MKDIR_IN = _describe("fuse_mkdir_in", "mode I umask I")
RENAME_IN = _describe("fuse_rename_in", "newdir Q")
RENAME2_IN = _describe("fuse_rename2_in", "newdir Q flags I _ 4x")
LINK_IN = _describe("fuse_link_in", "oldnodeid Q")
OPEN_IN = _describe("fuse_open_in", "flags I open_flags I")
CREATE_IN = _describe("fuse_create_in", "flags I mode I umask I open_flags I")
RELEASE_IN = _describe("fuse_release_in", "fh Q flags I release_flags I lock_owner Q")
FLUSH_IN = _describe("fuse_flush_in", "fh Q _ 4x _ 4x lock_owner Q")
READ_IN = _describe("fuse_read_in", "fh Q offset Q size I read_flags I lock_owner Q flags I _ 4x")
WRITE_IN = _describe("fuse_write_in", "fh Q offset Q size I write_flags I lock_owner Q flags I _ 4x")
FSYNC_IN = _describe("fuse_fsync_in", "fh Q fsync_flags I _ 4x")
SETXATTR_IN = _describe("fuse_setxattr_in", "size I flags I setxattr_flags I _ 4x")
SETXATTR_IN_SHORT = struct.Struct("<II")
"""What the kernel sends unless SETXATTR_EXT was agreed on."""
GETXATTR_IN = _describe("fuse_getxattr_in", "size I _ 4x")
LK_IN = _describe("fuse_lk_in", "fh Q owner Q lk 24s lk_flags I _ 4x")
ACCESS_IN = _describe("fuse_access_in", "mask I _ 4x")
INTERRUPT_IN = _describe("fuse_interrupt_in", "unique Q")
BMAP_IN = _describe("fuse_bmap_in", "block Q blocksize I _ 4x")
IOCTL_IN = _describe("fuse_ioctl_in", "fh Q flags I cmd I arg Q in_size I out_size I")
POLL_IN = _describe("fuse_poll_in", "fh Q kh Q flags I events I")
FALLOCATE_IN = _describe("fuse_fallocate_in", "fh Q offset Q length Q mode I _ 4x")
LSEEK_IN = _describe("fuse_lseek_in", "fh Q offset Q whence I _ 4x")
COPY_FILE_RANGE_IN = _describe("fuse_copy_file_range_in", "fh_in Q off_in Q nodeid_out Q fh_out Q off_out Q len Q flags Q")
SYNCFS_IN = _describe("fuse_syncfs_in", "_ 8x")
RETRIEVE_IN = _describe("fuse_notify_retrieve_in", "_ 8x offset Q size I _ 4x _ 8x _ 8x")

POLL_WAKEUP_OUT = _describe("fuse_notify_poll_wakeup_out", "kh Q")
INVAL_INODE_OUT = _describe("fuse_notify_inval_inode_out", "ino Q off q len q")
INVAL_ENTRY_OUT = _describe("fuse_notify_inval_entry_out", "parent Q namelen I flags I")
DELETE_OUT = _describe("fuse_notify_delete_out", "parent Q child Q namelen I _ 4x")
STORE_OUT = _describe("fuse_notify_store_out", "nodeid Q offset Q size I _ 4x")
RETRIEVE_OUT = _describe("fuse_notify_retrieve_out", "notify_unique Q nodeid Q offset Q size I _ 4x")
PRUNE_OUT = _describe("fuse_notify_prune_out", "count I _ 4x _ 8x")

EXT_HEADER = _describe("fuse_ext_header", "size I type I")
BACKING_MAP = _describe("fuse_backing_map", "fd i flags I _ 8x")

# What the device's descriptor understands; the encoding of _IOR and _IOW on all machines but alpha, mips, powerpc and sparc

DEV_IOC_CLONE = 2 << 30 | 4 << 16 | 229 << 8 | 0
DEV_IOC_BACKING_OPEN = 1 << 30 | BACKING_MAP.size << 16 | 229 << 8 | 1
DEV_IOC_BACKING_CLOSE = 1 << 30 | 4 << 16 | 229 << 8 | 2
