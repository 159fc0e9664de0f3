"""Which addresses a fetch may reach."""

from ipaddress import ip_address

import pytest

from perdure.tools.addresses import Allowed, is_public


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254", "169.254.170.2", "100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192",
        "192.0.2.1",
        "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
        "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "2001:db8::1", "3fff::1", "100::1",
        "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254",
        "64:ff9b:1::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:c0a8:101::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "4000::1",
    ],
)  # fmt: skip
def test_the_inside_is_not_public(text):
    """Private, loopback, link-local, shared, reserved, multicast, metadata, and IPv6 forms that lead there."""
    assert not is_public(ip_address(text))


@pytest.mark.parametrize(
    "text",
    [
        "8.8.8.8", "93.184.216.34", "172.15.255.255", "172.32.0.0", "100.63.255.255", "100.128.0.0", "192.167.255.255",
        "2606:4700::1111", "2a00:1450:4001::200e", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1",
    ],
)  # fmt: skip
def test_the_open_internet_is_public(text):
    assert is_public(ip_address(text))


@pytest.mark.parametrize(
    ("entry", "host", "address", "reached"),
    [
        ("10.0.0.0/8", "x", "10.1.2.3", True),
        ("10.0.0.0/8", "x", "::ffff:10.1.2.3", True),
        ("10.0.0.0/8", "x", "192.168.1.1", False),
        ("10.0.0.5", "x", "10.0.0.5", True),
        ("10.0.0.5", "x", "10.0.0.6", False),
        ("[fd00::1]", "x", "fd00::1", True),
        ("fd00::/8", "x", "fd12::1", True),
        ("Files.Intern.", "files.intern", "10.0.0.1", True),
        ("files.intern", "FILES.INTERN.", "10.0.0.1", True),
        ("files.intern", "evil.files.intern", "10.0.0.1", False),
        ("files.intern", "10.0.0.1", "10.0.0.1", False),
    ],
)
def test_the_operator_may_open_hosts_and_ranges(entry, host, address, reached):
    assert Allowed([entry]).reaches(host, ip_address(address)) is reached


@pytest.mark.parametrize("entry", ["", "  ", "http://a", "a:80", "*.a", "10.0.0.0/99", "a b"])
def test_an_entry_that_is_none_is_an_error_at_start(entry):
    with pytest.raises(ValueError, match="neither a host name nor an address"):
        Allowed([entry])
