from __future__ import annotations

import pytest

from aegis.data.sources.web.addresses import refusal, resolve

# What may never be connected to, by the kinds of IANA's registries and of clouds.
INNER = """
0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.254 100.100.100.200 127.0.0.1
127.255.255.254 168.63.129.16 169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.255 192.0.0.192
192.0.0.9 192.0.2.1 192.31.196.1 192.52.193.1 192.88.99.1 192.168.0.1 192.175.48.1 198.18.0.1
198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
:: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:0:127.0.0.1 64:ff9b::7f00:1
64:ff9b::808:808 64:ff9b:1::a9fe:a9fe 100::1 2001::1 2001:0:7f00:1::1 2001:2::1 2001:10::1
2001:20::1 2001:db8::1 2002:7f00:1:: 2002:a9fe:a9fe::1 2620:4f:8000::1 3fff::1 5f00::1
2400::5efe:7f00:1 2400::200:5efe:a00:1 4000::1 fc00::1 fd00:ec2::254 fe80::1 fe80::1%eth0
2400::1%eth0 febf::1 fec0::1 ff02::1 ff0e::1
""".split()  # noqa: SIM905
PUBLIC = "8.8.8.8 1.1.1.1 100.63.255.255 100.128.0.1 172.32.0.1 192.0.1.1 2606:4700::1111 2400::1"
BESIDE = (
    "9.255.255.255 11.0.0.1 128.0.0.1 169.253.0.1 192.167.0.1 223.255.255.255 2003::1 2600::5efe"
)


@pytest.mark.parametrize("address", INNER)
def test_no_inner_address_and_no_disguise_of_one_is_public(address: str) -> None:
    assert refusal(address)


@pytest.mark.parametrize("address", [*PUBLIC.split(), *BESIDE.split()])
def test_public_addresses_may_be_connected_to(address: str) -> None:
    assert refusal(address) is None


@pytest.mark.parametrize("text", ["", "localhost", "127.1", "0x7f000001", "1.2.3.4 ", "[::1]"])
def test_what_is_no_address_is_not_public(text: str) -> None:
    assert refusal(text) == "not an address"


@pytest.mark.parametrize("text", ["127.1", "0x7f.1", "2130706433", "017700000001", "0"])
def test_other_ways_to_write_an_address_are_resolved_to_it(text: str) -> None:
    assert all(refusal(address) for address in resolve(text, 80))
