"""A device that uses the PyPI packages X3DH and DoubleRatchet, to be driven by a test: one JSON request a line in, one answer out.

It has the message format of @sealwire/x3dh, which README.md of that package describes.
"""

import asyncio
import json
import sys
import uuid
from base64 import b64decode, b64encode

import x3dh
from doubleratchet import DoubleRatchet, EncryptedMessage, Header
from doubleratchet.recommended import HashFunction, aead_aes_hmac, diffie_hellman_ratchet_curve25519, kdf_hkdf, kdf_separate_hmacs
from x3dh.types import IdentityKeyFormat

NONE = 0xFFFFFFFF


class State(x3dh.BaseState):
    @staticmethod
    def _encode_public_key(key_format: IdentityKeyFormat, pub: bytes) -> bytes:
        return pub


class RootKdf(kdf_hkdf.KDF):
    @staticmethod
    def _get_hash_function() -> HashFunction:
        return HashFunction.SHA_256

    @staticmethod
    def _get_info() -> bytes:
        return b"sealwire-ratchet-v1"


class ChainKdf(kdf_separate_hmacs.KDF):
    @staticmethod
    def _get_hash_function() -> HashFunction:
        return HashFunction.SHA_256


class Aead(aead_aes_hmac.AEAD):
    @staticmethod
    def _get_hash_function() -> HashFunction:
        return HashFunction.SHA_256

    @staticmethod
    def _get_info() -> bytes:
        return b"sealwire-message-v1"


def header_bytes(header: Header) -> bytes:
    counters = (header.previous_sending_chain_length, header.sending_chain_length)
    return header.ratchet_pub + b"".join(n.to_bytes(4, "big") for n in counters)


class Ratchet(DoubleRatchet):
    @staticmethod
    def _build_associated_data(associated_data: bytes, header: Header) -> bytes:
        return associated_data + header_bytes(header)


SETTINGS = {
    "diffie_hellman_ratchet_class": diffie_hellman_ratchet_curve25519.DiffieHellmanRatchet,
    "root_chain_kdf": RootKdf,
    "message_chain_kdf": ChainKdf,
    "message_chain_constant": b"\x02\x01",
    "dos_protection_threshold": 1000,
    "max_num_skipped_message_keys": 2000,
    "aead": Aead,
}


def pack(message: EncryptedMessage) -> bytes:
    return header_bytes(message.header) + message.ciphertext


def unpack(content: bytes) -> EncryptedMessage:
    counters = (int.from_bytes(content[at : at + 4], "big") for at in (32, 36))
    return EncryptedMessage(Header(content[:32], *counters), content[40:])


class Device:
    def __init__(self, device_id: str):
        self.id = uuid.UUID(device_id)
        self.state = State.create(IdentityKeyFormat.ED_25519, x3dh.HashFunction.SHA_256, b"sealwire-x3dh-v1")
        self.state.generate_pre_keys(10)
        self.one_time = dict(enumerate(sorted(self.state.bundle.pre_keys)))
        self.ratchet = self.pending = self.opening = self.ad = None

    def keys(self) -> dict:
        bundle = self.state.bundle
        return {
            "identity_key": b64encode(bundle.identity_key).decode(),
            "signed_prekey": {
                "key_id": 7,
                "public_key": b64encode(bundle.signed_pre_key).decode(),
                "signature": b64encode(bundle.signed_pre_key_sig).decode(),
            },
            "one_time_prekeys": [{"key_id": n, "public_key": b64encode(pub).decode()} for n, pub in self.one_time.items()],
        }

    async def open(self, bundle: dict) -> None:
        signed, one_time = bundle["signed_prekey"], bundle["one_time_prekey"]
        self.ids = (signed["key_id"], one_time["key_id"] if one_time else NONE)
        other = x3dh.Bundle(
            identity_key=b64decode(bundle["identity_key"]),
            signed_pre_key=b64decode(signed["public_key"]),
            signed_pre_key_sig=b64decode(signed["signature"]),
            pre_keys=frozenset([b64decode(one_time["public_key"])] if one_time else []),
        )
        devices = self.id.bytes + uuid.UUID(bundle["device_id"]).bytes
        secret, self.ad, header = await self.state.get_shared_secret_active(other, devices, require_pre_key=False)
        self.pending = (secret, other.signed_pre_key)
        self.opening = b"\x01" + header.identity_key + header.ephemeral_key + b"".join(n.to_bytes(4, "big") for n in self.ids)

    async def encrypt(self, text: str) -> dict:
        plain = text.encode()
        if self.pending:
            secret, signed = self.pending
            self.pending = None
            self.ratchet, message = await Ratchet.encrypt_initial_message(
                **SETTINGS, shared_secret=secret, recipient_ratchet_pub=signed, message=plain, associated_data=self.ad
            )
        else:
            message = await self.ratchet.encrypt_message(plain, self.ad)
        first = self.opening is not None
        content = (self.opening if first else b"\x01") + pack(message)
        return {"type": 3 if first else 2, "content": b64encode(content).decode()}

    async def decrypt(self, sender: str, kind: int, content: bytes) -> str:
        assert content[0] == 1
        if kind == 2:
            plain = await self.ratchet.decrypt_message(unpack(content[1:]), self.ad)
            self.opening = None
            return plain.decode()
        identity, ephemeral = content[1:33], content[33:65]
        signed_id, one_time_id = (int.from_bytes(content[at : at + 4], "big") for at in (65, 69))
        message = unpack(content[73:])
        if self.ratchet and getattr(self, "base", None) == ephemeral:
            return (await self.ratchet.decrypt_message(message, self.ad)).decode()
        assert signed_id == 7
        pre_key = None if one_time_id == NONE else self.one_time.pop(one_time_id)
        header = x3dh.Header(identity, ephemeral, self.state.bundle.signed_pre_key, pre_key)
        devices = uuid.UUID(sender).bytes + self.id.bytes
        secret, ad, pair = await self.state.get_shared_secret_passive(header, devices, require_pre_key=False)
        ratchet, plain = await Ratchet.decrypt_initial_message(
            **SETTINGS, shared_secret=secret, own_ratchet_priv=pair.priv, message=message, associated_data=ad
        )
        if pre_key:
            self.state.delete_pre_key(pre_key)
        self.ratchet, self.ad, self.base, self.opening = ratchet, ad, ephemeral, None
        return plain.decode()


async def main() -> None:
    device = None
    for line in sys.stdin:
        op, *args = json.loads(line)
        try:
            if op == "create":
                device = Device(*args)
                answer = device.keys()
            elif op == "open":
                answer = await device.open(*args)
            elif op == "encrypt":
                answer = await device.encrypt(*args)
            else:
                answer = await device.decrypt(args[0], args[1], b64decode(args[2]))
            print(json.dumps({"ok": answer}), flush=True)
        except Exception as error:  # the test decides what it means
            print(json.dumps({"error": repr(error)}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
