"""Settings of a contract, and the report of what was not checked because of them.

A contract fails when it cannot check something, unless its author states it. The statements are
shown in a section at the end of pytest's output.
"""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import pytest

_NAME = "art_core contracts"
TITLE = "contracts: stated by their authors"


@attrs.frozen
class Setting:
    """An attribute that the author of a test may set.

    `meaning` is for the docs. `consequence` is shown in the report when the attribute is set; ""
    for a setting that leaves nothing unchecked.
    """

    name: str
    meaning: str
    consequence: str = ""


@attrs.define(eq=False)  # pytest keeps its plugins in a set
class Report:
    """A pytest plugin that prints the statements of all contracts of a session."""

    lines: dict[str, None] = attrs.field(factory=dict)

    @classmethod
    def of(cls, config: pytest.Config) -> Report:
        """Return the session's report; the first call adds it to pytest."""
        found = config.pluginmanager.get_plugin(_NAME)
        if found is None:
            found = cls()
            config.pluginmanager.register(found, _NAME)
        assert isinstance(found, cls)
        return found

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print a section with one line per statement."""
        terminalreporter.section(TITLE)
        for line in self.lines:
            terminalreporter.write_line(line)


class Contract:
    """Base class of all contracts: knows its settings and reports them."""

    settings: ClassVar[tuple[Setting, ...]] = ()
    _config: pytest.Config

    @pytest.fixture(autouse=True)
    def _report_settings(self, request: pytest.FixtureRequest) -> None:
        self._config = request.config
        for setting in self.settings:
            value = getattr(self, setting.name)
            if setting.consequence and value != self.default(setting.name):
                self.state(f"{setting.name} = {value!r}: {setting.consequence}")

    @classmethod
    def default(cls, name: str) -> Any:
        """Return the value that the contract itself gives to a setting."""
        return next(vars(base)[name] for base in reversed(cls.__mro__) if name in vars(base))

    def state(self, text: str) -> None:
        """Show a sentence in the report of the session."""
        Report.of(self._config).lines[f"{type(self).__name__}: {text}"] = None
