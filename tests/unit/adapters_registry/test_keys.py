from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from adapters_registry.keys import find_key, generate_key, hash_key, key_id_of, new_key, verify
from adapters_registry.library import Library


def test_keys_have_their_form_and_differ() -> None:
    made = [generate_key() for _ in range(200)]
    assert len({plaintext for _, plaintext, _ in made}) == 200
    for key_id, plaintext, hashed in made:
        assert re.fullmatch(r"mg-[0-9a-f]{8}-[A-Za-z0-9_-]{43}", plaintext)
        assert key_id_of(plaintext) == key_id
        assert hashed == hash_key(plaintext)
        assert plaintext not in hashed
        assert verify(plaintext, hashed)


def test_another_key_does_not_verify() -> None:
    _, plaintext, hashed = generate_key()
    assert not verify(plaintext[:-1] + ("A" if plaintext[-1] != "A" else "B"), hashed)
    assert not verify("", hashed)


@given(st.text())
def test_any_text_can_be_asked_about(text: str) -> None:
    assert key_id_of(text) is None or text.startswith("mg-")
    assert not verify(text, generate_key()[2])


async def test_a_key_is_found_until_it_is_revoked(library: Library) -> None:
    record, plaintext = new_key("ci", scopes=["infer", "admin"], experts=["sql*"])
    await library.keys.add(record)
    found = await find_key(library.keys, plaintext)
    assert found == record
    assert await find_key(library.keys, plaintext[:-4] + "AAAA") is None
    assert await find_key(library.keys, "Bearer x") is None
    await library.keys.revoke(record.key_id)
    assert await find_key(library.keys, plaintext) is None
