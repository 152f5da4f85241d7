"""After the run, the worst error that was recorded under each transform."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    worst: dict[str, float] = {}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for key, value in getattr(report, "user_properties", []):
            if key == "oracle":
                where, found = value
                worst[where] = max(worst.get(where, 0.0), found)
    if worst:
        terminalreporter.section("worst relative error against JAX")
        for name, found in sorted(worst.items(), key=lambda pair: pair[1]):
            terminalreporter.line(f"{found:.1e} {name}")
