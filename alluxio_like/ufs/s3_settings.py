"""The options of an S3 mount, typed. Plain data; safe from any thread."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alluxio_like.ufs.options import OptionValue
from alluxio_like.ufs.references import Secrets

_SECRETS = ("access_key", "secret_key", "session_token")


@dataclass(frozen=True, slots=True)
class S3Settings:
    """A mount's options, typed. `stall_s` is the longest silence within a request, `io_timeout_s` the bound of any call."""

    bucket: str
    io_timeout_s: float
    stall_s: float
    endpoint: str = ""
    region: str = ""
    profile: str = ""
    secrets: Secrets = field(default_factory=lambda: Secrets({}))
    anonymous: bool = False
    role_arn: str = ""
    external_id: str = ""
    web_identity_token_file: str = ""
    sts_endpoint: str = ""
    addressing: str = ""
    ca_file: str = ""
    verify: bool = True
    requester_pays: bool = False
    conditional_writes: str = "auto"
    max_connections: int = 16

    @classmethod
    def make(cls, bucket: str, values: Mapping[str, OptionValue], io_timeout_s: float) -> "S3Settings":
        """From options as `parse_options` gives them."""
        stall_s = float(values.get("timeout_s", io_timeout_s / 3))
        own = set(cls.__dataclass_fields__) & set(values)
        known: dict[str, Any] = {name: values[name] for name in own}
        secrets = Secrets({name: str(values[name]) for name in _SECRETS if name in values})
        return cls(bucket=bucket, io_timeout_s=io_timeout_s, stall_s=min(stall_s, io_timeout_s), secrets=secrets, **known)

    @property
    def has_own_keys(self) -> bool:
        """Whether the options say with which keys, so that the AWS chain is not asked."""
        return "access_key" in self.secrets

    @property
    def has_fixed_keys(self) -> bool:
        """Whether nothing can ever give other keys than those of the options."""
        return self.anonymous or (self.has_own_keys and not self.role_arn and not self.secrets.may_change)
