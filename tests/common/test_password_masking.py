"""Test password masking against SQLAlchemy's parser, also with free text around a URI."""

from __future__ import annotations

import io
import logging
from urllib.parse import urlsplit

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sqlalchemy.engine import URL, make_url

from microdit.common.stores import secrets
from microdit.common.stores.secrets import masked, remember
from sweeps.cli import main
from sweeps.execution.trial_log import redirect_output

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=16)


@given(user=WORDS, password=WORDS, driver=st.sampled_from(["postgresql", "postgresql+psycopg", "mysql+pymysql"]))
def test_a_rendered_uri_is_masked_as_sqlalchemy_masks_it(user: str, password: str, driver: str) -> None:
    url = URL.create(driver, user, password, "host", 5432, "db", {"sslmode": "require"})
    full, hidden = (url.render_as_string(hide_password=hide) for hide in (False, True))
    assert make_url(full).password == password
    assert masked(full) == hidden
    assert masked(hidden) == hidden
    assert masked(f"no route to {full}: refused") == f"no route to {hidden}: refused"
    assert masked(f"tracking_uri={full}") == f"tracking_uri={hidden}"


def read_host(uri: str) -> str | None:
    """Return the host that Python's own URL parser finds; None if it finds none or rejects the URL."""
    try:
        return urlsplit(uri).hostname or None
    except ValueError:
        return None


@given(password=WORDS, space=st.sampled_from(["postgresql://u:{}@host/x", "https://u:{}@host"]))
def test_a_handwritten_password_of_any_characters_is_masked(password: str, space: str) -> None:
    full, hidden = space.format(password), space.format("***")
    if full.startswith("https"):
        assume(not password[0].isdigit())  # it may be a port
        assume(read_host(full) in (None, "host"))  # an HTTP client finds another host, as in https://u:a@b/c@host
    assert masked(full) == hidden
    assert masked(f"queue_uri={full}") == f"queue_uri={hidden}"
    if "\n" not in password:
        assert masked(f"can't open {full} now") == f"can't open {hidden} now"


@given(
    user=st.text("user@?#%&= \n", max_size=6),
    around=st.lists(st.text("w:/?&=#% *'\"\n", max_size=6), min_size=2, max_size=2),
    rest=st.text("ho/?&=# \n", min_size=1, max_size=8),
)
def test_everything_that_sqlalchemy_parses_as_password_is_masked(user: str, around: list[str], rest: str) -> None:
    uri = f"postgresql://{user}:{'s3cret'.join(around)}@h{rest}"
    assert "s3cret" in str(make_url(uri).password)
    assert "s3cret" not in masked(uri)
    assert "s3cret" not in masked(f"tracking_uri={uri}")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:a b@host/x", "postgresql://u:***@host/x"),
        ("postgresql://u:p@ss:w/ord@host/x", "postgresql://u:***@host/x"),
        ("postgresql://me@corp:pw@host/x", "postgresql://me@corp:***@host/x"),
        ("postgresql://u@[::1]:5432/x", "postgresql://u@[::1]:5432/x"),
        ("postgresql://u:pw@[::1]:5432/x", "postgresql://u:***@[::1]:5432/x"),
        ("postgresql://h/d?user=u&password=a b&x=1", "postgresql://h/d?user=u&password=***&x=1"),
        ("postgresql://h/d?pass%77ord=abc", "postgresql://h/d?pass%77ord=***"),
        ("https://h/api?token=abc and more", "https://h/api?token=***"),
        ("see https://h/api?token=abc and more", "see https://h/api?token=*** and more"),
        ("connecting with host=h password='a b' user=u", "connecting with host=h password=*** user=u"),
        ("https://u:@#@host", "https://u:***@host"),
        ("https://u:a@/b@host/x", "https://u:***@host/x"),
        ("https://u:pw@host/files/a@b", "https://u:***@host/files/a@b"),
        ("http://head:5000/x and a@b", "http://head:5000/x and a@b"),
        ("model.masking.ratio=0.5 a:b@c", "model.masking.ratio=0.5 a:b@c"),
        ("sqlite:////a:b@c/mlflow.db", "sqlite:////a:b@c/mlflow.db"),
    ],
)
def test_examples_are_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown


def test_a_known_password_is_masked_as_a_whole_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", set())
    remember("postgresql://postgres:tr%20icky@host/postgres")
    assert masked('login of "postgres" with "tr icky" failed') == 'login of "postgres" with "***" failed'
    assert masked("tr%20icky") == "***"
    assert masked("postgresql://postgres:x@host/postgres") == "postgresql://postgres:***@host/postgres"
    monkeypatch.setenv("PGPASSWORD", "frommyenv")
    assert masked("used frommyenv, not frommyenvironment") == "used ***, not frommyenvironment"


def test_a_trials_log_is_masked() -> None:
    kept = io.StringIO()
    with redirect_output(kept):
        print("asking postgresql://u:a b@host/x")
        logging.getLogger("any").warning("asking %s", "postgresql://u:p@ss@host/x")
    assert kept.getvalue() == "asking postgresql://u:***@host/x\nasking postgresql://u:***@host/x\n"


def test_a_traceback_at_the_command_line_is_masked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        raise RuntimeError("lost postgresql://u:p@ss:w/ord@host/x")

    monkeypatch.setattr("sweeps.cli._dispatch", fail)
    assert main(["ui"]) == 1
    said = capsys.readouterr().err
    assert "RuntimeError: lost postgresql://u:***@host/x" in said
    assert "w/ord" not in said
