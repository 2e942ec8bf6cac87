"""Options of `trim-graph serve`: what is refused before a model is loaded or a request is answered."""

import socket

import pytest

CONFIG = """
small: {type: vllm, model: m, api_key_env: null}
large: {type: vllm, model: m, api_key_env: null}
policy: {type: random_rate, rate: 0.2}
"""
KEY = "key-of-ada-0123456789"


@pytest.fixture
def refused(run, tmp_path, monkeypatch):
    """Runs the command with a configuration, and returns its error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRIM_API_KEYS", raising=False)
    (tmp_path / "keys").write_text(f"ada={KEY}\n")

    def error(*arguments, more=""):
        (tmp_path / "trim.yaml").write_text(CONFIG + more)
        done = run("serve", "--config", "trim.yaml", *arguments)
        assert done.exit_code == 2, done.output
        assert KEY not in done.output
        return done.stderr

    return error


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (("--port", "0"), "--port is 0: 1 to 65535"),
        (("--workers", "0"), "--workers is 0: choose 1 or more"),
        (("--max-questions", "0"), "--max-questions is 0"),
        (("--drain", "0"), "--drain is 0"),
        (("--model-name", "a:b"), "--model-name a:b: use letters"),
        (("--model-name", "large"), "neither small nor large"),
        (("--api-keys", "nowhere"), "--api-keys nowhere cannot be read"),
        (("--api-keys", "keys", "--no-auth"), "--no-auth contradicts the API keys"),
        (("--host", "0.0.0.0"), "give --api-keys FILE, or --no-auth"),
        (("--config", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_a_wrong_option_is_named(refused, arguments, wrong):
    assert wrong in refused(*arguments)


@pytest.mark.parametrize(
    ("more", "arguments", "wrong"),
    [
        ("budget: {large_tokens: 9, on_exhausted: ask}", (), "a server has no human to ask"),
        ("quotas: {user: {large_calls: 1}}\nledger: memory", (), "there are no API keys"),
        (
            "quotas: {user: {large_calls: 1}}\nledger: memory",
            ("--api-keys", "keys", "--workers", "2"),
            "counts in each of --workers by itself",
        ),
    ],
)
def test_a_configuration_that_cannot_be_served_is_refused(refused, more, arguments, wrong):
    assert wrong in refused(*arguments, more=more)


@pytest.mark.enable_socket
def test_a_host_that_is_none_is_named(refused):
    assert "--host no such host --port 8000: cannot listen there" in refused(
        "--host", "no such host", "--no-auth"
    )


@pytest.mark.enable_socket
def test_a_port_that_is_taken_is_named(refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"--port {port}: cannot listen there: Address already in use" in refused("--port", port)
