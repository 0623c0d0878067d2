"""Gives every seeded device a push target and a message that is due, starts the server, and counts the pushes that arrive.

usage: push_services.py SEALWIRE-BINARY FOLDER SERVICES, called by loadtest/push
"""

import asyncio
import datetime
import json
import os
import sqlite3
import sys
import time
import uuid

# Any point on the curve will do: nothing is decrypted. This one is of RFC 8291.
P256DH = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"
AUTH = "BTBZMqHH6r4Tts7J_aSIgg"
TIMEOUT_S = 300


async def main(binary: str, folder: str, services: int) -> None:
    with open(os.path.join(folder, "devices.jsonl"), encoding="utf-8") as lines:
        devices = [json.loads(line) for line in lines]
    woken: dict[str, int] = {}
    first: list[float] = []
    complete = asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Accepts every push of a connection."""
        try:
            while line := await reader.readline():
                length = 0
                while (header := await reader.readline()) not in (b"\r\n", b""):
                    if header.lower().startswith(b"content-length:"):
                        length = int(header.split(b":")[1])
                await reader.readexactly(length)
                path = line.split()[1].decode()
                first.append(time.monotonic())
                woken[path] = woken.get(path, 0) + 1
                writer.write(b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n")
                if len(woken) == len(devices):
                    complete.set()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    servers = [await asyncio.start_server(take, "127.0.0.1", 0) for _ in range(services)]
    ports = [server.sockets[0].getsockname()[1] for server in servers]

    now = datetime.datetime.now(datetime.timezone.utc)
    later = (now + datetime.timedelta(days=1)).isoformat(timespec="microseconds")
    at = now.isoformat(timespec="microseconds")
    database = sqlite3.connect(os.path.join(folder, "sealwire.db"))
    for index, device in enumerate(devices):
        device_id = uuid.UUID(device["device_id"]).bytes
        endpoint = f"http://127.0.0.1:{ports[index % services]}/{device['device_id']}"
        database.execute(
            "INSERT INTO push_targets (device_id, id, kind, address, p256dh, auth, registered_at, active, nonce_hash, nonce_expires_at)"
            " VALUES (?, ?, 'webpush', ?, ?, ?, ?, TRUE, x'', ?)",
            (device_id, uuid.uuid4().bytes, endpoint, P256DH, AUTH, at, at),
        )
        database.execute(
            "INSERT INTO messages (device_id, seq, message_id, sender_user, sender_device, type, content, accepted_at, expires_at)"
            " VALUES (?, 1, ?, ?, ?, 1, x'00', ?, ?)",
            (device_id, uuid.uuid4().bytes, device_id, device_id, at, later),
        )
        database.execute(
            "UPDATE mailboxes SET has_push = TRUE, wake_at = ?, next_seq = 2, count = 1, bytes = 1 WHERE device_id = ?",
            (at, device_id),
        )
    database.commit()
    database.close()

    server = await asyncio.create_subprocess_exec(binary, "serve")
    try:
        await asyncio.wait_for(complete.wait(), TIMEOUT_S)
        seconds = first[-1] - first[0]
    finally:
        server.terminate()
        await server.wait()
    repeated = sum(count - 1 for count in woken.values())
    print(f"push: {len(devices)} devices in {seconds:.1f} s, {len(devices) / seconds:.0f} a second, {repeated} woken twice")
    if repeated or server.returncode:
        sys.exit(1)


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
