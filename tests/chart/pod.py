"""What a kubelet makes of the container of a pod: its variables and the files it is given."""

import base64
import math
import pathlib
import re

MOUNTED = "/etc/hypercache"
# One secret for all that are not the chart's own; who cares for its content gives one.
PLACEHOLDER = {"token": b"a-token"}


def bytes_of(quantity):
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 10**3, "M": 10**6, "G": 10**9}
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(quantity)).groups()
    return int(float(number) * units.get(unit, 1))


def cores_of(quantity):
    text = str(quantity)
    return float(text.removesuffix("m")) / (1000 if text.endswith("m") else 1)


def secrets_of(rendered):
    """The content of the Secrets that the chart makes."""
    return {
        it["metadata"]["name"]: {key: base64.b64decode(data) for key, data in it["data"].items()}
        for it in rendered.all("Secret")
    }


def variables(rendered, pod_name, secrets=None):
    """The environment, as `$(NAME)` expands to what stands above it."""
    secrets = secrets_of(rendered) | (secrets or {})
    container, known = rendered.container, {}
    for it in container["env"]:
        source = it.get("valueFrom", {})
        if "value" in it:
            value = re.sub(r"\$\((\w+)\)", lambda name: known.get(name[1], name[0]), it["value"])
        elif "resourceFieldRef" in source:
            resource = source["resourceFieldRef"]["resource"]
            limit = container["resources"]["limits"][resource.removeprefix("limits.")]
            value = str(bytes_of(limit) if resource == "limits.memory" else math.ceil(cores_of(limit)))
        elif "secretKeyRef" in source:
            reference = source["secretKeyRef"]
            value = secrets.get(reference["name"], PLACEHOLDER)[reference["key"]].decode()
        else:
            fields = {"metadata.name": pod_name, "spec.nodeName": "machine-1"}
            value = fields[source["fieldRef"]["fieldPath"]]
        known[it["name"]] = value
    return known


def mount(rendered, root, secrets=None):
    """Writes the files of the container's Secrets below `root`, as if that were `/`."""
    secrets = secrets_of(rendered) | (secrets or {})
    volumes = {it["name"]: it["secret"] for it in rendered.pod.get("volumes", []) if "secret" in it}
    for place in rendered.container.get("volumeMounts", []):
        volume = volumes[place["name"]]
        assert place["mountPath"].startswith(MOUNTED + "/"), place
        folder = pathlib.Path(root) / place["mountPath"].lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        content = secrets.get(volume["secretName"], PLACEHOLDER)
        for item in volume["items"]:
            (folder / item["path"]).write_bytes(content[item["key"]])


def below(root, variables):
    """The variables with the files' paths below `root`."""
    moved = {}
    for name, value in variables.items():
        moved[name] = str(root) + value if value.startswith(MOUNTED + "/") else value
    return moved
