"""The PyPI packages X3DH and XEdDSA with a running Sealwire server, suites signal-x3dh and ed25519-x3dh.

    python python_x3dh.py URL MAIL_DIR

X3DH through the server: Bob publishes keys, Alice claims them, and both must derive the same secret, with which they encrypt both
ways. Headers and ciphertext also go through the server. (This file is not called x3dh.py because `import x3dh` would then import it
instead of the package.)
"""

import asyncio
import email
import email.policy
import itertools
import json
import os
import re
import sys
import urllib.error
import urllib.request
import uuid
from base64 import b64decode, b64encode
from collections import deque
from pathlib import Path
from typing import NamedTuple

import x3dh
import xeddsa
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from websockets.asyncio.client import connect
from x3dh.identity_key_pair import IdentityKeyPairSeed
from x3dh.types import IdentityKeyFormat

TIMEOUT_S = 60
URL, MAIL_DIR = sys.argv[1], Path(sys.argv[2])


# The server: sign-in and requests.


class SealwireError(Exception):
    """An `error` object from the server."""

    def __init__(self, error: dict):
        super().__init__(f"{error['code']}: {error['message']}")
        self.code, self.details = error["code"], error.get("details")


def post(path: str, body: dict) -> dict:
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with without_proxy.open(request, timeout=TIMEOUT_S) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise SealwireError(json.load(error)["error"]) from None


async def request_code(address: str) -> dict:
    """Asks for a code to sign in, and reads it from the mail."""
    before = set(MAIL_DIR.glob("*.eml"))
    challenge = await asyncio.to_thread(post, "/v1/auth/otp", {"email": address})
    async with asyncio.timeout(TIMEOUT_S):
        while (code := mailed_code(address, set(MAIL_DIR.glob("*.eml")) - before)) is None:
            await asyncio.sleep(0.02)
    return {"challenge_id": challenge["challenge_id"], "email": address, "code": code}


async def redeem(code: dict, **device) -> dict:
    """Redeems a code of `request_code` for a device."""
    return await asyncio.to_thread(post, "/v1/auth/verify", {**code, "device": device})


async def sign_in(address: str, device_name: str) -> dict:
    return await redeem(await request_code(address), name=device_name)


def mailed_code(address: str, paths: set[Path]) -> str | None:
    """Returns the code in the newest of these mails to `address` that has one."""
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        mail = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
        body = mail.get_body(("plain",))
        codes = set(re.findall(r"(?<!\d)\d{8}(?!\d)", f"{mail['Subject']}\n{body.get_content() if body else ''}"))
        if address in (mail["To"] or "") and codes:
            assert len(codes) == 1, f"the code is not the only eight-digit group in {path}"
            return codes.pop()
    return None


class Connection:
    """A device's socket in JSON, with one request at a time. Messages that arrive meanwhile are kept, other events ignored."""

    def __init__(self, session: dict, socket):
        self.session, self._socket, self._ids = session, socket, itertools.count(1)
        self._messages, self.last_seq = deque(), 0

    @classmethod
    async def open(cls, session: dict, subprotocols: list[str] | None) -> "Connection":
        socket = await connect(
            URL.replace("http", "ws", 1) + "/v1/socket",
            additional_headers={"Authorization": f"Bearer {session['token']}"},
            subprotocols=subprotocols,
            compression=None,
            proxy=None,
            open_timeout=TIMEOUT_S,
        )
        assert socket.subprotocol == (subprotocols[0] if subprotocols else None)
        connection = cls(session, socket)
        welcome = await connection._receive()
        assert welcome["event"] == "welcome" and welcome["data"]["device_id"] == session["device_id"]
        connection.welcome = welcome["data"]
        return connection

    async def request(self, op: str, **params) -> dict:
        number = next(self._ids)
        await self._socket.send(json.dumps({"id": number, "op": op, "params": params}))
        while "event" in (reply := await self._receive()):
            self._keep(reply)
        assert reply["id"] == number, reply
        if reply.get("error"):
            raise SealwireError(reply["error"])
        return reply["result"]

    async def send(self, to: "Connection", content: bytes) -> None:
        """Sends ciphertext to the only device of `to`'s user, twice under one message id."""
        message = {"device_id": to.session["device_id"], "type": 1, "content": b64encode(content).decode()}
        sent = {"message_id": str(uuid.uuid4()), "to": to.session["user_id"], "messages": [message]}
        reply = await self.request("messages.send", **sent)
        assert (reply["duplicate"], reply["undelivered"]) == (False, []), reply
        repeat = await self.request("messages.send", **sent)
        assert repeat == {**reply, "duplicate": True}, repeat

    async def receive(self, sender: "Connection") -> bytes:
        """Waits for the next message, which must be from `sender`, and acks it. Returns its content."""
        while not self._messages:
            self._keep(await self._receive())
        message = self._messages.popleft()
        assert message["from"] == {key: sender.session[key] for key in ("user_id", "device_id")}, message
        self.last_seq += 1
        assert (message["seq"], message["type"], message["ephemeral"]) == (self.last_seq, 1, False), message
        assert await self.request("messages.ack", seqs=[message["seq"]]) == {"acked": 1}
        return b64decode(message["content"], validate=True)

    async def close(self) -> None:
        await self._socket.close()

    def _keep(self, event: dict) -> None:
        if event["event"] == "message":
            self._messages.append(event["data"])

    async def _receive(self) -> dict:
        async with asyncio.timeout(TIMEOUT_S):
            frame = await self._socket.recv()
        assert isinstance(frame, str), "JSON comes in text frames"
        return json.loads(frame)


# The library: its abstract state class, with the public key format of each suite.


class SignalState(x3dh.BaseState):
    """signal-x3dh: keys are serialized with the type byte of X25519, and signatures cover the serialized key."""

    suite, key_format = "signal-x3dh", IdentityKeyFormat.CURVE_25519

    @staticmethod
    def _encode_public_key(key_format: IdentityKeyFormat, pub: bytes) -> bytes:
        return b"\x05" + pub

    @staticmethod
    def decode_public_key(wire: bytes) -> bytes:
        assert len(wire) == 33 and wire[0] == 0x05
        return wire[1:]


class Ed25519State(x3dh.BaseState):
    """ed25519-x3dh: an Ed25519 identity key and X25519 prekeys, all without a type byte."""

    suite, key_format = "ed25519-x3dh", IdentityKeyFormat.ED_25519

    @staticmethod
    def _encode_public_key(key_format: IdentityKeyFormat, pub: bytes) -> bytes:
        return pub

    @staticmethod
    def decode_public_key(wire: bytes) -> bytes:
        assert len(wire) == 32
        return wire


class Person(NamedTuple):
    socket: Connection
    state: x3dh.BaseState


def new_state(kind: type) -> x3dh.BaseState:
    identity = IdentityKeyPairSeed(os.urandom(32))
    state = kind.create(kind.key_format, x3dh.HashFunction.SHA_256, b"Sealwire client test", identity)
    state.identity = identity
    return state


def device_proof(state: x3dh.BaseState, code: dict, device_id: str) -> str:
    """Proves the identity of a device that signs in again."""
    signing_key = state.identity.as_priv().priv
    if state.key_format is IdentityKeyFormat.CURVE_25519:
        signing_key = xeddsa.priv_force_sign(signing_key, False)
    text = b"sealwire-device-proof-v1" + uuid.UUID(code["challenge_id"]).bytes + uuid.UUID(device_id).bytes
    return b64encode(xeddsa.ed25519_priv_sign(signing_key, text)).decode()


def wire_key(state: x3dh.BaseState, pub: bytes) -> str:
    return b64encode(state._encode_public_key(state.key_format, pub)).decode()


def signed_prekey(state: x3dh.BaseState, key_id: int) -> dict:
    bundle = state.bundle
    signature = b64encode(bundle.signed_pre_key_sig).decode()
    return {"key_id": key_id, "public_key": wire_key(state, bundle.signed_pre_key), "signature": signature}


def complete_set(state: x3dh.BaseState) -> dict:
    one_time = [{"key_id": i, "public_key": wire_key(state, pub)} for i, pub in enumerate(sorted(state.bundle.pre_keys))]
    return {
        "suite": state.suite,
        "identity_key": wire_key(state, state.bundle.identity_key),
        "signed_prekey": signed_prekey(state, 1),
        "one_time_prekeys": one_time,
    }


def bundle_from_wire(kind: type, bundle: dict) -> x3dh.Bundle:
    assert bundle["suite"] == kind.suite and bundle["pq_prekey"] is None

    def key(text: str) -> bytes:
        return kind.decode_public_key(b64decode(text, validate=True))

    one_time = bundle["one_time_prekey"]
    return x3dh.Bundle(
        identity_key=key(bundle["identity_key"]),
        signed_pre_key=key(bundle["signed_prekey"]["public_key"]),
        signed_pre_key_sig=b64decode(bundle["signed_prekey"]["signature"], validate=True),
        pre_keys=frozenset([key(one_time["public_key"])] if one_time else []),
    )


def first_message(header: x3dh.Header, sealed: bytes) -> bytes:
    """The header, which Bob needs for his side of X3DH, and the ciphertext after it."""
    pre_key = header.pre_key or b""
    return b"".join([header.identity_key, header.ephemeral_key, header.signed_pre_key, bytes([len(pre_key)]), pre_key, sealed])


def parse_first_message(content: bytes) -> tuple[x3dh.Header, bytes]:
    end = 97 + content[96]
    header = x3dh.Header(
        identity_key=content[:32],
        ephemeral_key=content[32:64],
        signed_pre_key=content[64:96],
        pre_key=content[97:end] or None,
    )
    return header, content[end:]


def seal(secret: bytes, text: bytes, data: bytes) -> bytes:
    nonce = os.urandom(12)
    return nonce + ChaCha20Poly1305(secret).encrypt(nonce, text, data)


def unseal(secret: bytes, sealed: bytes, data: bytes) -> bytes:
    return ChaCha20Poly1305(secret).decrypt(sealed[:12], sealed[12:], data)


async def agree_and_talk(alice: Person, bob: Person, bundle: x3dh.Bundle) -> x3dh.Header:
    """Runs X3DH with Alice's first message to Bob. He answers with the same secret, and deletes his one-time prekey."""
    with_one_time = len(bundle.pre_keys) > 0
    secret, data, header = await alice.state.get_shared_secret_active(bundle, require_pre_key=with_one_time)
    await alice.socket.send(bob.socket, first_message(header, seal(secret, b"Hello Bob", data)))

    received, sealed = parse_first_message(await bob.socket.receive(alice.socket))
    assert received == header
    bob_secret, bob_data, _ = await bob.state.get_shared_secret_passive(received, require_pre_key=with_one_time)
    assert (bob_secret, bob_data) == (secret, data)
    assert unseal(bob_secret, sealed, bob_data) == b"Hello Bob"
    if with_one_time:
        assert bob.state.delete_pre_key(received.pre_key)
    await bob.socket.send(alice.socket, seal(bob_secret, b"Hello Alice", bob_data))
    assert unseal(secret, await alice.socket.receive(bob.socket), data) == b"Hello Alice"
    return header


# The scenario.


def ok(what: str) -> None:
    print(f"  ok  {what}", flush=True)


async def refused(request, code: str) -> None:
    try:
        answer = await request
    except SealwireError as error:
        assert error.code == code, error
    else:
        raise AssertionError(f"expected {code}, got {answer}")


async def through_the_server(kind: type) -> None:
    print(f"Alice and Bob with PyPI X3DH: {kind.suite}", flush=True)
    alice_state, bob_state = new_state(kind), new_state(kind)
    bob_state.generate_pre_keys(3)
    alice = await Connection.open(await sign_in(f"alice@{kind.suite}.example", "Alice"), None)
    bob = await Connection.open(await sign_in(f"bob@{kind.suite}.example", "Bob"), ["sealwire.v1.json"])
    ok("signed in by mailed code and connected: Alice without a subprotocol, Bob with sealwire.v1.json")

    whole = complete_set(bob_state)
    foreign = signed_prekey(new_state(kind), 1)
    await refused(bob.request("keys.publish", **{**whole, "signed_prekey": foreign}), "invalid_signature")
    await refused(bob.request("keys.publish", **{k: v for k, v in whole.items() if k != "signed_prekey"}), "incomplete_keys")
    await refused(bob.request("keys.publish", **whole, pq_one_time=[foreign]), "bad_request")
    assert (await bob.request("keys.status"))["identity_key"] is None
    ok("refused: a prekey signed by another identity, a set without a signed prekey, PQ keys in this suite")

    answer = await bob.request("keys.publish", **whole)
    assert answer["one_time"]["accepted"] == [0, 1, 2], answer
    assert (await alice.request("keys.publish", **complete_set(alice_state)))["status"]["suite"] == kind.suite
    ok("the server accepts the library’s keys and signatures")

    async def claim(claim_id: str) -> dict:
        reply = await alice.request("keys.claim", user_id=bob.session["user_id"], claim_id=claim_id)
        assert reply["unavailable"] == [] and len(reply["bundles"]) == 1, reply
        bundle = reply["bundles"][0]
        assert bundle["device_id"] == bob.session["device_id"]
        return bundle

    first_id, seen = str(uuid.uuid4()), []
    for claim_id in (first_id, str(uuid.uuid4()), str(uuid.uuid4())):
        bundle = await claim(claim_id)
        seen.append(bundle["one_time_prekey"])
        assert bundle["one_time"] == "claimed"
        await agree_and_talk(Person(alice, alice_state), Person(bob, bob_state), bundle_from_wire(kind, bundle))
    assert seen == whole["one_time_prekeys"]
    ok("three claims with three different one-time prekeys: the same secret on both sides, messages both ways through the server")

    assert (await claim(first_id))["one_time_prekey"] == seen[0]
    exhausted = await claim(str(uuid.uuid4()))
    assert (exhausted["one_time"], exhausted["one_time_prekey"]) == ("exhausted", None)
    await agree_and_talk(Person(alice, alice_state), Person(bob, bob_state), bundle_from_wire(kind, exhausted))
    ok("a repeated claim_id returns its key again; after the last key, X3DH without a one-time prekey works")

    bob_state.rotate_signed_pre_key()
    await bob.request("keys.publish", signed_prekey=signed_prekey(bob_state, 2))
    rotated = await claim(str(uuid.uuid4()))
    assert rotated["signed_prekey"]["key_id"] == 2
    header = await agree_and_talk(Person(alice, alice_state), Person(bob, bob_state), bundle_from_wire(kind, rotated))
    assert header.signed_pre_key == bob_state.bundle.signed_pre_key
    ok("Bob rotated his signed prekey, and the next X3DH uses the new one")

    await bob.request("session.logout")
    await bob.close()
    device_id, other_id = bob.session["device_id"], alice.session["device_id"]
    code = await request_code(f"bob@{kind.suite}.example")
    wrong = [device_proof(alice_state, code, device_id), device_proof(bob_state, code, other_id), "no proof"]
    for proof in wrong:
        await refused(redeem(code, id=device_id, proof=proof), "proof_required")
    await refused(redeem(code, id=device_id), "proof_required")
    proof = device_proof(bob_state, code, device_id)
    session = await redeem(code, id=device_id, proof=proof)
    assert session["device_id"] == device_id
    await refused(redeem(await request_code(f"bob@{kind.suite}.example"), id=device_id, proof=proof), "proof_required")
    bob.session = session
    ok("Bob’s device signs in again with a proof of its identity key; no, foreign, misdirected and replayed proofs are refused")

    for old, messages in ((alice, 5), (bob, 5)):
        await old.close()
        again = await Connection.open(old.session, None)
        assert again.welcome["mailbox"] == {"waiting": 0, "expired_total": 0}, again.welcome
        assert old.last_seq == messages
        await again.close()
    ok("both mailboxes are empty: 5 messages each way, each sent twice under one message_id, arrived once")


async def main() -> None:
    for kind in (SignalState, Ed25519State):
        await through_the_server(kind)


asyncio.run(main())
