"""Licences by SPDX headers and by their texts, and what an expression allows."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.data.code.licences import find_licence, is_allowed, is_licence_file, licences_in, normal_expression

MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software."""
BSD = """Redistribution and use in source and binary forms, with or without
modification, are permitted provided that the following conditions are met:
1. Redistributions of source code must retain the above copyright notice.
2. Redistributions in binary form must reproduce the above copyright notice.
"""
BSD3 = "3. Neither the name of the author nor the names of contributors may be used to endorse products.\n"
BSD4 = "3. All advertising materials mentioning features or use of this software must display a notice.\n"
GPL = """This program is free software; you can redistribute it and/or modify it under the terms of the
GNU General Public License as published by the Free Software Foundation; either version 2 of the License, or
(at your option) any later version."""
ISC = """Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee
is hereby granted, provided that the above copyright notice and this permission notice appear in all copies."""

TEXTS = [
    (MIT, "MIT"),
    ("Licensed under the MIT license.", "MIT"),
    ("@license MIT", "MIT"),
    (BSD, "BSD-2-Clause"),
    (BSD + BSD3, "BSD-3-Clause"),
    (BSD + BSD4, "BSD-4-Clause"),
    ("Use of this source code is governed by a BSD-style license that is in LICENSE.", "BSD-3-Clause"),
    ('Licensed under the Apache License, Version 2.0 (the "License"); you may not', "Apache-2.0"),
    ("                 Apache License\n           Version 2.0, January 2004", "Apache-2.0"),
    (GPL, "GPL-2.0-or-later"),
    (GPL.partition("; either")[0] + ", version 2.", "GPL-2.0-only"),
    (GPL.replace("version 2", "version 3"), "GPL-3.0-or-later"),
    (GPL.replace("General Public", "Lesser General Public").replace("version 2", "version 2.1"), "LGPL-2.1-or-later"),
    (GPL.replace("General Public", "Affero General Public").replace("version 2", "version 3"), "AGPL-3.0-or-later"),
    ("Released under the GPLv3.", "GPL-3.0-only"),
    ("GNU GENERAL PUBLIC LICENSE\n Version 2, June 1991\n ... either version 2, or any later version", "GPL-2.0-only"),
    ("This Source Code Form is subject to the terms of the Mozilla Public\nLicense, v. 2.0.", "MPL-2.0"),
    (ISC, "ISC"),
    (ISC.split(", provided")[0] + '. THE SOFTWARE IS PROVIDED "AS IS"', "0BSD"),
    ("This is free and unencumbered software released into the public domain.", "Unlicense"),
    ("CC0 1.0 Universal", "CC0-1.0"),
    ("Licensed to PSF under a Contributor Agreement.", "PSF-2.0"),
    ("Distributed under the Boost Software License, Version 1.0.", "BSL-1.0"),
]  # fmt: skip


@pytest.mark.parametrize("text, expected", TEXTS)
@pytest.mark.parametrize("mark", ["", "// ", " * ", "# ", ";; "])
def test_texts_in_any_comment(text, expected, mark):
    """Comment marks, line breaks and case do not matter."""
    decorated = "\n".join(mark + line for line in text.split("\n"))
    assert find_licence(decorated + "\nint main() {}\n") == expected
    assert find_licence(decorated.upper()) == expected
    words = decorated.split(" ")
    assert find_licence("\n".join(" ".join(words[i : i + 3]) for i in range(0, len(words), 3))) == expected


@pytest.mark.parametrize(
    "text",
    ["", "int main() { return 0; }", "Copyright 2020 X. All rights reserved.", "# the licence of drivers is checked",
     "Permission denied", "def warranty(): pass", "limit(x) # commit to a permissive policy"],
)  # fmt: skip
def test_no_licence(text):
    assert find_licence(text) == ""


@pytest.mark.parametrize(
    "header, expected",
    [
        ("// SPDX-License-Identifier: MIT", "MIT"),
        ("/* SPDX-License-Identifier: gpl-2.0 WITH Linux-syscall-note */", "GPL-2.0-only WITH Linux-syscall-note"),
        ("<!-- SPDX-License-Identifier: (MIT OR Apache-2.0) -->", "(MIT OR Apache-2.0)"),
        ("# SPDX-License-Identifier: GPL-2.0+", "GPL-2.0-or-later"),
        ("# SPDX-License-Identifier: MIT\n# SPDX-License-Identifier: ISC", "MIT AND ISC"),
        ("# SPDX-License-Identifier: MIT\n" + GPL, "MIT"),
    ],
)
def test_spdx_headers_count_alone(header, expected):
    assert find_licence(header + "\ncode\n") == expected


def test_several_texts():
    assert find_licence(MIT + "\n" + BSD + BSD3) == "MIT AND BSD-3-Clause"
    choice = 'Licensed under the Apache License, Version 2.0 <LICENSE-APACHE> or the MIT license <LICENSE-MIT>, at your option.'  # fmt: skip # noqa: E501
    assert find_licence(choice + " Licensed under the MIT license") == "MIT OR Apache-2.0"


@pytest.mark.parametrize(
    "text, expected",
    [("mit", "MIT"), ("MIT/Apache-2.0", "MIT OR Apache-2.0"), ("Apache License, Version 2.0", "Apache-2.0"),
     ("Apache 2.0", "Apache-2.0"), ("ISC License", "ISC"), ("['BSD-3-Clause']", "BSD-3-Clause"), ("", ""),
     ("GPL-3.0", "GPL-3.0-only"), ("our own terms", "our own terms"),
     ("LicenseRef-Public-Domain", "LicenseRef-Public-Domain"), ("MPL-2.0 and (apache-2.0 or mit)",
                                                               "MPL-2.0 AND (Apache-2.0 OR MIT)")],
)  # fmt: skip
def test_normal_expression(text, expected):
    assert normal_expression(text) == expected
    assert normal_expression(expected) == expected


@pytest.mark.parametrize(
    "expression, allowed, expected",
    [
        ("MIT", {"MIT"}, True),
        ("MIT", {"ISC"}, False),
        ("MIT OR GPL-2.0-only", {"MIT"}, True),
        ("MIT AND GPL-2.0-only", {"MIT"}, False),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", {"MPL-2.0", "MIT"}, True),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", {"Apache-2.0", "MIT"}, False),
        ("MIT OR ISC AND GPL-2.0-only", {"MIT"}, True),  # AND binds more tightly
        ("(MIT OR ISC) AND GPL-2.0-only", {"MIT"}, False),
        ("Apache-2.0 WITH LLVM-exception", {"Apache-2.0"}, True),
        ("own terms", {"MIT"}, False),
        ("(MIT", {"MIT"}, False),
    ],
)
def test_is_allowed(expression, allowed, expected):
    assert is_allowed(expression, allowed) is expected


EXPRESSIONS = st.recursive(
    st.sampled_from(["MIT", "ISC", "Apache-2.0", "MPL-2.0"]),
    lambda inner: st.tuples(inner, st.sampled_from(["AND", "OR"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
    max_leaves=8,
)


@given(EXPRESSIONS, st.sets(st.sampled_from(["MIT", "ISC", "Apache-2.0", "MPL-2.0"])))
def test_is_allowed_agrees_with_python(expression, allowed):
    """The same expression, evaluated as a Python one."""
    python = expression.replace("AND", "and").replace("OR", "or")
    for name in ("Apache-2.0", "MPL-2.0", "MIT", "ISC"):
        python = python.replace(name, str(name in allowed))
    assert is_allowed(expression, allowed) is eval(python)
    assert set(licences_in(expression)) == {n for n in ("Apache-2.0", "MPL-2.0", "MIT", "ISC") if n in expression}


@given(st.text(string.ascii_letters + " ()/+.-\n'[]", max_size=60))
def test_any_text_is_read(text):
    find_licence("SPDX-License-Identifier: " + text)
    assert normal_expression(normal_expression(text)) == normal_expression(text)
    is_allowed(text, {"MIT"})


def test_licence_files():
    for name in ("LICENSE", "a/LICENSE.txt", "LICENSE-MIT", "COPYING", "licence.md", "UNLICENSE"):
        assert is_licence_file(name)
    for name in (
        "LICENSES-third-party.txt",
        "license.py.html.js/x",
        "licenses.py",
        "my_license",
        "LICENSE-3rdparty.csv",
    ):
        assert not is_licence_file(name)
