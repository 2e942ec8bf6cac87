"""Tests of what is said of a wrong configuration file: the line, the key, what was seen, what is right."""

import pytest

from tests.config.conftest import MODELS, refused
from trim_graph.config import load_config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "trim.yaml is empty; it needs the keys small, large and policy"),
        ("- small", "trim.yaml holds ['small']; it needs"),
        ("small: [", "trim.yaml, line 1, column 9: not valid YAML"),
        ("small: {a: 1 b: 2}", "not valid YAML: expected ',' or '}', but got ':'"),
        ("small: [1}", "expected ',' or ']', but got '}'"),
        ("a:\n\tb: 1", "found character '\\t' that cannot start any token"),
        ("a: \x00", "trim.yaml: not valid YAML"),
        (MODELS, "trim.yaml: policy: this key is missing"),
        (f"{MODELS}policy: small_only\npolicy: large_only", "trim.yaml, line 5: policy is set twice"),
        (
            f"{MODELS}policy: treshold",
            "trim.yaml, line 4: policy: unknown type 'treshold', did you mean threshold? There are: small",
        ),
        (
            f"{MODELS}policy: 3",
            "line 4: policy: is 3: choose small, large, a threshold in [0, 1], or a policy",
        ),
        (f"{MODELS}policy: {{t: 0.5}}", "line 4: policy: is {'t': 0.5}; expected a mapping with a type"),
        (
            f"{MODELS}policy: {{type: threshold, t: 1.5}}",
            "policy.t: is 1.5; it should be less than or equal to 1",
        ),
        (f"{MODELS}policy: {{type: threshold}}", "policy.t: this key is missing"),
        (
            f"{MODELS}policy:\n  type: threshold\n  t: 0.5\n  k: 2",
            "line 7: policy.k: unknown key. There are: type, t",
        ),
        (
            f"{MODELS}policy:\n  type: any_of\n  policies:\n  - small_only\n  - {{type: threshold, tt: 1}}",
            "line 8: policy.policies[1].tt: unknown key, did you mean t?",
        ),
        (f"{MODELS}policy: small_only\nbudgt: {{}}", "line 5: budgt: unknown key, did you mean budget?"),
        (
            f"{MODELS}policy: small_only\nbudget:\n  min_tokens: 0",
            "line 6: budget.min_tokens: is 0; it should be greater than or equal to 1",
        ),
        (f"{MODELS}policy: small_only\nbudget:", "line 5: budget: is empty; expected a mapping"),
        (
            f"{MODELS}policy: small_only\nprices: {{large: {{inptu: 1}}}}",
            "prices.large.inptu: unknown key, did you mean input? There are: input, output, cached_input",
        ),
        (f"{MODELS}policy: small_only\nsettings: {{max_steps: many}}", "settings.max_steps: is 'many'"),
        (
            f"{MODELS}policy: small_only\ncheckpoint: sqlit",
            "line 5: checkpoint: is not one of the choices: choose none, memory, sqlite:PATH, postgresql://",
        ),
        (f"{MODELS}policy: small_only\ncheckpoint: ['x']", "checkpoint: is not a text: choose none"),
        ("small: {type: vlm}\nlarge: {type: example}\npolicy: small_only", "small: unknown type 'vlm'"),
        (
            "small: {type: transformers, model: ./nix}\nlarge: {type: example}\npolicy: small_only",
            "nix': no such folder. Give the folder of a model in the transformers layout",
        ),
        (
            "small: {type: transformers, model: 3}\nlarge: {type: example}\npolicy: small_only",
            "is 3; it should",
        ),
        (
            "small: {type: vllm, model: m, base_url: localhost}\nlarge: {type: example}\npolicy: small_only",
            "line 1: small.base_url: does not begin with http:// or https://; it looks like http://localhost",
        ),
        (
            "small: {type: vllm, model: m, base_url: ['http://a:1', 3]}\n"
            "large: {type: example}\npolicy: small_only",
            "small.base_url: should be an address or a list of addresses",
        ),
        (
            "small: {type: vllm, model: m, base_url: ['http://a:1', 'http://a:1/v1']}\n"
            "large: {type: example}\npolicy: small_only",
            "small.base_url: names http://a:1 more than once",
        ),
        (
            "small: {type: vllm, model: m, api_key: sk-1}\nlarge: {type: example}\npolicy: small_only",
            "line 1: small.api_key: unknown key, did you mean api_key_env?",
        ),
        (
            "small: {type: vllm}\nlarge: {type: example}\npolicy: small_only",
            "line 1: small.model: this key is missing",
        ),
        (
            "small: {type: transformers, modle: x/y}\nlarge: {type: example}\npolicy: small_only",
            "line 1: small.modle: unknown key, did you mean model?",
        ),
    ],
)
def test_errors_name_the_line_the_key_and_the_remedy(write, text, said):
    message = refused(write(text))
    assert said in message
    assert len(message.splitlines()) <= 2


def test_a_password_in_a_url_is_not_repeated(write):
    said = refused(
        write("small: {type: vllm, model: m, base_url: 'http://me:hunter2@x'}\nlarge: {type: example}")
    )
    assert "small.base_url: holds a user name or password" in said
    assert "hunter2" not in said


def test_a_wrong_key_is_reported_before_what_follows_from_it(write):
    said = refused(write("small: {type: transformers, modle: x}\nlagre: {}\npolicy: small_only\nbudget: 3"))
    assert [line.split(":")[1].strip() for line in said.splitlines()] == ["small.modle", "lagre"]
    assert said.endswith("(and 3 more)")


def test_files_that_cannot_be_read(tmp_path):
    assert "nix.yaml does not exist (looked for /" in refused(tmp_path / "nix.yaml")
    assert "cannot be read" in refused(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    assert "not UTF-8" in refused(tmp_path / "latin.yaml")


def test_errors_distinguish_the_command_line_from_the_file(write):
    path = write(f"{MODELS}policy: small_only\nbudget: {{seconds: many}}")
    said = refused(path, overrides={"budget": {"min_tokens": 0}})
    assert "command line: budget.min_tokens: is 0" in said
    assert "trim.yaml, line 5: budget.seconds: is 'many'" in said


def test_yaml_runs_no_code(write):
    said = refused(write("small: !!python/object/apply:os.getcwd []"))
    assert "not valid YAML: could not determine a constructor" in said


def test_aliases_work_and_do_not_loop(write):
    config = load_config(write("small: &m {type: example}\nlarge: *m\npolicy: small_only"))
    assert config.large == config.small
    assert "unknown key" in refused(write("&a\nb: *a"))
