"""What is public, what an import costs, and what the wheel holds."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import trim_graph
import trim_graph.adapters
import trim_graph.config
import trim_graph.evaluation
import trim_graph.examples.arithmetic
import trim_graph.middleware
import trim_graph.policies
import trim_graph.testing

ROOT = Path(__file__).parent.parent
PUBLIC = {
    trim_graph: {
        "DEFAULT_INSTRUCTION",
        "Allowance",
        "Allowances",
        "Budget",
        "ChatModelContractError",
        "InputError",
        "ModelPrice",
        "Prices",
        "ScorerError",
        "SettingsError",
        "Step",
        "Summary",
        "TrimChatModel",
        "TrimContext",
        "TrimError",
        "TrimInput",
        "TrimOutput",
        "TrimState",
        "__version__",
        "create_trim_chat_model",
        "create_trim_graph",
        "open_checkpointer",
        "open_ledger",
        "trim_node",
    },
    trim_graph.policies: {
        "AllOf",
        "AnyOf",
        "Choice",
        "Decision",
        "FunctionPolicy",
        "NextWriter",
        "Observation",
        "Policy",
        "as_policy",
        "by_pattern",
        "entropy_probe",
        "large_only",
        "load_policy",
        "query_router",
        "random_rate",
        "save_policy",
        "small_only",
        "stay_on_large",
        "threshold",
    },
    trim_graph.adapters: {
        "ChatModelContractError",
        "ChatTransformers",
        "ChatVLLM",
        "ChatVLLMEngine",
        "ContextLengthError",
        "ContinueByPrompt",
        "LLMJudge",
        "ModelServerError",
        "ScorableStep",
        "Scorer",
        "ScorerError",
        "ScorerReply",
        "StepEnd",
        "TokenProbability",
        "TransformersProcessReward",
        "TrimError",
        "VLLMEngineProcessReward",
        "VLLMProcessReward",
        "serve_options",
    },
    trim_graph.config: {
        "EXAMPLE",
        "Parts",
        "TrimConfig",
        "build_graph",
        "build_parts",
        "example_config",
        "for_measuring",
        "load_config",
        "make_config",
    },
    trim_graph.evaluation: {
        "ArmFigures",
        "Difference",
        "Interval",
        "Outcome",
        "Question",
        "Run",
        "accuracy",
        "accuracy_difference",
        "compare",
        "cpt",
        "ibc",
        "interval",
        "mean_delta_ibc",
        "mean_ibc",
        "performance_gap_recovered",
        "read_run",
        "resampled_means",
        "run_arm",
        "share_of_large_tokens",
    },
    trim_graph.middleware: {"TrimAgentState", "TrimMiddleware", "render_turn"},
    trim_graph.testing: {"ScriptedChatModel", "ScriptedScorer", "ScriptedToolModel"},
    trim_graph.examples.arithmetic: {
        "LARGE",
        "PRM",
        "SMALL",
        "Part",
        "Problem",
        "Split",
        "draw_problem",
        "is_right",
        "label_steps",
        "part_of",
        "problems",
        "stream_problems",
    },
}


def run(code, **options):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True, **options
    ).stdout.strip()


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_the_public_names_are_these_and_all_of_them_exist(module):
    assert set(module.__all__) == PUBLIC[module]
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'create_graph'"):
        trim_graph.create_graph  # noqa: B018


@pytest.mark.parametrize(
    "statement",
    [
        "import trim_graph",
        "from trim_graph import *",
        "import trim_graph.adapters",
        "import trim_graph.policies",
        "import trim_graph.examples.arithmetic",
        "import trim_graph.cli",
    ],
)
def test_imports_stay_light(statement):
    heavy = (
        "torch",
        "vllm",
        "transformers",
        "numpy",
        "langchain",
        "trim_graph.adapters.chat_vllm",
        "trim_graph.middleware",
    )
    assert run(f"{statement}\nimport sys\nprint([m for m in {heavy} if m in sys.modules])") == "[]"


def test_the_middleware_says_what_it_needs():
    code = """
import sys
sys.modules["langchain"] = None
try:
    import trim_graph.middleware
except ImportError as error:
    print(error)
"""
    assert run(code) == 'TrimMiddleware needs pip install "trim-graph[agents]"'


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(source)], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_code_types_and_weights_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "trim_graph/py.typed" in names
    for folder in ("small", "large", "prm"):
        assert f"trim_graph/examples/arithmetic/weights/{folder}/model.safetensors" in names
        assert f"trim_graph/examples/arithmetic/weights/{folder}/tokenizer.json" in names
    page = [p.name for p in (ROOT / "trim_graph/report").iterdir() if p.suffix in (".html", ".css", ".js")]
    assert "page.html" in page
    assert {f"trim_graph/report/{name}" for name in page} <= set(names)
    assert {name.split("/")[0] for name in names} == {
        "trim_graph",
        f"trim_graph-{trim_graph.__version__}.dist-info",
    }
    assert "trim_graph/examples/arithmetic/policies/aggregate-0.02.safetensors" in names
    python = {str(p.relative_to(ROOT)) for p in (ROOT / "trim_graph").rglob("*.py")}
    for mapped in ("nodes", "adapters", "examples"):
        python |= {f"trim_graph/{p.relative_to(ROOT)}" for p in (ROOT / mapped).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == python


def test_an_installed_wheel_is_not_shadowed_by_the_repository(wheel, tmp_path):
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(tmp_path),
            str(wheel),
        ],
        check=True,
        capture_output=True,
    )
    place = run(
        "import trim_graph.nodes as n, trim_graph.examples.arithmetic as a; print(a.__file__, n.__file__)",
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"},
    )
    assert all(part.startswith(str(tmp_path)) for part in place.split())
