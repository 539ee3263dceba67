"""Prints how many requests a report of schemathesis counts, if it passed over nothing."""

import json
import sys

with open(sys.argv[1], encoding="utf-8") as file:
    report = json.load(file)
operations = report["operations"]
skipped = [
    f"phase {name}: {phase['skip_reason'] or phase['status']}"
    for name, phase in report["phases"].items()
    if phase["status"] != "success" and phase["skip_reason"] != "disabled"
]
if not report["complete"]:
    skipped.append(f"stopped: {report['stop_reason']}")
if operations["tested"] != operations["total"]:
    skipped.append(f"operations: {operations}")
if skipped:
    sys.exit("; ".join(skipped))
print(report["test_cases"]["generated"])
