"""Failures of hdfs-native as errors of ours.

Owns the table of Java exceptions. The library tells few kinds of failures apart by class: the rest are RuntimeErrors whose text
is the name of its own error, and for what the NameNode refused also the name of the Java exception, in a fixed form
(`RPCError("java.class.Name", "text")`). Those two names are all that is read of a text. Pure functions; safe from any thread.
"""

import re

from alluxio_like import errors

_KIND = re.compile(r"(\w+)")
_JAVA = re.compile(r'(?:Fatal)?RPCError\("([\w.$]+)", "')
_HADOOP = "org.apache.hadoop."

_BY_JAVA: dict[str, type[errors.AlluxioLikeError]] = {
    _HADOOP + "security.AccessControlException": errors.StoreDenied,
    _HADOOP + "security.authorize.AuthorizationException": errors.StoreDenied,
    _HADOOP + "security.token.SecretManager$InvalidToken": errors.StoreDenied,
    "javax.security.sasl.SaslException": errors.StoreDenied,
    "org.ietf.jgss.GSSException": errors.StoreDenied,
    _HADOOP + "hdfs.protocol.DSQuotaExceededException": errors.NoSpace,
    _HADOOP + "hdfs.protocol.NSQuotaExceededException": errors.NoSpace,
    _HADOOP + "hdfs.protocol.QuotaByStorageTypeExceededException": errors.NoSpace,
    _HADOOP + "hdfs.protocol.ClusterStorageCapacityExceededException": errors.NoSpace,
    _HADOOP + "fs.ParentNotDirectoryException": errors.NotADirectory,
    _HADOOP + "fs.PathIsNotEmptyDirectoryException": errors.DirectoryNotEmpty,
    _HADOOP + "fs.InvalidPathException": errors.InvalidArgument,
    _HADOOP + "hdfs.protocol.FSLimitException$PathComponentTooLongException": errors.NameTooLong,
    _HADOOP + "hdfs.protocol.UnresolvedPathException": errors.NotFound,  # a symbolic link on the way
    _HADOOP + "hdfs.server.namenode.LeaseExpiredException": errors.Conflict,
}
_BY_KIND: dict[str, type[errors.AlluxioLikeError]] = {
    "SASLError": errors.StoreDenied,
    "GSSAPIError": errors.StoreDenied,
    "NoSASLMechanism": errors.StoreDenied,
    "ChecksumError": errors.StoreProtocol,
    "InvalidRPCResponse": errors.StoreProtocol,
    "InternalError": errors.StoreProtocol,
}


def convert_error(error: BaseException, subject: str, address: str) -> errors.AlluxioLikeError:
    """The error that a failure of the library means. What is not known counts as a store that cannot be reached now."""
    if isinstance(error, FileNotFoundError):
        return errors.NotFound("no such file or directory", subject=subject)
    if isinstance(error, UnicodeEncodeError):
        return errors.NotFound("HDFS has no names that are not UTF-8", subject=repr(subject))
    if isinstance(error, FileExistsError):
        return errors.AlreadyExists("it is there already, or being written", subject=subject)
    text = _shorten(str(error))
    if isinstance(error, NotImplementedError):
        return errors.Unsupported(f"hdfs-native cannot do that: {text}", subject=subject)
    if isinstance(error, OSError):
        return errors.StoreUnavailable(f"{address} cannot be reached: {text}", subject=subject)
    java = _JAVA.match(text)
    if java:
        return _BY_JAVA.get(java[1], errors.StoreUnavailable)(f"the NameNode says: {text[java.end() :]}", subject=subject)
    kind = _KIND.match(text)
    if kind and kind[1] == "DataTransferError":
        return errors.StoreUnavailable("no DataNode could do it", subject=subject)
    return _BY_KIND.get(kind[1] if kind else "", errors.StoreUnavailable)(f"hdfs-native says: {text}", subject=subject)


def _shorten(text: str) -> str:
    """The first line: a Java stack follows it, with its line breaks escaped where the text is a quoted one."""
    return text.partition("\n")[0].partition("\\n")[0][:300].replace('\\"', '"').rstrip('")')
