"""The address table and the checks that need no network. Public addresses are only classified, never contacted."""

from __future__ import annotations

import pytest

from models.fetch import FetchBlockedError, FetchPolicy, check_url, is_public, parse_allow_hosts
from models.fetch.policy import parse_target
from models.settings import SettingsError

NOT_PUBLIC = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.255"),
    *("127.0.0.1", "127.255.255.254", "168.63.129.16", "169.254.169.254", "169.254.0.1", "172.16.0.1"),
    *("172.31.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1"),
    *("198.19.255.255", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.250", "240.0.0.1"),
    *("255.255.255.255", "192.31.196.1", "192.52.193.1", "192.175.48.1"),
    *("::", "::1", "::7f00:1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:8.8.8.8"),
    *(
        "::ffff:0:7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::8.8.8.8",
        "64:ff9b:1::1",
        "100::1",
        "fe80::1",
        "fe80::1%eth0",
    ),
    *("fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001::1", "2001:0:7f00:1::", "2001:2::1", "2001:10::1"),
    *("2001:20::1", "2001:db8::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "3ffe::1", "3fff::1", "4000::1", "5f00::1"),
    *("2606:4700:4700::1111%eth0", "8000::1", "2620:4f:8000::1"),
    *(
        "",
        "localhost",
        "example.com",
        "127.1",
        "0x7f.1",
        "2130706433",
        "0177.0.0.1",
        "8.8.8.8 ",
        "[::1]",
        "8.8.8.8/32",
    ),
]
PUBLIC = [
    *("1.1.1.1", "8.8.8.8", "93.184.216.34", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0"),
    *("126.255.255.255", "128.0.0.1", "168.63.129.15", "168.63.129.17", "169.253.255.255", "169.255.0.0"),
    *("172.15.255.255", "172.32.0.0", "192.0.1.1", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0"),
    *("223.255.255.255", "2001:4860:4860::8888", "2001:200::1", "2606:4700:4700::1111", "2a00:1450:4001::1"),
    *("2003::1", "2620:fe::fe", "2001:db7:ffff::1", "2001:db9::1"),
]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert is_public(address)


BLOCKED_URLS = [
    # schemes
    *(
        "file:///etc/passwd",
        "gopher://example.com/",
        "data:text/plain,x",
        "ftp://example.com/",
        "javascript:1",
        "//a.com/",
    ),
    *(
        "",
        "example.com",
        "/path",
        "http:",
        "http://",
        "http:///x",
        "http:example.com",
        "ws://example.com/",
        "unix:///x",
    ),
    # ports
    *("http://example.com:22/", "http://example.com:6379/", "http://example.com:0/", "http://example.com:8080/"),
    *("http://example.com:99999/", "http://example.com:-80/", "http://example.com:80x/", "https://example.com:8443/"),
    # credentials
    *("http://user@example.com/", "http://user:pw@example.com/", "http://@example.com/", "http://:@example.com/"),
    *("http://example.com@127.0.0.1/", "http://example.com%40x@example.com/", "http://a:80@b/"),
    # one IPv4 address in every spelling
    *("http://127.0.0.1/", "http://127.1/", "http://127.0.1/", "http://0x7f.1/", "http://0x7f000001/", "http://0/"),
    *(
        "http://2130706433/",
        "http://0177.0.0.1/",
        "http://017700000001/",
        "http://127.0.0.1./",
        "http://127.0.0.1../",
    ),
    *("http://0X7F.0.0.1/", "http://127.0.0.0x1/", "http://127.00.0.1/", "http://0.0.0.0/", "http://127.0.0.1:80/"),
    *(
        "http://\uff11\uff12\uff17.\uff10.\uff10.\uff11/",
        "http://\u2460\u2461\u2466.0.0.1/",
        "http://127\u30020\u30020\u30021/",
        "http://127%2e0%2e0%2e1/",
        "http://%31/",
    ),
    *("http://1.2.3.4.5/", "http://256.1.1.1/", "http://4294967296/", "http://0x8.8.8.8/", "http://8.8.8.8./"),
    *("http://169.254.169.254/latest/meta-data", "http://168.63.129.16/", "http://10.1.2.3/", "http://224.0.0.1/"),
    # IPv6
    *(
        "http://[::1]/",
        "http://[::]/",
        "http://[0:0:0:0:0:0:0:1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
    ),
    *("http://[::7f00:1]/", "http://[64:ff9b::a9fe:a9fe]/", "http://[2002:7f00:1::]/", "http://[fec0::1]/"),
    *(
        "http://[fe80::1%25eth0]/",
        "http://[fe80::1%eth0]/",
        "http://[2606:4700::1%25eth0]/",
        "http://[::1",
        "http://::1/",
    ),
    *("http://[v1.a]/", "http://[127.0.0.1]/", "http://[]/", "http://[::1]evil.com/"),
    # names
    *(
        "http://localhost/",
        "http://LOCALHOST/",
        "http://localhost./",
        "http://a.localhost/",
        "http://\u217cocalhost/",
    ),
    *("http://a..b/", "http://.a/", "http://-a.com/", "http://a b/", "http://a%00.com/", "http://ex%61mple.com/"),
    *("http://" + "a" * 64 + ".com/", "http://" + "a." * 127 + "com/", "http://*/", "http://a,b/"),
    # what parsers disagree on
    *("http://example.com\\@127.0.0.1/", "http:\\\\example.com/", "http://example.com\t/", "http://exam\nple.com/"),
    *("http://example.com/\r\nHost: x", "\x00http://example.com/", " http://127.0.0.1/", "http://example.com/\x7f"),
    "http://example.com/" + "a" * 9000,
]
GOOD_URLS = [
    *("http://example.com/", "https://example.com", "HTTPS://EXAMPLE.COM/a?b=c#d", "http://example.com:80/"),
    *(
        "http://example.com:443/",
        "https://example.com:/",
        "http://example.com./",
        "http://xn--zca.de/",
        "http://straße.de/ü",
    ),
    *(
        "http://a_b.example.com/",
        "http://8.8.8.8/",
        "http://[2606:4700:4700::1111]/",
        "http://[2001:4860:4860::8888]:443/",
    ),
    *("https://example.com/a%2Fb?x=%2F%20", "http://1.example.com/", "http://example.c0m/", "http://intranet/"),
    *(
        "https://example.com/a b.png",
        "http://127.0.0.1.example.com/",
        "http://example.com/@user",
        "http://a.com?u=x@y",
    ),
]


@pytest.mark.parametrize("url", BLOCKED_URLS)
def test_blocked_before_any_network(url: str) -> None:
    with pytest.raises(FetchBlockedError) as caught:
        check_url(url, FetchPolicy())
    assert (caught.value.status, caught.value.code) == (422, "fetch_blocked")


@pytest.mark.parametrize("url", GOOD_URLS)
def test_passes(url: str) -> None:
    check_url(url, FetchPolicy())


def test_a_url_in_wire_form_keeps_its_spelling() -> None:
    signed = "https://b.example.com/k%2Fx/%7e?X-Credential=a%2Fb%2Bc&s=%c3"
    assert str(parse_target(signed, FetchPolicy()).url) == signed
    assert str(parse_target("https://example.com/ü x#part", FetchPolicy()).url) == "https://example.com/%C3%BC%20x"


def test_allow_hosts() -> None:
    text = " minio , A.Example.COM:8080,[::1]:9000,127.0.0.1:80,::2,[2001:DB8::0:1],,caf\u00e9"
    with pytest.raises(SettingsError):
        parse_allow_hosts(text)
    assert parse_allow_hosts(text.rpartition(",")[0]) == {
        *(("minio", 80), ("minio", 443), ("a.example.com", 8080), ("::1", 9000), ("127.0.0.1", 80)),
        *(("::2", 80), ("::2", 443), ("2001:db8::1", 80), ("2001:db8::1", 443)),
    }
    assert parse_allow_hosts("") == frozenset()


@pytest.mark.parametrize(
    "entry",
    [
        *(
            "http://a",
            "a:b",
            "a:",
            "a:0",
            "a:65536",
            "a:-1",
            "a:\uff18\uff10",
            "[::1",
            "[::1]9000",
            "[::1]:",
            "127.1",
            "a b",
            "a/b",
        ),
        *("*", "*.a", "10.0.0.0/8", "user@a", "a:80:90", "[fe80::1%eth0]"),
    ],
)
def test_wrong_allow_hosts_name_variable_and_place(entry: str) -> None:
    with pytest.raises(SettingsError, match="IGEN_FETCH_ALLOW_HOSTS: entry 2 "):
        parse_allow_hosts(f"good,{entry},other")


def test_allowed_hosts_are_exact() -> None:
    policy = FetchPolicy(allow_hosts=parse_allow_hosts("localhost,minio:9000,[::1]:9000,10.0.0.5:81"))
    for url in (
        *(
            "http://localhost/",
            "https://LOCALHOST./x",
            "http://localhost:443/",
            "http://minio:9000/b",
            "http://[0::1]:9000",
        ),
        "http://10.0.0.5:81/",
    ):
        check_url(url, policy)
    for url in (
        *("http://localhost:8080/", "http://minio:9001/", "http://[::1]/", "http://10.0.0.5/", "http://10.0.0.6:81/"),
        *("http://x@minio:9000/", "ftp://minio:9000/", "http://10.0.1281:81/", "http://a.minio:9000/"),
    ):
        with pytest.raises(FetchBlockedError):
            check_url(url, policy)
