"""The options of a mount: their names, types, meanings, and which of them are secrets.

Owns the tables of options by scheme, the check of what a user gave, and the separation of secrets from what may be shown. Does
not use them: each store reads its own from `parse_options`. Pure functions over plain data; safe from any thread.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from alluxio_like import errors
from alluxio_like.ufs.references import check_reference, is_reference

OptionValue = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a scheme.

    `kind` is one of "text", "integer", "number", "switch", "choice", "url"; `choices` are there for the kind "choice". `default`
    says in words what holds where the option is not given; empty: nothing. A secret's value is never shown and is stored apart,
    or is the name of one (references.py).
    """

    name: str
    kind: str
    help: str
    secret: bool = False
    choices: tuple[str, ...] = ()
    default: str = ""

    @property
    def shown_kind(self) -> str:
        """What a value may be, for a person."""
        return " or ".join(self.choices) if self.choices else {"switch": "true or false", "url": "URL"}.get(self.kind, self.kind)


_COMMON = (
    Option("uid", "integer", "owner shown for everything below the mount", default="who mounted"),
    Option("gid", "integer", "group shown for everything below the mount", default="who mounted"),
    Option(
        "write",
        "text",
        "let programs write, and when a close returns: through (the store has it), back or back:N (N workers have it), "
        "cache (a worker has it; the store never gets it)",
        default="read-only",
    ),
)

_S3 = (
    Option("endpoint", "url", "the server's URL, such as https://s3.example.com:9000", default="AWS"),
    Option("region", "text", "the bucket's region", default="the AWS profile's or environment's, else us-east-1"),
    Option("profile", "text", "section of ~/.aws/config and ~/.aws/credentials to take credentials and region from"),
    Option("access_key", "text", "access key id", secret=True, default="what the AWS chain finds"),
    Option("secret_key", "text", "secret access key, together with access_key", secret=True),
    Option("session_token", "text", "session token of temporary credentials", secret=True),
    Option("role_arn", "text", "role to assume, with the credentials above or the web identity's token", default="none"),
    Option("external_id", "text", "what the role's owner wants to hear, together with role_arn"),
    Option("web_identity_token_file", "text", "file with a token to assume role_arn with; read again before it runs out"),
    Option("sts_endpoint", "url", "the server that gives roles", default="the endpoint, else AWS's"),
    Option("anonymous", "switch", "send unsigned requests, for public buckets", default="false"),
    Option(
        "addressing",
        "choice",
        "bucket in the path or in the host name",
        choices=("path", "virtual"),
        default="virtual on AWS, path where an endpoint is given",
    ),
    Option("ca_file", "text", "PEM file of the certificate authorities to trust for HTTPS", default="the system's"),
    Option("verify", "switch", "check the server's certificate", default="true"),
    Option("timeout_s", "number", "longest silence of the store within one request", default="a third of the I/O timeout"),
    Option(
        "conditional_writes",
        "choice",
        "whether the server minds If-Match and If-None-Match on writes; auto believes AWS and tries others out",
        choices=("auto", "yes", "no"),
        default="auto",
    ),
    Option("requester_pays", "switch", "accept that requests to a requester-pays bucket are billed to you", default="false"),
)

_FILE = (
    Option(
        "symlinks",
        "choice",
        "hide: leave symbolic links out; inside: show a relative link to a file below the mounted directory as that file",
        choices=("hide", "inside"),
        default="hide",
    ),
)

_CEPHFS = (
    Option("conf", "text", "Ceph's configuration file", default="/etc/ceph/ceph.conf where there is one"),
    Option("monitors", "text", "the monitors, HOST[:PORT] with commas between", default="those of the URI or of conf"),
    Option("user", "text", "Ceph user, without the client. before it", default="admin"),
    Option("keyring", "text", "file with the user's key", default="where Ceph's configuration says"),
    Option("key", "text", "the user's key itself", secret=True),
    Option("fs", "text", "name of the file system", default="that of the URI, else the cluster's default"),
    Option("mount_timeout_s", "number", "longest wait for the cluster when it is mounted", default="half the I/O timeout"),
)

_CONNECTION = (
    Option("ca_file", "text", "PEM file of the certificate authorities to trust for HTTPS", default="the system's"),
    Option("verify", "switch", "check the server's certificate", default="true"),
    Option("timeout_s", "number", "longest silence of the store within one request", default="a third of the I/O timeout"),
)

_GS = (
    Option("service_account_file", "text", "JSON key file of a service account, at the same path on every machine"),
    Option(
        "service_account_key",
        "text",
        "the same JSON itself",
        secret=True,
        default="what Google's library finds (application default credentials)",
    ),
    Option("access_token", "text", "OAuth access token, used as it is until it expires", secret=True),
    Option("anonymous", "switch", "send no credentials, for public buckets and emulators", default="false"),
    Option("user_project", "text", "project that is billed for requests to a requester-pays bucket"),
    Option("endpoint", "url", "the server's URL", default="https://storage.googleapis.com"),
    *_CONNECTION,
)

_AZ = (
    Option("account", "text", "storage account that has the container", default="AZURE_STORAGE_ACCOUNT_NAME"),
    Option("account_key", "text", "key of the account, in base64", secret=True, default="AZURE_STORAGE_ACCOUNT_KEY"),
    Option("sas_token", "text", "shared access signature (?sv=…)", secret=True, default="AZURE_STORAGE_SAS_TOKEN"),
    Option(
        "connection_string",
        "text",
        "account, endpoint and key in one",
        secret=True,
        default="AZURE_STORAGE_CONNECTION_STRING",
    ),
    Option("tenant_id", "text", "tenant of a service principal, together with client_id and client_secret"),
    Option("client_id", "text", "service principal, or (alone) user-assigned managed identity or workload identity"),
    Option(
        "client_secret",
        "text",
        "secret of the service principal",
        secret=True,
        default="without any credentials here or in the environment: what Azure's library finds",
    ),
    Option("anonymous", "switch", "send no credentials, for public containers", default="false"),
    Option("endpoint", "url", "the blob service's URL", default="https://ACCOUNT.blob.core.windows.net"),
    *_CONNECTION,
)

_HDFS = (
    Option("namenodes", "text", "HOST:PORT of each NameNode, separated by commas, of the nameservice that the URI names"),
    Option("config_dir", "text", "directory with core-site.xml and hdfs-site.xml", default="HADOOP_CONF_DIR, where that is set"),
    Option("user", "text", "user to act as, without Kerberos", default="HADOOP_USER_NAME, else the process's own"),
    Option("principal", "text", "Kerberos principal to act as", default="where config_dir asks for Kerberos: the ticket cache's"),
    Option("keytab", "text", "file with the principal's key, at the same path on every machine", default="a ticket from kinit"),
    Option("ticket_cache", "text", "Kerberos ticket cache, such as FILE:/run/krb5/job", default="KRB5CCNAME"),
    Option("use_datanode_hostname", "switch", "reach DataNodes by host name, not by the address they report", default="false"),
    Option(
        "timeout_s",
        "number",
        "longest silence of a DataNode in a read before the next replica is asked",
        default="a fifth of the I/O timeout",
    ),
)

_ATTRIBUTES = (
    Option(
        "attrs",
        "choice",
        "where owner, group, mode and mtime of files come from: mount: as the mount says; object: from the object's metadata, as "
        "s3fs, rclone and this program write them (a request more for each file)",
        choices=("mount", "object"),
        default="mount",
    ),
)

_SOURCES = (
    *("access_key", "profile"),
    *("service_account_file", "service_account_key", "access_token"),
    *("account_key", "sas_token", "connection_string", "client_id"),
)
"""Options that say where credentials come from, of which one can be given."""

_BY_SCHEME: dict[str, tuple[Option, ...]] = {
    "az": _AZ + _ATTRIBUTES + _COMMON,
    "cephfs": _CEPHFS + _COMMON,
    "file": _FILE + _COMMON,
    "gs": _GS + _ATTRIBUTES + _COMMON,
    "hdfs": _HDFS + _COMMON,
    "s3": _S3 + _ATTRIBUTES + _COMMON,
}


def list_schemes() -> tuple[str, ...]:
    """The schemes that can be mounted, sorted."""
    return tuple(sorted(_BY_SCHEME))


def describe_options(scheme: str) -> tuple[Option, ...]:
    """The options of a scheme, in the order in which a person wants to read them. Raises ConfigError for an unknown scheme."""
    options = _BY_SCHEME.get(scheme)
    if options is None:
        raise errors.ConfigError(f"unknown store {scheme}://; there are {', '.join(f'{s}://' for s in list_schemes())}")
    return options


def split_secrets(scheme: str, options: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Options as (public, secret), after checking all of them. Secrets that are named and not given (references.py) are public.

    Raises ConfigError for an unknown scheme or option or a value that cannot be one; the message never repeats a secret's value.
    """
    parse_options(scheme, options)
    names = get_secret_names(scheme)
    secret = {name: value for name, value in options.items() if name in names and not is_reference(value)}
    return {name: value for name, value in options.items() if name not in secret}, secret


def get_secret_names(scheme: str) -> frozenset[str]:
    """The options of a scheme that are secrets."""
    return frozenset(option.name for option in describe_options(scheme) if option.secret)


def change_options(scheme: str, options: Mapping[str, str], changes: Mapping[str, str]) -> dict[str, str]:
    """Options, secrets among them, with some given anew and those with an empty text taken away; unchecked otherwise.

    Raises ConfigError for the name of an option that there is not.
    """
    known = {option.name for option in describe_options(scheme)}
    for name in changes:
        if name not in known:
            raise errors.ConfigError(_describe_unknown(scheme, name, tuple(known)), subject=name)
    return {name: text for name, text in {**options, **changes}.items() if text}


def parse_options(scheme: str, options: Mapping[str, str]) -> dict[str, OptionValue]:
    """Options by name with their values in the option's type; only those that were given.

    Raises ConfigError with one line that says what is wrong and what would be right.
    """
    known = {option.name: option for option in describe_options(scheme)}
    parsed: dict[str, OptionValue] = {}
    for name, text in options.items():
        option = known.get(name)
        if option is None:
            raise errors.ConfigError(_describe_unknown(scheme, name, tuple(known)), subject=name)
        try:
            if option.secret and is_reference(text):
                check_reference(text)
            parsed[name] = _PARSERS[option.kind](option, text)
        except ValueError as error:
            shown = "the value given" if option.secret else repr(text)
            raise errors.ConfigError(f"option {name}: {shown} is not {error}", subject=name) from None
    _check_combinations(parsed)
    return parsed


def _describe_unknown(scheme: str, name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
    return f"{scheme}:// has no option {name}; {hint}"


def _check_combinations(parsed: Mapping[str, OptionValue]) -> None:
    keys = [name for name in ("access_key", "secret_key") if name in parsed]
    if len(keys) == 1:
        raise errors.ConfigError("access_key and secret_key must be given together", subject=keys[0])
    if "session_token" in parsed and not keys:
        raise errors.ConfigError("session_token needs access_key and secret_key", subject="session_token")
    for name in ("external_id", "web_identity_token_file", "sts_endpoint"):
        if name in parsed and "role_arn" not in parsed:
            raise errors.ConfigError(f"{name} needs role_arn", subject=name)
    if "web_identity_token_file" in parsed and ("access_key" in parsed or "external_id" in parsed):
        raise errors.ConfigError(
            "web_identity_token_file stands in for access_key, and knows no external_id", subject="web_identity_token_file"
        )
    if parsed.get("anonymous") and "role_arn" in parsed:
        raise errors.ConfigError("give only one of anonymous, role_arn", subject="role_arn")
    if "client_secret" in parsed and not ("tenant_id" in parsed and "client_id" in parsed):
        raise errors.ConfigError("client_secret needs tenant_id and client_id", subject="client_secret")
    for name in ("keytab", "ticket_cache"):
        if name in parsed and "principal" not in parsed:
            raise errors.ConfigError(f"{name} needs principal", subject=name)
    if "user" in parsed and "principal" in parsed:
        raise errors.ConfigError("give only one of user, principal", subject="user")
    sources = [name for name in _SOURCES if name in parsed] + (["anonymous"] if parsed.get("anonymous") else [])
    if len(sources) > 1:
        raise errors.ConfigError(f"give only one of {', '.join(sources)}", subject=sources[0])


def _parse_text(_option: Option, text: str) -> str:
    if not text:
        raise ValueError("a text of at least one character")
    return text


def _parse_integer(_option: Option, text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) >= 1 << 32:
        raise ValueError("a number from 0 to 4294967295")
    return int(text)


def _parse_number(_option: Option, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 86400:
        raise ValueError("a number of seconds above 0, such as 10 or 0.5")
    return value


def _parse_switch(_option: Option, text: str) -> bool:
    lowered = text.lower()
    if lowered in {"true", "yes", "on", "1"}:
        return True
    if lowered in {"false", "no", "off", "0"}:
        return False
    raise ValueError("true or false")


def _parse_choice(option: Option, text: str) -> str:
    if text not in option.choices:
        raise ValueError(f"one of {', '.join(option.choices)}")
    return text


def _parse_url(_option: Option, text: str) -> str:
    scheme, separator, rest = text.partition("://")
    host = rest.rstrip("/")
    if scheme not in {"http", "https"} or not separator or not host or any(c in host for c in "/?#@ \\"):
        raise ValueError("a URL of the form http://HOST:PORT or https://HOST, without a path, user or password")
    return f"{scheme}://{host}"


_PARSERS: dict[str, Callable[[Option, str], OptionValue]] = {
    "text": _parse_text,
    "integer": _parse_integer,
    "number": _parse_number,
    "switch": _parse_switch,
    "choice": _parse_choice,
    "url": _parse_url,
}
