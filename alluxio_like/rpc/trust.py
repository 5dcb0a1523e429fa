"""Why a service that is there cannot be talked to: what gRPC does not tell.

gRPC says "unavailable" of a service that is away, of one whose certificate is not to be trusted, and of one that does not accept
ours, and names the reason nowhere but in a text. So one handshake more is made, by the standard library, which has a number for
each reason.

Owns the words for what is wrong and what is to be done. Asked after a call has failed, never before one; bounded by `TRY_S`. One
event loop.
"""

import asyncio
import contextlib
import ssl
import time

from alluxio_like.certificates import PemFiles, read_validity
from alluxio_like.errors import AlluxioLikeError
from alluxio_like.metrics import split_address

TRY_S = 1.0
"""A guess: far longer than a handshake takes, and short for whoever could ask another worker instead."""
_AGAIN_S = 0.1
# X509_V_ERR_… of openssl's x509_vfy.h.
_VERDICTS = {
    9: "its certificate is not valid yet: compare the clocks",
    10: "its certificate has expired: renew it there",
    23: "its certificate was revoked",
    62: "its certificate does not name {}: renew it with that name in subjectAltName, or use a name that is there",
    64: "its certificate does not name {}: renew it with that address in subjectAltName, or set tls.server_name to a name there",
}
_OTHER_AUTHORITY = {2, 18, 19, 20, 21}


async def find_refusal(address: str, files: PemFiles | None, server_name: str = "") -> str:
    """What is wrong between us and the service at host:port, one line; "" where nothing is, or it cannot be reached at all.

    `files` are our certificates; None: we speak in the clear. `server_name`: what its certificate is to name; "": the host.
    """
    try:
        async with asyncio.timeout(TRY_S):
            said = await _try_handshake(address, files, server_name)
            if said is not None and not said:
                # It may just be ending. A second try finds it gone, or as unwilling as before.
                await asyncio.sleep(_AGAIN_S)
                said = await _try_handshake(address, files, server_name)
    except (OSError, TimeoutError, AlluxioLikeError):
        return ""
    if said is None:
        return ""
    return said or _explain_closing(files)


async def _try_handshake(address: str, files: PemFiles | None, server_name: str) -> str | None:
    """None: all is well. "": it closed the connection after the handshake. Else what is wrong. Raises OSError."""
    host, port = split_address(address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    if files is not None:
        files.load(context)
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    try:
        reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=server_name or None)
        try:
            if files is None:
                return "it speaks TLS, and we do not: set tls.ca, and tls.certificate and tls.key"
            # Who accepts our certificate greets us.
            return None if await reader.read(1) else ""
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                await writer.wait_closed()
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in _OTHER_AUTHORITY:
            assert files is not None
            return f"its certificate is of another authority than the one in {files.ca}: set tls.ca to its authority"
        known = _VERDICTS.get(error.verify_code, f"its certificate is not to be trusted ({error.verify_message})")
        return known.replace("{}", server_name or host)
    except ssl.SSLError as error:
        if files is None:
            # As it should be: it speaks in the clear too.
            return None
        if error.reason == "WRONG_VERSION_NUMBER":
            return "it does not speak TLS: leave tls.ca out, or give it a certificate"
        return ""
    except ConnectionResetError:
        return ""


def _explain_closing(files: PemFiles | None) -> str:
    """Why it may have closed the connection after it had seen our certificate, or none."""
    if files is None:
        return ""
    if files.certificate is None:
        return "it demands a certificate of its callers: set tls.certificate and tls.key"
    try:
        begins_s, ends_s = read_validity(files.certificate)
    except (OSError, ValueError):
        begins_s, ends_s = 0.0, time.time() + 1
    if time.time() > ends_s:
        return f"it does not accept our certificate, which has expired: renew {files.certificate}"
    if time.time() < begins_s:
        return f"it does not accept our certificate {files.certificate}, which is not valid yet: compare the clocks"
    return f"it does not accept our certificate: {files.certificate} is to be signed by the authority that its tls.ca names"
