import shlex

import pytest

from tests import tiny_prms


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tiny_prms.save_skywork(tmp_path_factory.mktemp("skywork") / "original")


def test_it_writes_the_folder_and_says_how_to_serve_it(run, original, tmp_path):
    target = tmp_path / "for vllm"
    done = run("convert-prm", str(original), str(target))
    words = shlex.split(done.stdout)
    assert words[:3] == ["vllm", "serve", str(target)]
    assert words[3:7] == ["--runner", "pooling", "--convert", "classify"]
    assert (target / "model.safetensors.index.json").is_file()


def test_what_it_cannot_convert_is_a_line_on_stderr(run, original, tmp_path):
    done = run("convert-prm", str(original), str(original))
    assert done.exit_code == 2
    assert done.stderr == f"trim-graph: {original} is not empty; name a folder that is not there yet\n"
    other = tiny_prms.save_rlhflow(tmp_path / "llama")
    done = run("convert-prm", str(other), str(tmp_path / "out"))
    assert done.exit_code == 2
    assert "only a value head on a qwen2 is converted" in done.stderr
