"""A store that speaks just enough S3 to be listed as fast as it is asked: DIRS directories of FILES objects, none of them stored.

    python -m bench.synthetic_store --port 0 --dirs 100 --files 10000

prints one JSON line with its address and serves until SIGTERM. ListObjectsV2 with delimiter, prefix and continuation tokens, and
HeadBucket; object reads answer 404. For the size of metadata only: bytes are measured on a real server.
"""

import argparse
import asyncio
import json
import signal
import sys
from urllib.parse import parse_qs, urlsplit

FILE_BYTES = 110_000


def render_list(bucket: str, query: dict[str, list[str]], dirs: int, files: int) -> bytes:
    """One page of ListObjectsV2, delimited by "/"."""
    prefix = query.get("prefix", [""])[0]
    token = query.get("continuation-token", [""])[0]
    limit = min(int(query.get("max-keys", ["1000"])[0]), 1000)
    start = int(token) if token else 0
    rows: list[str] = []
    root, directory = "data/", prefix.removeprefix("data/").rstrip("/")
    if not prefix:
        rows, total = ["<CommonPrefixes><Prefix>data/</Prefix></CommonPrefixes>"], 1
    elif prefix == root:
        total = dirs
        rows = [
            f"<CommonPrefixes><Prefix>data/d{n:05d}/</Prefix></CommonPrefixes>" for n in range(start, min(start + limit, total))
        ]
    elif directory.startswith("d") and directory[1:].isdigit() and int(directory[1:]) < dirs:
        total = files
        rows = [
            f"<Contents><Key>{prefix}f{n:08d}.jpg</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{int(directory[1:]):08x}{n:024x}&quot;</ETag><Size>{FILE_BYTES + n % 97}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for n in range(start, min(start + limit, total))
        ]
    else:
        total = 0
    more = start + limit < total
    follow = f"<NextContinuationToken>{start + limit}</NextContinuationToken>" if more else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{bucket}</Name><Prefix>{prefix}</Prefix><Delimiter>/</Delimiter><MaxKeys>{limit}</MaxKeys>"
        f"<EncodingType>url</EncodingType><KeyCount>{len(rows)}</KeyCount>"
        f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{follow}{''.join(rows)}</ListBucketResult>"
    ).encode()


async def serve(port: int, dirs: int, files: int) -> None:
    """Serve on loopback until SIGTERM or SIGINT."""
    stop = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not stop.is_set():
                head = await reader.readuntil(b"\r\n\r\n")
                method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
                url = urlsplit(target)
                bucket, _, key = url.path.lstrip("/").partition("/")
                query = parse_qs(url.query, keep_blank_values=True)
                if method == "GET" and not key:
                    status, body = "200 OK", render_list(bucket, query, dirs, files)
                else:
                    status, body = ("200 OK", b"") if method == "HEAD" and not key else ("404 Not Found", b"")
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", port)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    json.dump({"endpoint": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"}, sys.stdout)
    print(flush=True)
    await stop.wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--dirs", type=int, default=100)
    parser.add_argument("--files", type=int, default=10_000)
    arguments = parser.parse_args()
    import uvloop

    uvloop.run(serve(arguments.port, arguments.dirs, arguments.files))


if __name__ == "__main__":
    main()
