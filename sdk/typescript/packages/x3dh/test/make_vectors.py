"""Makes vectors.json with the PyPI packages X3DH 1.3 and DoubleRatchet 1.3, an independent implementation.

    python make_vectors.py > vectors.json      # with the packages of requirements.txt

Every key is fixed: what the libraries would draw at random comes from SHAKE-256 over a counter.
"""

import asyncio
import hashlib
import itertools
import json
import secrets
import uuid

import x3dh
from doubleratchet.recommended import diffie_hellman_ratchet_curve25519
from peer import SETTINGS, Ratchet, State, pack
from x3dh.identity_key_pair import IdentityKeyPairSeed
from x3dh.types import IdentityKeyFormat

drawn: list[bytes] = []
counter = itertools.count()


def fixed(length: int = 32) -> bytes:
    drawn.append(hashlib.shake_256(f"sealwire vector {next(counter)}".encode()).digest(length))
    return drawn[-1]


# The libraries draw from this module.
secrets.token_bytes = fixed


class FixedRatchet(diffie_hellman_ratchet_curve25519.DiffieHellmanRatchet):
    @staticmethod
    def _generate_priv() -> bytes:
        return fixed()


FIXED = {**SETTINGS, "diffie_hellman_ratchet_class": FixedRatchet}


def state() -> tuple[State, bytes]:
    seed = fixed()
    return State.create(IdentityKeyFormat.ED_25519, x3dh.HashFunction.SHA_256, b"sealwire-x3dh-v1", IdentityKeyPairSeed(seed)), seed


async def agreement(with_one_time: bool) -> dict:
    (alice, alice_seed), (bob, bob_seed) = state(), state()
    if with_one_time:
        bob.generate_pre_keys(1)
    model = bob.model
    devices = [uuid.UUID(bytes=fixed()[:16]) for _ in range(2)]
    secret, ad, header = await alice.get_shared_secret_active(bob.bundle, devices[0].bytes + devices[1].bytes, require_pre_key=False)
    ephemeral = drawn[-1]
    other, _, pair = await bob.get_shared_secret_passive(header, devices[0].bytes + devices[1].bytes, require_pre_key=False)
    assert other == secret
    one_time = next(iter(model.pre_keys), None)
    return {
        "alice": {"identity_seed": alice_seed.hex(), "identity_key": alice.bundle.identity_key.hex(), "device_id": str(devices[0])},
        "bob": {
            "identity_seed": bob_seed.hex(),
            "identity_key": bob.bundle.identity_key.hex(),
            "device_id": str(devices[1]),
            "signed_prekey": pair.priv.hex(),
            "signature": bob.bundle.signed_pre_key_sig.hex(),
            "one_time_prekey": one_time.hex() if one_time else None,
        },
        "ephemeral_key": ephemeral.hex(),
        "associated_data": ad.hex(),
        "shared_secret": secret.hex(),
    }


async def conversation() -> dict:
    secret, ad, signed = fixed(), fixed(), fixed()
    public = FixedRatchet._derive_pub(signed)
    alice = bob = None
    steps = []
    # Who writes; the messages of a step are read in reverse, so that keys are skipped.
    for number, (writer, count) in enumerate([("alice", 3), ("bob", 2), ("alice", 1), ("bob", 4), ("alice", 2)]):
        messages = []
        for i in range(count):
            text = f"{writer} {number} {i} " + "x" * (number * 7 + i)
            before = len(drawn)
            if alice is None:
                alice, message = await Ratchet.encrypt_initial_message(
                    **FIXED, shared_secret=secret, recipient_ratchet_pub=public, message=text.encode(), associated_data=ad
                )
            else:
                message = await (alice if writer == "alice" else bob).encrypt_message(text.encode(), ad)
            drawn_now = [key.hex() for key in drawn[before:]]
            messages.append({"text": text, "message": pack(message).hex(), "drawn_by_writer": drawn_now, "sealed": message})
        for entry in reversed(messages):
            before = len(drawn)
            sealed = entry.pop("sealed")
            if bob is None:
                bob, plain = await Ratchet.decrypt_initial_message(
                    **FIXED, shared_secret=secret, own_ratchet_priv=signed, message=sealed, associated_data=ad
                )
            else:
                plain = await (bob if writer == "alice" else alice).decrypt_message(sealed, ad)
            assert plain.decode() == entry["text"]
            entry["drawn_by_reader"] = [key.hex() for key in drawn[before:]]
        steps.append({"writer": writer, "messages": messages})
    return {"shared_secret": secret.hex(), "associated_data": ad.hex(), "signed_prekey": signed.hex(), "steps": steps}


async def main() -> None:
    vectors = {
        "note": "Made with the PyPI packages X3DH 1.3.0 and DoubleRatchet 1.3.0 by make_vectors.py. Bytes are hexadecimal.",
        "x3dh": [await agreement(True), await agreement(False)],
        "double_ratchet": await conversation(),
    }
    print(json.dumps(vectors, indent=2))


asyncio.run(main())
