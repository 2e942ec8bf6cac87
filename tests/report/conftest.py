"""Reports in a real Chromium: the system's, `apt-get install chromium`. See .ci/chromium."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from trim_graph.report import write_report

SWITCHES = (
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


THREAD = ThreadPoolExecutor(1)
"""Playwright keeps an event loop running in its thread, where no test with one of its own could run."""


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if "opened" not in pyfuncitem.fixturenames:
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    THREAD.submit(pyfuncitem.obj, **arguments).result()
    return True


@pytest.fixture(scope="session")
def chromium():
    """A browser for all tests."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    play = THREAD.submit(lambda: sync_playwright().start()).result()
    browser = THREAD.submit(play.chromium.launch, executable_path=program, args=list(SWITCHES)).result()
    yield browser
    THREAD.submit(browser.close).result()
    THREAD.submit(play.stop).result()


@dataclass
class Opened:
    """A page and everything that it complained of or asked for."""

    page: object
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def clean(self):
        """Nothing went wrong, nothing was fetched."""
        elsewhere = [url for url in self.requests if not re.match(r"(file|data):", url)]
        return not self.complaints and not elsewhere and self.page.evaluate("window.pwned") is None

    def count(self):
        return self.page.locator("#count").text_content()

    def question(self):
        return self.page.locator("#detail h3").text_content()


@pytest.fixture
def opened(chromium):
    """Opens a file as a reader would."""
    contexts = []

    def open_file(file, width=1280, height=900, **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        found = Opened(context.new_page())
        found.page.on("console", lambda message: found.complaints.append(message.text))
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.on("dialog", lambda dialog: (found.complaints.append("dialog"), dialog.dismiss()))
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.goto(Path(file).as_uri())
        return found

    yield open_file
    for context in contexts:
        THREAD.submit(context.close).result()


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """The report of 60 questions under four arms; one has failed, one went over its budget."""
    from written_runs import a_row, a_summary, usual_rows, write_run

    rows = usual_rows(60)
    at = next(i for i, row in enumerate(rows) if (row["arm"], row["index"]) == ("threshold-0.5", 5))
    rows[at] = a_row(
        "threshold-0.5", 5, correct=False, error="OSError: gone", steps=[], solution="", large_tokens=0
    )
    rows[at + 1]["large_tokens"] = 70
    folder = write_run(tmp_path_factory.mktemp("run") / "run", rows, summary=a_summary(60), budget=64)
    return write_report(folder)[0]
