"""A secret in a URL, a specification or a setting is repeated by no error, repr or traceback."""

import io
import logging
import traceback

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trim_graph import SettingsError, open_checkpointer, open_ledger
from trim_graph.adapters import ChatVLLM, VLLMProcessReward
from trim_graph.cli.common import parsed_option
from trim_graph.config import load_config, make_config
from trim_graph.errors import may_be_shown, shown_address, shown_url
from trim_graph.evaluation.datasets import make_dataset
from trim_graph.storage.checkpoint import CheckpointPlace

SECRET = "hunter2SECRET"
PARTS = {"small": {"type": "example"}, "large": {"type": "example"}, "policy": "small_only"}


def all_of(error):
    """Everything that a log or a debugger may show of an error."""
    shown, seen, pending = [], set(), [error]
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        shown += [str(one), repr(one), *map(str, one.args), "".join(traceback.format_exception(one))]
        pending += [one.__cause__, one.__context__]
    return "\n".join(shown)


def refusal(make):
    """What is shown where `make` refuses; the repr of what it makes otherwise."""
    try:
        made = make()
    except (ValueError, SettingsError) as error:
        return all_of(error)
    return f"{made!r} {made}"


# Around the secret whatever a hand may type: delimiters of URLs, blanks, control characters, percent signs.
NOISE = st.text(alphabet="ab1:/@?#[]%& \t\n\x00\\'\".=,;é", max_size=6)
PLANTED = st.one_of(
    st.builds(
        "{}{}{}:{}{}{}@{}{}".format,
        st.sampled_from(
            ["http://", "https://", "postgresql://", "postgres://", "HTTP://", "ftp://", "//", ""]
        ),
        NOISE,
        st.sampled_from(["user", ""]),
        NOISE,
        st.just(SECRET),
        NOISE,
        st.sampled_from(["host", "[::1", "host:abc", "host:99999999", "h,i", ""]),
        st.sampled_from(["", "/v1", "/d?sslmode=require"]),
    ),
    st.builds(
        "{}host{}{}{}{}{}".format,
        st.sampled_from(["http://", "https://", "postgresql://", "redis://", "postgresql+psycopg://"]),
        NOISE,
        st.sampled_from(["/v1", "/d", ":80", ""]),
        st.sampled_from(["?password=", "?sslpassword=", "?key=", "#", "?a=b&api_key=", "?pass%77ord="]),
        st.just(SECRET),
        NOISE,
    ),
)


@settings(deadline=None, max_examples=25)
@given(PLANTED)
@example(f"http://user:{SECRET}@host:abc/v1")
@example(f"http://h\x00:{SECRET}@x")
@example(f"http://user/{SECRET}@host/v1")
def test_an_address_of_a_server_is_never_repeated_with_its_secret(url):
    for make in (
        lambda: ChatVLLM(model="m", base_url=url),
        lambda: ChatVLLM(model="m", base_url=["http://ok:1", url]),
        lambda: VLLMProcessReward("m", base_url=url),
        lambda: make_config({**PARTS, "small": {"type": "vllm", "model": "m", "base_url": url}}),
        lambda: make_config({**PARTS, "scorer": {"type": "vllm_prm", "model": "m", "base_url": [url, 3]}}),
        lambda: make_config({**PARTS, "small": url}),
        lambda: make_config({**PARTS, "small": {"type": url}}),
        lambda: make_config({**PARTS, "small": {"type": "transformers", "model": url}}),
        lambda: make_config({**PARTS, "budget": {"large_tokens": url}}),
        lambda: make_dataset(url) if "://" in url else None,
    ):
        assert SECRET not in refusal(make)


@settings(deadline=None, max_examples=25)
@given(PLANTED)
@example(f"postgresql:u:{SECRET}@h/d")
@example(f"postgresql+psycopg://u:{SECRET}@h/d")
@example(f"postgresql://u:{SECRET}@[h/d")
@example(f"postgresql://u:{SECRET}/x@h/d")
@example(f"env:postgresql://u:{SECRET}@h/d")
@example(f"sqlite://u:{SECRET}@nowhere/d")
@example(f"postgresql://host/v1?key={SECRET}")
def test_a_specification_is_never_repeated_with_its_secret(spec):
    for make in (
        lambda: open_checkpointer(spec).place,
        lambda: open_ledger(spec),
        lambda: make_config({**PARTS, "checkpoint": spec}),
        lambda: make_config({**PARTS, "ledger": spec}),
        lambda: make_config({**PARTS, "ledger": [spec]}),
    ):
        assert SECRET not in refusal(make)


def no_such_host(host, *_, **__):
    raise OSError(f"no such host: {host}")


@settings(deadline=None, max_examples=50)
@given(PLANTED.filter(lambda spec: "\x00" not in spec))
@example(f"postgresql://u:{SECRET}@127.0.0.1:1/d?connect_timeout=1")
@example(f"postgresql://u:{SECRET}@[h/d")
@example(f"postgresql://u:pa@{SECRET}@127.0.0.1:1/d")
@example(f"postgresql://127.0.0.1:1/d?sslmode={SECRET}")
@example(f"postgresql://127.0.0.1:1/d?port={SECRET}")
@example(f"postgresql://127.0.0.1:1/d?{SECRET}=1")
def test_nor_one_that_the_environment_holds(spec):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THE_PLACE", spec)
        patch.setattr("socket.getaddrinfo", no_such_host)
        for opened in (open_checkpointer, open_ledger):

            def enter(opened=opened):
                with opened("env:THE_PLACE"):
                    pass

            assert SECRET not in refusal(enter)


def test_a_database_is_named_as_far_as_that_gives_nothing_away():
    postgres = pytest.importorskip("trim_graph.storage.postgres")
    named = "the PostgreSQL database host=h port=5 dbname=d user=u"
    assert postgres.shown_database(f"postgresql://u:{SECRET}@h:5/d?options={SECRET}") == named
    assert postgres.shown_database("postgresql://u:pa@ss@h:5/d") == "the PostgreSQL database"
    assert postgres.shown_database("postgresql://[h/d") == "the PostgreSQL database"


def test_a_place_from_the_environment_shows_no_url(monkeypatch):
    monkeypatch.setenv("THE_PLACE", f"postgresql://u:{SECRET}@h/d")
    place = open_checkpointer("env:THE_PLACE").place
    assert SECRET not in f"{place} {place!r}"
    assert place.spec == f"postgresql://u:{SECRET}@h/d"
    assert CheckpointPlace("sqlite", "runs.db").spec == "sqlite:runs.db"


@pytest.mark.parametrize("key", ["sk-live-4711", "hf_AbCdEfGhIjKlMnOpQrStUvWx", "token abc", "a3f9" * 8, ""])
def test_a_key_in_the_place_of_a_variables_name_is_refused_and_not_repeated(key):
    for make in (
        lambda: ChatVLLM(model="m", api_key_env=key),
        lambda: VLLMProcessReward("m", api_key_env=key),
        lambda: make_config({**PARTS, "small": {"type": "vllm", "model": "m", "api_key_env": key}}),
        lambda: make_config({**PARTS, "checkpoint": f"env:{key}"}),
    ):
        with pytest.raises(ValueError, match=r"name of an environment variable|choose none") as caught:
            make()
        assert not key or key not in all_of(caught.value)


def test_names_of_variables_are_taken(monkeypatch):
    monkeypatch.setenv("aVeryOwnNameOfMine2026", "1")
    for name in (
        "VLLM_API_KEY",
        "MY_VERY_LONG_VARIABLE_NAME_OF_2026",
        "my_key",
        "aVeryOwnNameOfMine2026",
        None,
    ):
        assert ChatVLLM(model="m", api_key_env=name).api_key_env == name


@pytest.mark.parametrize(
    "kwargs",
    [
        {"base_url": f"http://u:{SECRET}@h"},
        {"model_kwargs": {"api_key": SECRET}},
        {"endpoints": [{"url": f"https://{SECRET}@h/v1"}]},
    ],
)
def test_settings_of_a_provider_hold_no_secret_at_any_depth(kwargs):
    with pytest.raises(SettingsError, match="does not belong into a file") as caught:
        make_config({**PARTS, "large": {"type": "langchain", "model": "openai:m", "kwargs": kwargs}})
    assert SECRET not in all_of(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "small: {{type: vllm, model: m, base_url: http://u:{0}@h: x}}",
        "checkpoint: *{0}",
        "api_key: !{0} x",
        'ledger: "{0} \\q"',
        "- http://u:{0}@h",
        "http://u:{0}@h",
        "small: {{type: vllm, model: m, password: {0}}}\npolicy: small_only",
        "small: {{type: example, device: [api_key: {0}]}}\nlarge: {{type: example}}\npolicy: small_only",
    ],
)
def test_a_file_that_cannot_be_read_is_not_quoted_where_a_secret_may_stand(text, tmp_path):
    file = tmp_path / "trim.yaml"
    file.write_text(text.format(SECRET))
    with pytest.raises(SettingsError, match=r"trim\.yaml") as caught:
        load_config(file)
    assert SECRET not in all_of(caught.value)


def test_an_option_that_is_no_yaml_is_not_quoted_where_a_secret_may_stand():
    with pytest.raises(SettingsError, match="--dataset is neither") as caught:
        parsed_option("--dataset", f"{{path: http://u:{SECRET}@h", "{type: file}")
    assert SECRET not in all_of(caught.value)


@pytest.mark.parametrize("address", [f"ray://u:{SECRET}@h:10001", f"u:{SECRET}@h:6379", f"h:6379?{SECRET}"])
def test_the_address_of_a_cluster_is_not_repeated(address):
    cluster = pytest.importorskip("trim_graph.distributed")
    with pytest.raises(SettingsError, match="give HOST:PORT") as caught:
        cluster._reach(address)
    assert SECRET not in all_of(caught.value)


@pytest.mark.parametrize(
    "proxy",
    [f"http://u:p/{SECRET}@h", f"http://h:{SECRET}", f"gopher://u:{SECRET}@h", f"socks5://u:{SECRET}@h"],
)
def test_a_proxy_that_cannot_be_used_is_not_repeated(proxy, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", proxy)
    logged = io.StringIO()
    handler = logging.StreamHandler(logged)
    logging.getLogger().addHandler(handler)
    try:
        with pytest.raises(Exception, match=r"proxy of the environment|no server answers") as caught:
            ChatVLLM(model="m", base_url="http://127.0.0.1:9", max_retries=0).invoke("x")
    finally:
        logging.getLogger().removeHandler(handler)
    assert SECRET not in all_of(caught.value) + logged.getvalue()


def test_what_may_be_shown():
    for shown in ("http://localhost:8000/v1", "https://[::1]:80/", "http://host.example/team/v1"):
        assert shown_url(shown) == shown
    for hidden in (
        "http://u@h",
        "http://h/v1?a",
        "http://h#a",
        "ftp://h",
        "http://h:port",
        "http://h/a b",
        "h:1",
    ):
        assert shown_url(hidden) is None
    assert shown_address("10.0.0.1:6379") == "10.0.0.1:6379"
    assert may_be_shown({"type": "threshold", "t": [0.5, None, True]})
    for held in ({"api_key": 1}, ["u@h"], "password=x", b"x", {"a": {"b": "x://y"}}):
        assert not may_be_shown(held)
