"""The table of values in the chart's README: made of the comments in values.yaml.

    readme.py --write
"""

import json
import re
import sys

import yaml

from helm import CHART

BEGIN, END = "<!-- values -->\n", "<!-- end of values -->\n"


def described():
    """Each value's path with the comment above it, in order; parts of a path as a tuple."""
    found, path, comment = {}, [], None
    for line in (CHART / "values.yaml").read_text().splitlines():
        stripped = line.strip()
        indent = (len(line) - len(line.lstrip())) // 2
        if stripped.startswith("#"):
            comment = stripped.lstrip("# ")
            continue
        if key := re.match(r"([A-Za-z_]+):", stripped):
            path = [*path[:indent], key[1]]
            if comment:
                found[tuple(path)] = comment
        comment = None
    return found


def leaves(values, schema, path=()):
    """The paths of all values: those below which a user chooses the keys are one."""
    for key, value in values.items():
        at = (*path, key)
        inner = schema.get("properties", {}).get(key, {})
        if isinstance(value, dict) and "properties" in inner:
            yield from leaves(value, inner, at)
        else:
            yield at, value


def schema():
    return json.loads((CHART / "values.schema.json").read_text())


def values():
    return yaml.safe_load((CHART / "values.yaml").read_text())


def table():
    comments = described()
    lines = ["| value | default | |", "|---|---|---|"]
    for path, value in leaves(values(), schema()):
        # Of two levels that are one value, the comment stands at the upper one.
        comment = comments.get(path) or comments.get(path[:-1], "")
        shown = json.dumps(value, ensure_ascii=False)
        lines.append(f"| `{'.'.join(path)}` | `{shown}` | {comment.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def parts():
    """The README before the table, the table, and what follows."""
    text = (CHART / "README.md").read_text()
    before, rest = text.split(BEGIN)
    inner, after = rest.split(END)
    return before, inner, after


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    before, _, after = parts()
    (CHART / "README.md").write_text(before + BEGIN + table() + END + after)
