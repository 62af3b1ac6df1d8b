"""Which addresses are connected to."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters_registry.errors import BadSource
from server.sources.addresses import CheckedResolver, check_host, is_public, is_reachable
from tests.support.hostile import Names

INSIDE = [
    *("127.0.0.1", "127.255.0.9", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
    *("100.100.100.200", "168.63.129.16", "0.0.0.0", "255.255.255.255", "224.0.0.1", "240.0.0.1", "192.0.2.1"),
    *("192.0.0.170", "198.18.0.1", "192.88.99.1", "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1"),
    *("64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001::1", "2001:db8::1", "fec0::1"),
    *("3fff::1", "5f00::1", "100::1"),
]
OUTSIDE = [
    "93.184.216.34",
    "1.1.1.1",
    "2606:4700::1111",
    "2a00:1450:4001:81b::200e",
    "::ffff:1.1.1.1",
    "64:ff9b::101:101",
]


@pytest.mark.parametrize("text", INSIDE)
def test_what_is_inside_is_refused(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize("text", OUTSIDE)
def test_public_addresses_are_reachable(text: str) -> None:
    assert is_public(ip_address(text))


@given(st.ip_addresses())
def test_what_python_calls_private_is_never_public(address) -> None:  # type: ignore[no-untyped-def]
    if is_public(address):
        inner = getattr(address, "ipv4_mapped", None) or address
        assert inner.is_global
        assert not (inner.is_private or inner.is_loopback or inner.is_link_local or inner.is_multicast)


@pytest.mark.parametrize(
    "text", ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "fd00:ec2::254", "0.0.0.0", "224.0.0.1"]
)
def test_clouds_secrets_are_out_of_reach_for_private_hosts_too(text: str) -> None:
    assert not is_reachable(ip_address(text), is_private_host=True)


def test_private_hosts_may_be_private() -> None:
    assert is_reachable(ip_address("10.1.2.3"), is_private_host=True)
    assert is_reachable(ip_address("127.0.0.1"), is_private_host=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::ffff:169.254.169.254]", "10.0.0.1"])
def test_hosts_written_as_addresses_are_judged(host: str) -> None:
    with pytest.raises(BadSource):
        check_host(host, ())


async def test_one_bad_address_among_good_ones_refuses_the_name() -> None:
    class Two(Names):
        async def resolve(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            return [*await super().resolve(*args, **kwargs), *await super().resolve(*args, **kwargs)]

    resolver = CheckedResolver((), Two({"mixed.example": ["1.1.1.1", "10.0.0.1"]}))
    with pytest.raises(BadSource) as caught:
        await resolver.resolve("mixed.example")
    assert "10.0.0.1" not in caught.value.message
    assert (
        len(await CheckedResolver(("mixed.example",), Two({"mixed.example": ["10.0.0.1"]})).resolve("mixed.example"))
        == 2
    )
