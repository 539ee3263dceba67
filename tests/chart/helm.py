"""Helm: the program that $HELM names, else its own engine as a Python package."""

import os
import pathlib
import shutil
import subprocess
import tempfile

import yaml

CHART = pathlib.Path(__file__).resolve().parents[2] / "chart" / "hypercache"
PROGRAM = os.environ.get("HELM")
# What is rendered for, whatever a Helm is built for.
KUBERNETES = "1.36.0"

# What the notes are rendered as where Helm prints them for installed releases only.
NOTES_OBJECT = """apiVersion: v1
kind: Notes
metadata: {name: notes}
text: {{ include "notes" . | quote }}
"""


class Refused(Exception):
    """Helm does not render these values; says why."""


class Rendered:
    """The objects of a release, its tests, and its notes."""

    def __init__(self, objects, notes):
        self.notes = notes
        self.tests = [it for it in objects if "helm.sh/hook" in it["metadata"].get("annotations", {})]
        self.objects = [it for it in objects if it not in self.tests]

    def all(self, kind):
        return [it for it in self.objects if it["kind"] == kind]

    def one(self, kind, name=None):
        found = [it for it in self.all(kind) if name in (None, it["metadata"]["name"])]
        assert len(found) == 1, f"{len(found)} objects of kind {kind} named {name}"
        return found[0]

    def names(self):
        return sorted((it["kind"], it["metadata"]["name"]) for it in self.objects)

    @property
    def pod(self):
        return self.one("StatefulSet")["spec"]["template"]["spec"]

    @property
    def container(self):
        (container,) = self.pod["containers"]
        return container

    @property
    def variables(self):
        """The variables that have a value, by name."""
        return {it["name"]: it["value"] for it in self.container["env"] if "value" in it}


class StrictLoader(yaml.SafeLoader):
    """Takes no key twice: of two values Kubernetes would silently keep one."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        if len(keys) != len(set(keys)):
            raise yaml.YAMLError(f"a key stands twice in {keys}, {node.start_mark}")
        return super().construct_mapping(node, deep)


def template(arguments=(), release="hyc", namespace="hyc-prod", chart=CHART):
    """What `helm install RELEASE CHART --namespace NAMESPACE ARGUMENTS…` would send."""
    if PROGRAM:
        return by_program(chart, arguments, release, namespace)
    return by_engine(chart, arguments, release, namespace)


def umbrella(folder, values):
    """A chart of somebody's that has this one below it, if `hypercache.enabled`."""
    (folder / "charts").mkdir(parents=True)
    shutil.copytree(CHART, folder / "charts" / "hypercache")
    (folder / "templates").mkdir()
    (folder / "templates" / "NOTES.txt").write_text("shop")
    dependency = {"name": "hypercache", "version": "0.1.0", "condition": "hypercache.enabled"}
    chart = {"apiVersion": "v2", "name": "shop", "version": "1.0.0", "dependencies": [dependency]}
    (folder / "Chart.yaml").write_text(yaml.safe_dump(chart))
    (folder / "values.yaml").write_text(yaml.safe_dump(values))
    return folder


def by_program(chart, arguments, release, namespace):
    with tempfile.TemporaryDirectory() as work:
        copy = pathlib.Path(work) / chart.name
        shutil.copytree(chart, copy)
        templates = copy / "templates"
        notes = (templates / "NOTES.txt").read_text()
        (templates / "_notes.tpl").write_text('{{- define "notes" -}}\n' + notes + "{{- end }}\n")
        (templates / "notes-object.yaml").write_text(NOTES_OBJECT)
        command = [PROGRAM, "template", release, str(copy), "--namespace", namespace]
        command += ["--kube-version", KUBERNETES, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Refused(done.stderr)
    objects = [it for it in yaml.load_all(done.stdout, StrictLoader) if it]
    (notes,) = (it["text"] for it in objects if it["kind"] == "Notes")
    return Rendered([it for it in objects if it["kind"] != "Notes"], notes)


def by_engine(chart, arguments, release, namespace):
    import helm_python

    try:
        with helm_python.Chart.load(chart) as loaded:
            rendered = loaded.render(values_of(arguments), name=release, namespace=namespace)
    except helm_python.HelmError as error:
        raise Refused(str(error)) from error
    notes = "".join(text for path, text in rendered.items() if path.endswith("NOTES.txt"))
    texts = (text for path, text in rendered.items() if path.endswith(".yaml"))
    objects = [it for text in texts for it in yaml.load_all(text, StrictLoader) if it]
    return Rendered(objects, notes)


def lint(arguments=()):
    """What `helm lint --strict` finds, of severity warning and above."""
    if PROGRAM:
        command = [PROGRAM, "lint", "--strict", "--quiet", str(CHART), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        return [done.stdout + done.stderr] if done.returncode else []
    import helm_python

    report = helm_python.lint(CHART, values_of(arguments), strict=True)
    return report["errors"] + [it["error"] for it in report["messages"] if it["severity"] > 1]


def values_of(arguments):
    """The values of `--values FILE`, `--set PATH=VALUE` and `--set-json PATH=VALUE`."""
    import helm_python

    values = {}
    left = iter(arguments)
    for option in left:
        argument = next(left)
        if option == "--values":
            more = yaml.safe_load(pathlib.Path(argument).read_text())
        elif option == "--set":
            more = helm_python.parse_set_string(argument)
        else:
            assert option == "--set-json", option
            more = helm_python.parse_set_json(argument)
        values = merged(values, more)
    return values


def merged(under, over):
    if isinstance(under, dict) and isinstance(over, dict):
        both = under | over
        return both | {key: merged(under[key], over[key]) for key in under.keys() & over.keys()}
    return over
