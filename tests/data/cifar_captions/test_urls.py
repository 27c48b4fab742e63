"""Test that only http(s) URLs of public hosts are kept, and others are counted."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from coyo_rows import row, write
from hypothesis import given
from hypothesis import strategies as st

from microdit.cli.main import main
from microdit.common.files.digests import read_signed, signed
from microdit.data.cifar_captions.urls import (
    LOCAL_ADDRESS,
    LOCAL_NAME,
    NO_HOST,
    NOT_WEB,
    ODD_ADDRESS,
    ODD_CHARACTERS,
    REASONS,
    rejection_reason,
)
from microdit.data.cifar_captions.urls import USER as USER_NAME

CLOSED = [  # IANA's special-purpose registries: blocks that no public host has an address in
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.2.0/24",
    "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
]  # fmt: skip
CLOSED_6 = ["::/128", "::1/128", "100::/64", "2001:db8::/32", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"]


def in_blocks(blocks: list[str]) -> st.SearchStrategy[str]:
    nets = [ipaddress.ip_network(block) for block in blocks]
    return st.sampled_from(nets).flatmap(lambda net: st.integers(0, net.num_addresses - 1).map(lambda k: str(net[k])))


def spellings(address: str) -> list[str]:
    """Return the ways in which inet_aton's documentation allows an address to be written."""
    a, b, c, d = map(int, address.split("."))
    whole = int(ipaddress.IPv4Address(address))
    return [
        address, f"{address}.", str(whole), hex(whole), f"0{whole:o}",
        f"{a}.{whole & 0xFFFFFF}", f"{a}.{b}.{c << 8 | d}",
        f"{a:#x}.{b:#x}.{c:#x}.{d:#x}", f"0{a:o}.0{b:o}.0{c:o}.0{d:o}", f"0X{a:X}.{b}.{c}.{d}",
        address.translate(str.maketrans("0123456789.", "０１２３４５６７８９。")),
    ]  # fmt: skip


@given(
    address=in_blocks(CLOSED),
    way=st.integers(0, 10),
    scheme=st.sampled_from(["http", "HTTPS"]),
    port=st.sampled_from(["", ":80", ":8080"]),
)
def test_no_spelling_of_a_closed_address_passes(address: str, way: int, scheme: str, port: str) -> None:
    assert rejection_reason(f"{scheme}://{spellings(address)[way]}{port}/a.jpg") == LOCAL_ADDRESS


@given(in_blocks(CLOSED_6))
def test_no_closed_ipv6_address_passes(address: str) -> None:
    assert rejection_reason(f"http://[{address}]/a.jpg") == LOCAL_ADDRESS
    assert rejection_reason(f"http://[{ipaddress.IPv6Address(address).exploded.upper()}]:81/a.jpg") == LOCAL_ADDRESS


@given(in_blocks(CLOSED))
def test_no_ipv6_address_embeds_a_closed_one(address: str) -> None:
    number = int(ipaddress.IPv4Address(address))
    six_to_four = ipaddress.IPv6Address(0x2002 << 112 | number << 80)
    for carrier in (f"::ffff:{address}", f"64:ff9b::{address}", str(six_to_four)):
        assert rejection_reason(f"http://[{carrier}]/a.jpg") == LOCAL_ADDRESS


SPECIAL = [ipaddress.ip_network(block) for block in (*CLOSED, "192.0.0.0/24", "192.88.99.0/24")]


@given(st.ip_addresses(v=4).filter(lambda address: not any(address in net for net in SPECIAL)))
def test_public_addresses_pass_in_their_plain_spelling(address: ipaddress.IPv4Address) -> None:
    assert rejection_reason(f"https://{address}/a.jpg") is None
    assert rejection_reason(f"https://{int(address)}/a.jpg") == ODD_ADDRESS
    assert rejection_reason(f"http://[::ffff:{address}]/a.jpg") is None


LABEL = st.from_regex(r"[a-z][a-z0-9]{0,9}", fullmatch=True)


LOCAL_ENDS = (
    "localhost", "local", "internal", "LOCALHOST", "localhost.", "home.arpa", "loc\N{FULLWIDTH LATIN SMALL LETTER A}l"
)  # fmt: skip
PATHS = st.from_regex(r"(/[A-Za-z0-9._~%?&=+-]{0,8}){0,3}", fullmatch=True)


@given(labels=st.lists(LABEL, min_size=1, max_size=3), path=PATHS)
def test_public_names_pass_and_local_ones_do_not(labels: list[str], path: str) -> None:
    name = ".".join(labels)
    assert rejection_reason(f"https://{name}.example.com{path}") is None
    for end in LOCAL_ENDS:
        assert rejection_reason(f"http://{name}.{end}{path}") == LOCAL_NAME


@given(st.text(max_size=60))
def test_any_text_is_kept_or_dropped_for_a_reason(text: str) -> None:
    for url in (text, f"http://{text}", f"http://a.example.com/{text}"):
        assert rejection_reason(url) in (None, *REASONS)
        if any(c <= " " or c == "\x7f" for c in url):
            assert rejection_reason(url) == ODD_CHARACTERS


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", NOT_WEB),
        ("data:image/png;base64,AAAA", NOT_WEB),
        ("ftp://a.example.com/a.jpg", NOT_WEB),
        ("gopher://a.example.com/", NOT_WEB),
        ("-o/tmp/x", NOT_WEB),
        ("--output=http://a.example.com/a.jpg", NOT_WEB),
        ("//a.example.com/a.jpg", NOT_WEB),
        ("a.example.com/a.jpg", NOT_WEB),
        ("http:a.example.com", NO_HOST),
        ("http:///a.jpg", NO_HOST),
        ("http://[::1", NO_HOST),
        ("http://a.example.com:99999/", NO_HOST),
        ("http://a..example.com/", NO_HOST),
        ("http://%31%32%37.0.0.1/", NO_HOST),
        ("http://256.1.1.1/", NO_HOST),
        ("http://-a.example.com/", NO_HOST),
        ("http://localhost/", LOCAL_NAME),
        ("http://printer/", LOCAL_NAME),
        ("http://metadata.google.internal/", LOCAL_NAME),
        ("http://a.example.com@127.0.0.1/", USER_NAME),
        ("http://user:word@a.example.com/", USER_NAME),
        (r"http://a.example.com\@127.0.0.1/", USER_NAME),
        ("http://a.example.com/a b.jpg", ODD_CHARACTERS),
        ("http://a.example.com/a\r\nHost:b", ODD_CHARACTERS),
        ("http://a.example.com/a\u2028b", ODD_CHARACTERS),
        ("http://local\u00adhost/", ODD_CHARACTERS),
        ("http://0127.0.0.1/", ODD_ADDRESS),
        ("http://[fe80::1%25eth0]/", LOCAL_ADDRESS),
        ("http://[2606:4700::1111]/a.jpg", None),
        ("https://bücher.example.com/größe.jpg?x=1#y", None),
        ("HTTP://Images.Example.COM:8080/A.JPG", None),
    ],
)
def test_single_urls(url: str, reason: str | None) -> None:
    assert rejection_reason(url) == reason


def select(folder: Path) -> int:
    """Select from the metadata in `folder`/coyo into `folder`/out."""
    line = ["data", "cifar-captions", "--coyo", str(folder / "coyo"), "--out", str(folder / "out"), "--select-only"]
    return main(line)


def test_the_command_drops_and_counts_urls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = ["file:///etc/passwd", "http://127.0.0.1/x", "http://169.254.169.254/latest/meta-data", "http://2130706433/"]
    bad += ["data:image/png;base64,AA", "-x", "http://localhost:8080/a.jpg", "http://a.example.com/a\nb.jpg"]
    good = [f"https://images.example.com/{k}.jpg" for k in range(6)]
    write(tmp_path / "coyo", [row(k, f"a cat number {k}", url=url) for k, url in enumerate([*bad, *good])])
    assert select(tmp_path) == 0
    assert sorted(pq.read_table(tmp_path / "out" / "selection.parquet")["url"].to_pylist()) == good
    dropped = json.loads((tmp_path / "out" / "card.json").read_text())["dropped"]
    counts = {NOT_WEB: 3, LOCAL_ADDRESS: 3, LOCAL_NAME: 1, ODD_CHARACTERS: 1, USER_NAME: 0}
    assert {name: dropped[name] for name in counts} == counts
    said = capsys.readouterr().out
    assert f"3  dropped: {NOT_WEB}" in said
    assert f"3  dropped: {LOCAL_ADDRESS}" in said


def test_a_selection_by_an_older_rule_is_not_downloaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "coyo", [row(k, f"a cat number {k}") for k in range(4)])
    assert select(tmp_path) == 0
    card = read_signed(tmp_path / "out" / "card.json")
    del card["identity"]["url_rule"]
    (tmp_path / "out" / "card.json").write_text(signed(card))
    capsys.readouterr()
    assert select(tmp_path) == 2
    assert "holds another selection: 'url_rule' is 1, there None" in capsys.readouterr().err


def test_captions_with_nul_characters_are_dropped(tmp_path: Path) -> None:
    write(tmp_path / "coyo", [row(1, "a cat\0here now"), row(2, "a cat\u2028and a\x85dog"), row(3, "one more cat")])
    assert select(tmp_path) == 0
    found = pq.read_table(tmp_path / "out" / "selection.parquet")["caption"].to_pylist()
    assert sorted(found) == ["a cat and a dog", "one more cat"]
