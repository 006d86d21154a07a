"""Block lists of domains and addresses, against sets of strings."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.data.safe import blocklists
from puyulm.data.safe.blocklists import (
    domain_candidates,
    line_hashes,
    load_domains,
    load_url_words,
    load_urls,
    normal_url,
    url_candidates,
    url_words,
)
from puyulm.errors import DataError

LINES = st.lists(
    st.text(st.characters(blacklist_characters="\n", blacklist_categories=["Cs"]), max_size=30), min_size=1
)


@given(LINES)
def test_hashes_of_lines_do_not_depend_on_their_neighbours(lines: list[str]) -> None:
    together = line_hashes("".join(line + "\n" for line in lines).encode())
    alone = [int(line_hashes(line.encode() + b"\n")[0]) for line in lines]
    assert together.tolist() == alone
    assert len(set(alone)) == len(set(lines))


def test_listed_domains_stand_for_their_subdomains_only(tmp_path: Path) -> None:
    path = tmp_path / "domains.txt"
    path.write_text(
        "bad.example\nvery.bad.site\nwww.shop.test\n# a comment\n\nUPPER.net # why\nhttp://scheme.org/x\nпример.рф\n"
    )
    blocked = load_domains([path])
    assert len(blocked) == 6
    urls = {
        "https://bad.example/": True, "http://a.b.bad.example:8080/x?y": True, "https://notbad.example/": False,
        "https://bad.example.org/": False, "https://bad.site/": False, "https://x.very.bad.site/": True,
        "http://shop.test/": True, "http://user:pw@shop.test./": True, "https://upper.net/a": True,
        "https://scheme.org": True, "https://пример.рф/путь": True, "https://xn--e1afmkfd.xn--p1ai/": True,
        "": False, "lib/file.py": False, "bad.example/page": True, "https://good.org/bad.example": False,
    }  # fmt: skip
    assert blocked.blocks([domain_candidates(url) for url in urls]) == list(urls.values())


def test_a_long_list_read_in_pieces_is_the_same_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    names = ["".join(chr(97 + c) for c in generator.integers(0, 26, n)) for n in generator.integers(1, 12, 3000)]
    domains = [f"{name}.com" for name in names] + ["twice.com", "twice.com"]
    path, packed = tmp_path / "list", tmp_path / "list.gz"
    path.write_text("\n".join(domains))
    packed.write_bytes(gzip.compress(path.read_bytes()))
    whole = load_domains([path])
    assert len(whole) == len(set(domains))
    assert (np.diff(whole.hashes.astype(object)) > 0).all()
    monkeypatch.setattr(blocklists, "CHUNK_BYTES", 97)
    for again in (load_domains([path]), load_domains([packed]), load_domains([path, packed])):
        assert (again.hashes == whole.hashes).all()
    assert whole.contains(domains).all()
    others = [name + ".org" for name in names]
    assert not whole.contains(others).any()


def test_prefixes_of_addresses_end_where_a_part_ends(tmp_path: Path) -> None:
    path = tmp_path / "urls"
    path.write_text("site.com/adult\nhttps://www.other.org/a/b/\nWhole.net\nq.com/x?id=7\n")
    blocked = load_urls([path])
    urls = {
        "http://site.com/adult": True, "https://www.Site.com/adult/x.html": True, "https://site.com/adult?p=1": True,
        "https://site.com/adults": False, "https://site.com/Adult": False, "https://a.site.com/adult": False,
        "https://other.org/a/b/c": True, "https://other.org/a/b": False, "https://whole.net/any/page#part": True,
        "https://q.com/x?id=7&page=2": True, "https://q.com/x?id=71": False, "": False,
    }  # fmt: skip
    assert blocked.blocks([url_candidates(url) for url in urls]) == list(urls.values())
    assert blocked.blocks([]) == []


def test_words_of_addresses(tmp_path: Path) -> None:
    path = tmp_path / "words"
    path.write_text("Casino\n# no\nslots # yes\n")
    assert load_url_words([path]) == {"casino", "slots"}
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_url_words([path]) == {"casino", "slots"}
    assert url_words("https://best-casino.com/Free_Slots/%E8%B5%8C?x=1") >= {
        "best",
        "casino",
        "free",
        "slots",
        "赌",
        "x",
    }
    assert "https" not in url_words("https://a.com") and "casinos" in url_words("casinos.com")


def test_odd_addresses_pass() -> None:
    for url in (
        "http://",
        "://",
        "http://[::1]/",
        "a\nb.com/\tc",
        "http://%zz",
        "http://" + "a." * 500 + "com",
        "???",
        "#",
    ):
        assert all("\n" not in candidate for candidate in domain_candidates(url) + url_candidates(url))
    assert normal_url("HTTPS://WWW.A.com:443/B#c") == "a.com/B"


@given(st.lists(st.text(max_size=40), max_size=5))
def test_any_addresses_can_be_looked_up(urls: list[str]) -> None:
    blocked = blocklists.BlockList(np.sort(line_hashes(b"a.b\na.b/c\n")))
    for candidates in (domain_candidates, url_candidates):
        expected = [bool({"a.b", "a.b/c"} & set(candidates(url))) for url in urls]
        assert blocked.blocks([candidates(url) for url in urls]) == expected


def test_problems_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no block list at .*missing"):
        load_domains([tmp_path / "missing"])
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"a.com\n" * 1000)[:-9])
    with pytest.raises(DataError, match="damaged"):
        load_domains([tmp_path / "cut.gz"])
