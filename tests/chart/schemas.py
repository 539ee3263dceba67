"""Kubernetes' own schemas of its objects, read once for each version."""

import functools
import json
import pathlib

import jsonschema
import kubernetes_validate
import referencing

# An older one, the first to know a sleep before SIGTERM, and the newest there are schemas of.
VERSIONS = ["1.30.0", "1.36.0"]
# Objects of the Prometheus operator, which Kubernetes does not describe.
FOREIGN = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
ROOT = pathlib.Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"


@functools.cache
def registry(version):
    definitions = json.loads((folder(version) / "_definitions.json").read_text())
    return referencing.Resource.from_contents(definitions) @ referencing.Registry()


def folder(version):
    return ROOT / f"v{version}-local-strict"


@functools.cache
def validator(version, kind, api_version):
    group = api_version.split("/")
    group[0] = group[0].split(".")[0]
    name = "-".join([kind.lower(), *group])
    schema = json.loads((folder(version) / f"{name}.json").read_text())
    return jsonschema.Draft202012Validator(schema, registry=registry(version))


def problems(version, it):
    """What is wrong with an object; unknown fields are."""
    errors = validator(version, it["kind"], it["apiVersion"]).iter_errors(it)
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in errors]
